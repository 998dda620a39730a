"""Run directories: made under a name that no other run has, known for alive or dead, and removed."""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from apache_beam.io.filesystems import FileSystems
from filelock import FileLock, Timeout

from ..errors import SnapshotError, convert_write_errors
from ..io.filesystem import is_local, match, remove, remove_below
from ..io.json_file import owner, update_json
from .manifest import is_run_name

_LOGGER = logging.getLogger(__name__)

# On an object store, where no lock can be held, a run has a marker, and counts as alive while that is there, but no
# longer than until its newest file is this old.
STORE_RUN_AGE = 24 * 3600

MARKER = "run.json"

ATTEMPTS = 60  # to find a name that no other run has


def run_path(output: str, snapshot: str) -> str:
    """The directory of a snapshot."""
    return str(FileSystems.join(output, "snapshots", snapshot))


def list_runs(output: str) -> dict[str, list[tuple[str, float]]]:
    """Every run directory under `output`, by name, with its files as (path, time of last change).

    A link is none of ours, wherever it leads, and neither is a name that we give to no run: nothing there is read,
    reused or removed.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    root = FileSystems.join(output, "snapshots")
    if is_local(output) and os.path.isdir(root):
        found = {
            entry.name: []
            for entry in os.scandir(root)
            if entry.is_dir(follow_symlinks=False) and is_run_name(entry.name)
        }
    for file in match(FileSystems.join(root, "*", "*")):
        directory, _ = FileSystems.split(file.path)
        name = FileSystems.split(directory.rstrip("/"))[1]
        if not is_run_name(name) or (is_local(output) and name not in found):
            continue
        found.setdefault(name, []).append((file.path, file.last_updated_in_seconds or 0.0))
    return dict(sorted(found.items()))


def is_complete(files: list[tuple[str, float]]) -> bool:
    """Whether the files of a run hold its manifest."""
    return any(FileSystems.split(path)[1] == "manifest.json" for path, _ in files)


def is_alive(output: str, snapshot: str, files: list[tuple[str, float]]) -> bool:
    """Whether the run that writes `snapshot` may still be going on."""
    if not is_local(output):
        marked = any(FileSystems.split(path)[1] == MARKER for path, _ in files)
        return marked and time.time() - max(changed for _, changed in files) < STORE_RUN_AGE
    path = os.path.join(run_path(output, snapshot), "run.lock")
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def start_run(output: str, fingerprint: str, *, after: str = "") -> tuple[str, FileLock | None]:
    """Make a run directory; gives its name and, on a local disk, the lock that keeps it until the run ends.

    Names sort by age: one begins behind that of the snapshot `after`, even where the clock was set back since.
    """
    moment = max(datetime.now(timezone.utc).replace(microsecond=0), _begun(after) + _SECOND)
    for _ in range(ATTEMPTS):
        name = f"{moment:{_TIME}}-{fingerprint[:8]}"
        if not is_local(output):
            if _take(run_path(output, name)):
                return name, None
        else:
            with convert_write_errors(output):
                lock = _make(run_path(output, f".{name}-{os.getpid()}"), run_path(output, name))
            if lock:
                return name, lock
        moment += _SECOND  # another run has that name
    raise SnapshotError(f"{output}: no name up to {name} was to be had for this run; run again")


_TIME, _SECOND = "%Y%m%dT%H%M%SZ", timedelta(seconds=1)


def _begun(name: str) -> datetime:
    """When the run of that name began, as far as the name tells."""
    try:
        return datetime.strptime(name[:16], _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)


def _make(making: str, directory: str) -> FileLock | None:
    """Make `directory` with its lock held, by way of `making`; None where it is there already."""
    os.makedirs(making, exist_ok=True)
    try:
        lock = FileLock(os.path.join(making, "run.lock"), timeout=5)  # held for a moment by a run that looks around
        lock.acquire()
        try:
            os.rename(making, directory)  # appears with its lock held: nobody takes it for a dead run's
            return lock
        except OSError:
            lock.release()
            if not os.path.isdir(directory):
                raise
            return None
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _take(directory: str) -> bool:
    """Whether this run made the marker in `directory`, on a store, and nothing else is there.

    The marker alone would not do: it is gone from a run that has ended, and that run's files are reused, and removed,
    by the next one.
    """
    marker = FileSystems.join(directory, MARKER)
    made: list[bool] = []

    def decide(there: dict[str, object] | None) -> dict[str, object] | None:
        made[:] = [there is None]
        return owner() if there is None else None

    try:
        update_json(marker, decide)
    except SnapshotError:
        return False
    if made != [True]:
        return False
    if all(FileSystems.split(file.path)[1] == MARKER for file in match(FileSystems.join(directory, "*"))):
        return True
    remove([marker])
    return False


def end_run(output: str, snapshot: str) -> None:
    """Take the marker of a run on a store away, so that the next run may take over what it finished, if it did not end."""
    if not is_local(output):
        with suppress(Exception):  # then it counts as alive until its files are old
            FileSystems.delete([FileSystems.join(run_path(output, snapshot), MARKER)])


def remove_spills(output: str, snapshot: str) -> None:
    """Delete what a run on one machine put aside on its way."""
    if is_local(output):
        for path in Path(run_path(output, snapshot)).glob("spill-*.tmp"):
            try:
                path.unlink()
            except OSError as error:  # it is no part of the snapshot, which is whole
                _LOGGER.warning("%s cannot be removed: %s", path, error)


def remove_run(output: str, snapshot: str) -> None:
    """Delete a run directory."""
    remove_below(run_path(output, snapshot))
