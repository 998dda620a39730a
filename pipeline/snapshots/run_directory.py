"""Run directories: made under a name that no other run has, marked while they may be in use, and removed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import cast

from filelock import FileLock

from ...model.files import has_locks
from ..canary import Canary
from ..errors import SnapshotError, convert_write_errors
from ..io.filesystem import FileEntry, is_locked, list_directory, remove, remove_below, temporary_name
from ..io.json_file import Json, owner, process, read_json, update_json, write_json
from ..io.paths import base_name, is_local, join
from ..layout import CANARY, CONTENT_SPILL, LOCK, MANIFEST, MARKER, SNAPSHOTS, SPILL
from ..remote.job_service import RemoteJob
from .manifest import RESTORE_REMEDY, is_run_name, manifest_from

ATTEMPTS = 60  # to make a directory under a name that no other run has

NO_LOCKS_NOTE = (
    "the file system of the output has no locks: runs publish under a lock file instead, which counts for ten minutes; let "
    "only one run publish at a time"
)

_TIME, _SECOND = "%Y%m%dT%H%M%SZ", timedelta(seconds=1)

_LOGGER = logging.getLogger(__name__)


def run_path(output: str, snapshot: str) -> str:
    """Return the path of a snapshot's directory."""
    return join(output, SNAPSHOTS, snapshot)


def marker_path(output: str, snapshot: str) -> str:
    """Return the path of the file that marks a run as one that may still be running."""
    return join(run_path(output, snapshot), MARKER)


def list_runs(output: str) -> dict[str, list[tuple[str, float]]]:
    """Return every run directory under `output` by name, oldest first, with its files as (path, time of last change).

    Links and names that no run is given are left out, so that nothing behind them is read, reused or removed.
    """
    root = join(output, SNAPSHOTS)
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
    return any(base_name(path) == MANIFEST for path, _ in files)


def start_run(output: str, fingerprint: str, *, after: str = "", detached: bool = False) -> tuple[str, FileLock | None]:
    """Make a run directory; return its name and, on a local disk, the lock that the run holds until it ends.

    On an object store and on a file system without locks, the directory has a marker instead. On a local disk it has both
    if the run is `detached`: it may outlive this process, with which the lock ends. Names sort by age: the new one comes
    after the snapshot `after`, even if the clock was set back since then.

    Raises:
        SnapshotError: The directory cannot be made.
    """
    moment = max(datetime.now(UTC).replace(microsecond=0), _start_time(after) + _SECOND)
    for _ in range(ATTEMPTS):
        name = f"{moment:{_TIME}}-{fingerprint[:8]}"
        if not is_local(output):
            if _claim_on_store(run_path(output, name), detached):
                return name, None
        else:
            with convert_write_errors(output):
                made, lock = _make_locked(
                    run_path(output, name), temporary_name(run_path(output, f".{name}")), detached
                )
            if made:
                return name, lock
        moment += _SECOND  # another run has this name
    raise SnapshotError(f"{output} has no free name for this run up to {name}: run again")


def record_job(output: str, snapshot: str, job: RemoteJob) -> None:
    """Add to the marker of a run what the next run needs to ask whether its job has ended."""
    try:
        write_json(marker_path(output, snapshot), {**owner(), **asdict(job)})
    except (OSError, RuntimeError) as error:  # the job was submitted; the run counts as one whose job is not known
        _LOGGER.warning("job %s cannot be recorded: %s", job.job, error)


def end_run(output: str, snapshot: str) -> None:
    """Remove the marker of a run, so that the next run may reuse the files of one that failed."""
    with suppress(Exception):  # the run then counts as one that may still be running
        remove([marker_path(output, snapshot)])


def write_canary(directory: str, canary: Canary) -> None:
    """Note in a run's directory which canary its encoder gave."""
    write_json(join(directory, CANARY), canary)


def read_canary(output: str, snapshot: str, names: Collection[str]) -> Canary | None:
    """Return the canary of a run, which has published or not; None if it ended before that was known.

    `names` are the files that were found in its directory. A run that has published since then has only a manifest.

    Raises:
        SnapshotError: The file with the canary is damaged.
    """
    directory = run_path(output, snapshot)
    if MANIFEST not in names:
        found = read_json(join(directory, CANARY)) if CANARY in names else None
        if found is not None or CANARY not in names:
            return cast("Canary | None", found)
    path = join(directory, MANIFEST)
    manifest = read_json(path, RESTORE_REMEDY)
    return None if manifest is None else manifest_from(manifest, path, snapshot, ("canary", "dim"))["canary"]


def remove_spills(output: str, snapshot: str, *, contents: bool = False) -> None:
    """Delete the files of shuffled rows of a run on one machine; with `contents`, those with contents of any run, too.

    A job that may go on needs the latter: its model's step may be started again.
    """
    if not (is_local(output) or contents):
        return
    kinds = (SPILL, CONTENT_SPILL) if contents else SPILL
    try:
        files = [file.path for file in list_directory(run_path(output, snapshot))]
        remove([path for path in files if base_name(path).startswith(kinds)])
    except Exception as error:  # no snapshot needs them, and the directory of a failed run is removed later
        _LOGGER.warning("spill files of %s cannot be removed: %s", snapshot, error)


def remove_run(output: str, snapshot: str) -> None:
    """Delete a run directory."""
    remove_below(run_path(output, snapshot))


def remove_dead_run(output: str, name: str) -> bool:
    """Delete the directory of a run that was found dead; return False, and keep it, if a new run has taken its name.

    Names have whole seconds: if another process has removed the directory, a run that starts at once may get the same.
    """
    directory = run_path(output, name)
    if read_json(join(directory, MANIFEST), RESTORE_REMEDY) is not None:
        return False
    if is_local(output) and is_locked(join(directory, LOCK)):
        return False
    remove_run(output, name)
    return True


def _start_time(name: str) -> datetime:
    """Return when the run of that name started, or the earliest possible time if the name has another form."""
    try:
        return datetime.strptime(name[:16], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _make_locked(directory: str, temporary: str, detached: bool) -> tuple[bool, FileLock | None]:
    """Make `directory` with its lock held, under the name `temporary` first; return (True, the lock).

    On a file system without locks the lock is None. Return (False, None) if `directory` exists.
    """
    os.makedirs(temporary)
    lock = None
    try:
        if has_locks(path := os.path.join(temporary, LOCK)):
            # Another process that lists the runs holds the lock for a moment, to see whether the run is alive.
            lock = FileLock(path, timeout=5)
            lock.acquire()
        try:
            if detached or not lock:
                write_json(os.path.join(temporary, MARKER), _marker(detached))
            os.rename(temporary, directory)  # it appears with its lock held, so it never looks like a dead run's
            return True, lock
        except (OSError, SnapshotError):
            if lock:
                lock.release()
            if not os.path.isdir(directory):
                raise
            return False, None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _marker(detached: bool) -> Json:
    """Return the marker of a run of this process. One that is detached may go on without it."""
    return owner() if detached else {**owner(), **process()}


def _claim_on_store(directory: str, detached: bool) -> bool:
    """Make the marker in `directory` on an object store; return whether this run made it and no other file is present.

    The marker alone does not suffice: a run that ended has none, and the next run reuses and removes its files.
    """
    marker = join(directory, MARKER)
    made: list[bool] = []

    def decide(existing: Json | None) -> Json | None:
        made[:] = [existing is None]
        return _marker(detached) if existing is None else None

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
