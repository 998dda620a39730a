"""EarlierVectors: the part files in which a run looks for known contents, and the canary that its encoder must reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...model.fingerprint import describe_changes
from ...model.head import ModelInfo, Work
from ...model.messages import plural
from ..canary import Canary, canaries_agree
from ..errors import SnapshotError
from ..io.paths import base_name
from ..layout import PART, has_rows, is_copy
from ..snapshots.commit import read_manifest
from ..snapshots.dead_runs import dead_runs
from ..snapshots.history import finished_runs
from ..snapshots.manifest import Lookup, Manifest
from ..snapshots.run_directory import is_complete, list_runs, read_canary
from ..snapshots.snapshot import Snapshot
from .carry_over import CarryOver, files_to_search

LOOKUP_BYTES = 64 << 20  # of earlier hashes that are read in any case to look up new contents

READ_BYTES_PER_SECOND = 100e6  # of earlier hashes, by one worker

MEASURED_RUNS = 5  # whose model time is added up


@dataclass(frozen=True)
class EarlierVectors:
    """The vectors that a run may reuse.

    Attributes:
        reusable: The snapshot with the fingerprint of the run's model, if there is one.
        canary: What the encoder must reproduce before anything is reused or carried over: the canary of `reusable`, or
            else that of unpublished files.
        files: The part files in which contents are looked up.
        lookup: What that reads.
        dead_runs: Runs that ended before they published.
        notes: What users should know.
    """

    reusable: Manifest | None = field(default=None, repr=False)
    canary: Canary | None = field(default=None, repr=False)
    files: Sequence[str] = field(default=(), repr=False)
    lookup: Lookup = field(default_factory=lambda: Lookup(rows=0, bytes=0, left_out=0))
    dead_runs: Sequence[str] = ()
    notes: Sequence[str] = ()


def find_earlier_vectors(
    output: str, current: Snapshot | None, model: ModelInfo, carry_over: CarryOver, *, dedupe: bool
) -> EarlierVectors:
    """Return the vectors that a run may reuse; without `dedupe` it looks for none."""
    reusable, notes = _reusable_snapshot(output, current, model)
    canary = reusable.manifest["canary"] if reusable else None
    if not dedupe:
        return EarlierVectors(reusable.manifest if reusable else None, canary, notes=notes)
    left = _leftovers(output, current.name if current else "", model, canary)
    notes += left.notes
    files, lookup, unpublished = list[str](), Lookup(rows=0, bytes=0, left_out=0), left.files
    if reusable:
        worth = _bytes_worth_reading(output, model.fingerprint, carry_over.new_rows)
        files, lookup, left_out = files_to_search(carry_over, reusable, worth)
        notes += left_out
        known = {file.name for file in reusable.files}
        unpublished = [path for path in unpublished if base_name(path) not in known]
    if unpublished:
        runs = len({path.removesuffix(base_name(path)) for path in unpublished})
        notes.append(
            f"vectors are reused from {plural(len(unpublished), 'finished file')} of {plural(runs, 'run')} other than the "
            f"current snapshot's"
        )
    return EarlierVectors(
        reusable=reusable.manifest if reusable else None,
        canary=left.canary,
        files=[*files, *unpublished],
        lookup=lookup,
        dead_runs=left.dead_runs,
        notes=notes,
    )


def measured_work(output: str, fingerprint: str) -> Work | None:
    """Return the model's work in the newest finished runs of that fingerprint together, or None if none used the model.

    The seconds of a small run are mostly those of the model's first call, so several runs count. If the newest
    MEASURED_RUNS did not use the model, the one before them that did counts.
    """
    names = [name for name in finished_runs(output) if name.endswith(fingerprint[:8])]
    total = Work()
    for number, name in enumerate(reversed(names)):
        if total.units and number >= MEASURED_RUNS:
            break
        try:
            manifest = read_manifest(output, name, reads=("fingerprint", "counts", "seconds"))
        except SnapshotError:  # an estimate must not fail a run
            continue
        if manifest and manifest["fingerprint"] == fingerprint:
            work = Work.of(manifest["counts"]["model"], manifest["seconds"])
            if work.units and work.model_seconds:
                total += work
    return total if total.units else None


def _bytes_worth_reading(output: str, fingerprint: str, contents: int) -> float:
    """Return how many bytes may be read to look up new contents: as many as are read while the model embeds them."""
    measured = measured_work(output, fingerprint)
    if measured is None:
        return float("inf")
    seconds = contents * measured.model_seconds / max(1, measured.items)
    return max(LOOKUP_BYTES, seconds * READ_BYTES_PER_SECOND)


def _reusable_snapshot(output: str, current: Snapshot | None, model: ModelInfo) -> tuple[Snapshot | None, list[str]]:
    """Return the snapshot whose vectors are reused, and notes on it and on the current one.

    It is the current one if that has the model's fingerprint, and else the newest complete one that has it.
    """
    if current and current.manifest["fingerprint"] == model.fingerprint:
        return current, []
    notes = []
    if current:
        changed = describe_changes(model.fingerprint_parts, current.manifest["fingerprint_parts"])
        notes.append(f"the fingerprint changed since {current.name} ({changed}): its vectors are not reused")
    for run, files in reversed(list_runs(output).items()):
        if run.endswith(model.fingerprint[:8]) and is_complete(files):
            try:
                manifest = read_manifest(output, run)
            except SnapshotError as error:  # it is not the current snapshot: this costs model time, nothing else
                notes.append(f"vectors of {run} are not reused: {error}")
                continue
            if manifest and manifest["fingerprint"] == model.fingerprint:
                notes.append(f"vectors of {run}, made with this fingerprint, are reused")
                return Snapshot(output, run, manifest), notes
    return None, notes


class _Leftovers(NamedTuple):
    """What other runs than the current one have left; `canary` is that of the encoder that made the `files`."""

    dead_runs: list[str]
    files: list[str]
    canary: Canary | None
    notes: list[str]


def _leftovers(output: str, current: str, model: ModelInfo, canary: Canary | None) -> _Leftovers:
    """Return what other runs have left.

    The files are of runs of the model's fingerprint that ended too early, or that are complete and newer than the current
    one: they ended just before they became current, or are what a rollback left. All have the canary that is given, or
    else that of the newest of these runs; files of a run that ended before its canary was known are not searched.
    """
    runs = list_runs(output)
    dead, notes = dead_runs(output, runs)
    newer = {run: files for run, files in runs.items() if run > current and is_complete(files)}
    earlier: list[str] = []
    for run, files in sorted({**dead, **newer}.items(), reverse=True):
        names = {base_name(path): path for path, _ in files}
        # Rows of a dead run's copy are also in the snapshot that it was made of.
        parts = [
            path
            for name, path in names.items()
            if name.startswith(PART) and has_rows(name) and not (run in dead and is_copy(name))
        ]
        if not parts or not run.endswith(model.fingerprint[:8]):
            continue
        try:
            made = read_canary(output, run, names.keys())
        except SnapshotError as error:  # as after a rollback from a damaged snapshot
            notes.append(f"finished files of {run} are not reused: {error}")
            continue
        if made and canaries_agree(made, canary, model.fingerprint_parts["dtype"]):
            canary = canary or made
            earlier += parts
    return _Leftovers(list(dead), earlier, canary, notes)
