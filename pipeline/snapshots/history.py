"""Snapshots over time: list them, go back to an earlier one, remove old ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ...model.messages import plural
from ...model.release import UNTRAINED
from ..errors import SnapshotError
from ..io.paths import given_path
from .commit import (
    OF_AN_ENDED_RUN,
    missing_files,
    no_snapshot,
    point_to,
    read_manifest,
    remove_strays,
    require_current,
    require_manifest,
    unpublish,
)
from .dead_runs import dead_runs
from .listing import read_file_list, read_shard_list
from .manifest import Manifest
from .run_directory import is_complete, list_runs, remove_dead_run, remove_run, run_path

_COLUMNS = ("rows", "carried", "embedded", "reused", "rejected")

_MAX_NAMED = 5  # snapshots in an error

_LOGGER = logging.getLogger(__name__)


def current_path(output: str) -> str:
    """Return the path of the current snapshot's directory; raise SnapshotError if it does not exist."""
    output = given_path(output)
    return run_path(output, require_current(output))


@dataclass(frozen=True)
class LogEntry:
    """A finished snapshot, as `log` lists it.

    Attributes:
        snapshot: Its name.
        head: The head that it was embedded with.
        is_current: Whether it is the current one.
        created: When its run started, UTC.
        rows: All its rows: those carried over and those that its run read.
        carried: Rows carried over.
        embedded: Rows whose vector its run made.
        reused: Rows whose vector its run took from an earlier file.
        rejected: Rows that its run rejected.
        checkpoint: The name of the checkpoint.
        weights: "trained" or "untrained".
    """

    snapshot: str
    head: str
    is_current: bool
    created: str
    rows: int
    carried: int
    embedded: int
    reused: int
    rejected: int
    checkpoint: str
    weights: str

    def as_line(self) -> str:
        """Return the entry as a line under LOG_HEADER."""
        numbers = " ".join(f"{getattr(self, name):>10}" for name in _COLUMNS)
        weights = " (untrained)" if self.weights == UNTRAINED != self.checkpoint else ""
        return f"{'*' if self.is_current else ' '} {self.snapshot:<26} {numbers}  {self.checkpoint}{weights}"


LOG_HEADER = f"  {'snapshot':<26} {' '.join(f'{name:>10}' for name in _COLUMNS)}  checkpoint"


def log(output: str) -> list[LogEntry]:
    """Return the finished snapshots, oldest first.

    A snapshot whose manifest is damaged is left out, with a warning.

    Raises:
        SnapshotError: `output` has no current snapshot, or its manifest is damaged.
    """
    output = given_path(output)
    current, entries = require_current(output), list[LogEntry]()
    for name in finished_runs(output):
        try:
            manifest = read_manifest(
                output, name, reads=("head", "created", "counts", "totals", "weights", "checkpoint")
            )
        except SnapshotError as error:
            if name == current:
                raise
            _LOGGER.warning("%s is not listed: %s", name, error)
            continue
        if manifest is None:  # removed meanwhile
            continue
        counts, totals = manifest["counts"], manifest["totals"]
        entries.append(
            LogEntry(
                snapshot=name,
                head=manifest["head"],
                is_current=name == current,
                created=manifest["created"],
                rows=totals["read"],
                carried=totals["read"] - counts["read"],
                embedded=counts["embedded"],
                reused=counts["reused"],
                rejected=counts["rejected"],
                checkpoint=manifest["checkpoint"]["name"],
                weights=manifest["weights"],
            )
        )
    return entries


def rollback(output: str, snapshot: str | None = None) -> str:
    """Make `snapshot` the current one, by default the one before the current; return the path of its directory.

    Raises:
        SnapshotError: The snapshot does not exist, a file of it is missing, or its manifest is not valid.
    """
    output = given_path(output)
    current, finished = require_current(output), finished_runs(output)
    if snapshot is None:
        # The snapshot that the current one followed. Those between the two by name were rolled back.
        followed = _previous_of(output, current, finished) or current
        earlier = [name for name in finished if name < current and name <= followed]
        if not earlier:
            raise SnapshotError(
                f"{output} has no snapshot before {current}: audioclip log {output} lists the finished ones"
            )
        snapshot = earlier[-1]
    if snapshot not in finished:
        raise no_snapshot(output, snapshot)
    _require_usable(output, snapshot)
    point_to(output, snapshot, expected=current)
    return run_path(output, snapshot)


