"""Run directories: made under a name that no other run has, known to be alive or dead, and removed."""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import SnapshotError, convert_write_errors
from ..io.filesystem import FileEntry, base_name, is_local, join, list_directory, remove, remove_below
from ..io.json_file import Json, owner, update_json
from .manifest import is_run_name

MARKER = "run.json"

# On an object store no lock can be held. A run there has a marker and counts as alive while the marker is present, but
# only until its newest file has this age.
STORE_RUN_SECONDS = 24 * 3600

ATTEMPTS = 60  # to make a directory under a name that no other run has

_TIME, _SECOND = "%Y%m%dT%H%M%SZ", timedelta(seconds=1)

_LOGGER = logging.getLogger(__name__)


def run_path(output: str, snapshot: str) -> str:
    """Return the path of a snapshot's directory."""
    return join(output, "snapshots", snapshot)


def list_runs(output: str) -> dict[str, list[tuple[str, float]]]:
    """Return every run directory under `output` by name, oldest first, with its files as (path, time of last change).

    Links and names that no run is given are left out, so that nothing behind them is read, reused or removed.
    """
    root = join(output, "snapshots")
    runs: dict[str, list[FileEntry]] = {}
    if is_local(output):
        for entry in os.scandir(root) if os.path.isdir(root) else ():
            if entry.is_dir(follow_symlinks=False) and is_run_name(entry.name):
                runs[entry.name] = list_directory(entry.path)
    else:
        for file in list_directory(root, recursive=True):
            name, _, rest = file.path[len(root) + 1 :].partition("/")
            if is_run_name(name) and rest and "/" not in rest:
                runs.setdefault(name, []).append(file)
    return {name: [(file.path, file.changed) for file in files] for name, files in sorted(runs.items())}


def is_complete(files: list[tuple[str, float]]) -> bool:
    """Return whether the files of a run include its manifest."""
    return any(base_name(path) == "manifest.json" for path, _ in files)


def is_alive(output: str, snapshot: str, files: list[tuple[str, float]]) -> bool:
    """Return whether the run that writes `snapshot` may still be going on."""
    if not is_local(output):
        marked = any(base_name(path) == MARKER for path, _ in files)
        return marked and time.time() - max(changed for _, changed in files) < STORE_RUN_SECONDS
    path = os.path.join(run_path(output, snapshot), "run.lock")
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def start_run(output: str, fingerprint: str, *, after: str = "") -> tuple[str, FileLock | None]:
    """Make a run directory; return its name and, on a local disk, the lock that the run holds until it ends.

    Names sort by age: the new one comes after the snapshot `after`, even if the clock was set back since then.

    Raises:
        SnapshotError: The directory cannot be made.
    """
    moment = max(datetime.now(timezone.utc).replace(microsecond=0), _start_time(after) + _SECOND)
    for _ in range(ATTEMPTS):
        name = f"{moment:{_TIME}}-{fingerprint[:8]}"
        if not is_local(output):
            if _claim_on_store(run_path(output, name)):
                return name, None
        else:
            with convert_write_errors(output):
                lock = _make_locked(run_path(output, name), run_path(output, f".{name}-{os.getpid()}"))
            if lock:
                return name, lock
        moment += _SECOND  # another run has this name
    raise SnapshotError(f"{output} has no free name for this run up to {name}: run again")


def end_run(output: str, snapshot: str) -> None:
    """Remove the marker of a run on an object store, so that the next run may reuse the files of one that failed."""
    if not is_local(output):
        with suppress(Exception):  # the run then counts as alive until STORE_RUN_SECONDS have passed
            remove([join(run_path(output, snapshot), MARKER)])


def remove_spills(output: str, snapshot: str) -> None:
    """Delete the spill files of a run on one machine."""
    if is_local(output):
        for path in Path(run_path(output, snapshot)).glob("spill-*.tmp"):
            try:
                path.unlink()
            except OSError as error:  # it is not part of the snapshot, which is complete
                _LOGGER.warning("%s cannot be removed: %s", path, error)


def remove_run(output: str, snapshot: str) -> None:
    """Delete a run directory."""
    remove_below(run_path(output, snapshot))


def _start_time(name: str) -> datetime:
    """Return when the run of that name started, or the earliest possible time if the name has another form."""
    try:
        return datetime.strptime(name[:16], _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)


def _make_locked(directory: str, temporary: str) -> FileLock | None:
    """Make `directory` with its lock held, under the name `temporary` first; return None if `directory` exists."""
    os.makedirs(temporary, exist_ok=True)
    try:
        # Another process that lists the runs holds the lock for a moment, to see whether the run is alive.
        lock = FileLock(os.path.join(temporary, "run.lock"), timeout=5)
        lock.acquire()
        try:
            os.rename(temporary, directory)  # it appears with its lock held, so it never looks like a dead run's
            return lock
        except OSError:
            lock.release()
            if not os.path.isdir(directory):
                raise
            return None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _claim_on_store(directory: str) -> bool:
    """Make the marker in `directory` on an object store; return whether this run made it and no other file is present.

    The marker alone does not suffice: a run that ended has none, and the next run reuses and removes its files.
    """
    marker = join(directory, MARKER)
    made: list[bool] = []

    def decide(existing: Json | None) -> Json | None:
        made[:] = [existing is None]
        return owner() if existing is None else None

    try:
        update_json(marker, decide)
    except SnapshotError:
        return False
    if made != [True]:
        return False
    if all(base_name(file.path) == MARKER for file in list_directory(directory)):
        return True
    remove([marker])
    return False
