"""JSON files: read, written whole or not at all, and changed by one process at a time."""

from __future__ import annotations

import getpass
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from apache_beam.io.filesystems import FileSystems
from filelock import FileLock, Timeout

from ..errors import SnapshotError, convert_write_errors
from .filesystem import is_local, read, upload, with_retries
from .object_store import _PRECONDITIONED

__all__ = ["Json", "SnapshotError", "update_json", "is_local", "owner", "read_json", "write_json"]

LOCK_SECONDS = 600

LOCAL_LOCK_SECONDS = 60  # nobody holds it for longer than it takes to write a line

Json: TypeAlias = "dict[str, object]"


def read_json(path: str) -> Json | None:
    """The JSON object in a file, or None where there is no file; SnapshotError where it holds something else."""
    data = read(path)
    return None if data is None else _parsed(path, data)


def _parsed(path: str, data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise SnapshotError(f"{path} is not JSON ({error}): restore it, or remove it and run again") from None
    if not isinstance(value, dict):
        raise SnapshotError(f"{path} holds no JSON object: restore it, or remove it and run again")
    return value


def write_json(path: str, value: object) -> None:
    """Write `path` whole or not at all."""
    data = _dumped(value)
    if not is_local(path):  # an object appears when its upload is complete
        upload(io.BytesIO(data), path, "application/json")
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    with convert_write_errors(path):
        try:
            with open(temporary, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def _dumped(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def update_json(path: str, decide: Callable[[Json | None], Json | None]) -> None:
    """Replace the object in `path` by what `decide` makes of the one that is there, if nobody else does so meanwhile.

    `decide` gives None to leave it as it is, and may raise. SnapshotError where somebody else was quicker.
    """
    scheme = path.partition("://")[0] if not is_local(path) else ""
    if scheme in _PRECONDITIONED:
        read_version, write = _PRECONDITIONED[scheme]
        data, version = with_retries(path, "read", lambda: read_version(path))
        value = decide(None if data is None else _parsed(path, data))
        if value is None:
            return
        new = _dumped(value)
        # A write that is refused may have been done before: by us, when its answer was lost on the way and it was sent
        # again. What is written here names its run, so nobody else's can be equal.
        if not with_retries(path, "written", lambda: write(path, new, version)) and read(path) != new:
            raise SnapshotError(f"another run changed {path} in this moment: nothing of it was touched; run again")
        return
    with _local_lock(path) if is_local(path) else _lock_file(path):
        value = decide(read_json(path))
        if value is not None:
            write_json(path, value)


def owner() -> Json:
    """Who this process is, and when it said so."""
    return {"owner": f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}", "time": time.time()}


@contextmanager
def _local_lock(path: str) -> Iterator[None]:
    lock = FileLock(os.path.join(os.path.dirname(path), "publish.lock"), timeout=LOCAL_LOCK_SECONDS)
    with convert_write_errors(path):
        try:
            lock.acquire()
        except Timeout:
            raise SnapshotError(f"another run holds {lock.lock_file}: run again once it is done") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _lock_file(path: str) -> Iterator[None]:
    lock = f"{path}.lock"
    mine = owner()
    held = read_json(lock)
    # A time far ahead of ours is that of a clock that was set back since: such a lock must not hold until then.
    if held and abs(time.time() - float(str(held["time"]))) < LOCK_SECONDS:
        raise SnapshotError(f"{held['owner']} holds {lock}: run again once it is done, or in {LOCK_SECONDS} s")
    write_json(lock, mine)
    try:
        if read_json(lock) != mine:
            raise SnapshotError(f"another run took {lock} in this moment: run again once it is done")
        yield
    finally:
        with suppress(Exception):
            FileSystems.delete([lock])