def _previous_of(output: str, current: str, finished: Sequence[str]) -> str | None:
    """Return the snapshot that the current one followed; None if it is the first one, or its manifest is missing.

    Raises SnapshotError if the manifest is damaged: the message names the `finished` snapshots.
    """
    try:
        manifest = read_manifest(output, current, reads=("previous",))
    except SnapshotError as error:
        others = [name for name in reversed(finished) if name != current]
        if not others:
            raise
        raise SnapshotError(
            f"{error}; as it does not say which snapshot came before, name one: audioclip rollback {output} NAME, of "
            f"{', '.join(others[:_MAX_NAMED])}"
        ) from error
    return manifest["previous"] if manifest else None


def _require_usable(output: str, snapshot: str) -> None:
    manifest = require_manifest(output, snapshot)
    read_shard_list(output, manifest)  # the next run needs it
    missing = missing_files(run_path(output, snapshot), read_file_list(output, manifest))
    if missing:
        raise SnapshotError(
            f"{snapshot} lacks {len(missing):,} of its files, or they have another size, among them {missing[0]}: restore "
            f"them from a backup, or name another snapshot"
        )


def gc(output: str, keep: int, *, dry_run: bool = False) -> list[str]:
    """Remove all but `keep` snapshots, and the directories of dead runs; return their names.

    Kept are the current snapshot, the one that it followed, the one before that, and so on, then the newest others. The
    newest is always kept: a run may be about to make it the current one. So are the directories of runs that may still be
    running; they are named in warnings, unless they are on this machine. What a kept snapshot does not name, as a worker
    that was lost may have written it after publishing, is removed, too.

    Args:
        output: The directory of the snapshots.
        keep: How many snapshots are kept.
        dry_run: Whether they are only named, and nothing is removed.

    Raises:
        ValueError: `keep` is below 1.
        SnapshotError: `output` has no current snapshot, or one of another format; or a directory cannot be removed, after
            all others have been.
    """
    if keep < 1:
        raise ValueError(f"--keep {keep} would remove the current snapshot: give at least 1")
    output = given_path(output)
    current = require_current(output)
    require_manifest(output, current, reads=())  # a directory of another format may follow other rules
    runs = list_runs(output)
    finished = [name for name, files in runs.items() if is_complete(files)]
    kept = {*_snapshots_to_keep(output, current, finished, keep), *finished[-1:]}
    dead, notes = dead_runs(output, runs)
    for note in notes:
        _LOGGER.warning(note)
    removed, failed = list[str](), list[str]()
    for name in runs:
        if name in kept or (name not in finished and name not in dead):
            continue
        if not dry_run:
            try:
                if not (_remove_snapshot if name in finished else remove_dead_run)(output, name):
                    continue
            except OSError as error:
                failed.append(f"{run_path(output, name)} ({error.strerror or error})")
                continue
        removed.append(name)
    for name in () if dry_run else sorted(kept.intersection(finished)):
        try:
            remove_late_files(output, require_manifest(output, name))
        except Exception as error:  # as of another format, or damaged
            _LOGGER.warning("what %s does not name cannot be removed: %s", name, error)
    if failed:
        raise SnapshotError(
            f"{plural(len(failed), 'directory', 'directories')} cannot be removed, for instance {failed[0]}, and "
            f"{len(removed)} could: give write permission, then run gc again"
        )
    return removed


def _remove_snapshot(output: str, name: str) -> bool:
    """Delete the directory of a finished snapshot; return False, and keep it, if a rollback has made it the current one."""
    # The manifest goes first: a directory that is half removed is then a dead run, never half a snapshot.
    if not unpublish(output, name):
        return False
    remove_run(output, name)
    return True


def remove_late_files(output: str, manifest: Manifest) -> None:
    """Delete the files of rows in an ended run's directory that its snapshot does not name: readers would read them, too.

    The same goes for copies of contents, which the run's launcher could not remove.
    """
    named = {
        manifest["files"]["name"],
        manifest["shards"]["name"],
        *(file.name for file in read_file_list(output, manifest)),
    }
    remove_strays(run_path(output, manifest["snapshot"]), named, OF_AN_ENDED_RUN)


def _snapshots_to_keep(output: str, current: str, finished: Sequence[str], keep: int) -> list[str]:
    """Return the names of `keep` snapshots: first those that lead to the current one, then the newest others."""
    kept = [current]
    while len(kept) < keep:
        try:
            manifest = read_manifest(output, kept[-1], reads=("previous",))
        except SnapshotError:  # a damaged manifest ends the chain, and must not keep old snapshots from being removed
            break
        previous = manifest["previous"] if manifest else None
        if previous is None or previous not in finished or previous in kept:
            break
        kept.append(previous)
    others = [name for name in reversed(finished) if name not in kept]
    return kept + others[: keep - len(kept)]


def finished_runs(output: str) -> list[str]:
    """Return the names of the finished snapshots, oldest first."""
    return [name for name, files in list_runs(output).items() if is_complete(files)]
