"""JSON files: read, written whole or not at all, and updated by one process at a time."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeAlias

from filelock import FileLock, Timeout

from ...model.files import has_locks
from ..errors import SnapshotError, convert_write_errors
from ..layout import PUBLISH_LOCK
from .filesystem import is_locked, read, remove, write_atomically
from .object_store import conditional_access
from .paths import is_local
from .retries import with_retries

LOCK_SECONDS = 600  # how long a lock file on an object store counts

LOCK_CHECK_SECONDS = 1.0  # between writing a lock file and relying on it

LOCAL_LOCK_SECONDS = 60  # how long to wait for a local lock; it is held while one small file is written

Json: TypeAlias = "dict[str, object]"


_REMEDY = "restore it, or remove it and run again"


def read_json(path: str, remedy: str = _REMEDY) -> Json | None:
    """Return the JSON object in a file, or None if the file does not exist.

    Raises SnapshotError, whose message ends with `remedy`, if the file contains anything else.
    """
    data = read(path)
    return None if data is None else _parse(path, data, remedy)


def _parse(path: str, data: bytes, remedy: str = _REMEDY) -> Json:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise SnapshotError(f"{path} is not JSON ({error}): {remedy}") from None
    if not isinstance(value, dict):
        raise SnapshotError(f"{path} is not a JSON object: {remedy}")
    return value


def write_json(path: str, value: object) -> None:
    """Write `value` to `path`, whole or not at all; a local file is on the disk when this returns."""
    write_atomically(path, _serialize(value), "application/json", sync=True)


def _serialize(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def update_json(path: str, decide: Callable[[Json | None], Json | None], *, lock: str | None = None) -> None:
    """Replace the object in a file.

    Args:
        path: The file.
        decide: Gets the present object, or None if there is no file, and returns the new one; if that is None, the file
            stays as it is. What it raises is passed on.
        lock: The file whose lock is taken if one is needed; by default `path`.

    Raises:
        SnapshotError: Another process changed the file in the meantime.
    """
    access = conditional_access(path)
    if access is None:
        with _lock_of(lock or path):
            value = decide(read_json(path))
            if value is not None:
                write_json(path, value)
        return
    data, version = with_retries(path, "read", lambda: access.read(path))
    value = decide(None if data is None else _parse(path, data))
    if value is None:
        return
    new = _serialize(value)
    # A write can be refused because it was done before: its answer was lost and the client sent it again. The content
    # names its run, so that no other run's content is equal to it.
    if not with_retries(path, "written", lambda: access.write(path, new, version)) and read(path) != new:
        raise SnapshotError(f"another run changed {path} at the same time: its change was kept; run again")


def _lock_of(path: str) -> AbstractContextManager[None]:
    """Return what locks a file: a lock of a local file system, or a lock file if it has no locks."""
    if not is_local(path):
        return _lock_file(path)
    with convert_write_errors(path):
        return _local_lock(path) if has_locks(_local_lock_path(path)) else _lock_file(path)


def describe_lock(path: str) -> str:
    """Return what keeps a file from being updated now, with the remedy; "" if nothing does."""
    with suppress(OSError):  # a run that publishes reports it
        if is_local(path) and is_locked(lock := _local_lock_path(path)):
            return f"another process holds {lock}, without which no run can publish: end that process if it hangs"
    if conditional_access(path) is None and (holder := _holder(lock := f"{path}.lock")):
        return (
            f"{holder.get('owner')} holds {lock}, without which no run can publish for {LOCK_SECONDS // 60} minutes: remove "
            f"it if that process has ended"
        )
    return ""


def _local_lock_path(path: str) -> str:
    return os.path.join(os.path.dirname(path), PUBLISH_LOCK)


def _holder(lock: str) -> Json | None:
    """Return the content of a lock file; None if it does not exist or does not count any more.

    A time far in the future comes from a clock that was set back since; such a lock must not hold until then.
    """
    holder = read_json(lock)
    counts = holder is not None and abs(time.time() - _time_of(holder)) < LOCK_SECONDS and not has_ended(holder)
    return holder if counts else None


@contextmanager
def _local_lock(path: str) -> Iterator[None]:
    lock = FileLock(_local_lock_path(path), timeout=LOCAL_LOCK_SECONDS)
    with convert_write_errors(path):
        try:
            lock.acquire()
        except Timeout:
            raise SnapshotError(f"another run holds {lock.lock_file}: run again when it has finished") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _lock_file(path: str) -> Iterator[None]:
    """Hold a lock file during the block, on a file system that has neither locks nor conditional writes.

    If several processes see no lock and write one each within LOCK_CHECK_SECONDS, the last one holds it, as the others
    read another lock than their own. That is not certain: a process may take longer between these two steps (a slow write, a
    process that is suspended), and a lock that is LOCK_SECONDS old does not count, though its holder may go on. Nor are
    reading and removing one's own lock at the end a single step. A lock of a process that has ended does not count.
    """
    lock = f"{path}.lock"
    mine = {**owner(), **process(), "id": uuid.uuid4().hex}
    if holder := _holder(lock):
        raise SnapshotError(
            f"{holder.get('owner')} holds {lock}: run again when it has finished, or in {LOCK_SECONDS} s"
        )
    write_json(lock, mine)
    try:
        time.sleep(LOCK_CHECK_SECONDS)
        if read_json(lock) != mine:
            raise SnapshotError(f"another run took {lock} at the same time: run again when it has finished")
        yield
    finally:
        with suppress(Exception):
            if read_json(lock) == mine:
                remove([lock])


def owner() -> Json:
    """Return the user's name or id, host and process id of this process, and the time in seconds."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user id has no name, as in many containers
        user = str(os.getuid())
    return {"owner": f"{user}@{socket.gethostname()}:{os.getpid()}", "time": time.time()}


def process() -> Json:
    """Return what tells other processes of this machine whether this one has ended."""
    return {"machine": _machine(), "process": os.getpid()}


def has_ended(owner: Json) -> bool:
    """Return whether the process that `process` described has certainly ended; that of another machine may be running."""
    number = owner.get("process")
    if not isinstance(number, int) or number <= 0 or owner.get("machine") != _machine():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        pass
    return False


def _machine() -> str:
    """Return a name for what sees the same processes: containers with one host name may have process ids of their own."""
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


def _time_of(owner: Json) -> float:
    """Return when `owner` was made; a value that is not a number counts as long ago."""
    seconds = owner.get("time")
    return float(seconds) if isinstance(seconds, int | float) else 0.0
