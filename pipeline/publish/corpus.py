"""Corpus: all shards, files and segments of the snapshot that a run is about to publish, and whether their rows add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import SnapshotError
from ..io.file_io import FileIO
from ..prepare.job import Job
from ..schemas import reasons_of
from ..snapshots.listing import LISTED_SCHEMA, read_inputs
from ..snapshots.manifest import FileInfo, Provenance
from ..snapshots.segments import RowCounts, Segment
from .run_totals import RunTotals, name_of

_REPORT_IT = "run again, and report this if it happens twice"


@dataclass(frozen=True)
class Corpus:
    """What a snapshot has: its shards, of LISTED_SCHEMA, its files by name, and its segments."""

    shards: pa.Table
    files: list[FileInfo]
    segments: list[Segment]

    @property
    def damaged(self) -> list[str]:
        """The shards that were not read to their end, with the reason."""
        found = self.shards.filter(pc.is_valid(self.shards["damaged"]))
        pairs = zip(found["name"].to_pylist(), found["damaged"].to_pylist(), strict=True)
        return sorted(f"{name} ({reason})" for name, reason in pairs)


def make_corpus(job: Job, snapshot: str, directory: str, totals: RunTotals, file_io: FileIO) -> Corpus:
    """Return the corpus of a run, of its listings in `directory` and the reports of its steps.

    Raises:
        SnapshotError: Rows are missing, or are there twice.
    """
    shards = _shards(job, read_inputs(directory, file_io), totals)
    info = job.model.info
    this_run = Provenance(snapshot, info.name, info.sha256, version("audioclip-beam"))
    new = len(job.carry_over.written)
    files = [replace(file, segment=new, made_by=this_run) for file in totals.files]
    files += [file if file.made_by.run else replace(file, made_by=this_run) for file in totals.kept]
    segments = list(_segments(job, shards, files))
    _check(job, totals)
    _check_segments(shards, files)
    return Corpus(shards, sorted(files, key=name_of), segments)


def _shards(job: Job, inputs: pa.Table, totals: RunTotals) -> pa.Table:
    """Return all shards with the rows of those that were read. Raises SnapshotError if not exactly these were."""
    rows, without, whole = totals.by_shard(len(inputs))
    read = inputs["rows"].is_null().to_numpy()
    if not np.array_equal(whole, read) or rows.sum() != totals.read:
        raise SnapshotError(
            f"rows do not add up: read {totals.read} from {int((whole & read).sum())} of {job.listed.read} shards; "
            f"{_REPORT_IT}"
        )
    reasons = np.full(len(inputs), None, object)
    for number, (_, reason) in totals.damage.items():
        reasons[number] = reason
    columns = {name: inputs[name] for name in inputs.column_names}
    found = {"rows": pa.array(rows), "without_texts": pa.array(without), "damaged": pa.array(reasons, pa.string())}
    columns |= {name: pc.if_else(pa.array(read), values, inputs[name]) for name, values in found.items()}
    return pa.table(columns).cast(LISTED_SCHEMA)


def _check(job: Job, totals: RunTotals) -> None:
    """Raise SnapshotError unless every row that was read was written once, and every row of the files that are kept, too."""
    stats, listed = totals.stats, job.listed
    written = sum(file.rows for file in totals.files) - totals.copied
    if not totals.read == stats.vectors + stats.rejected == written:
        raise SnapshotError(
            f"rows do not add up: read {totals.read}, embedded {stats.embedded}, reused {stats.reused}, rejected "
            f"{stats.rejected}, written {written}; {_REPORT_IT}"
        )
    kept = sum(file.rows for file in totals.kept)
    dropped = totals.dropped + listed.merged_rows - totals.copied
    if (totals.kept_groups, kept + totals.dropped, dropped) != (listed.groups, listed.group_rows, listed.dropped_rows):
        raise SnapshotError(
            f"rows do not add up: of {listed.groups} files of the previous snapshot with {listed.group_rows} rows, "
            f"{totals.kept_groups} with {kept + totals.dropped} were carried over, and {dropped} rows were dropped instead "
            f"of {listed.dropped_rows}; {_REPORT_IT}"
        )


def _check_segments(shards: pa.Table, files: list[FileInfo]) -> None:
    """Raise SnapshotError unless the files of each segment have as many rows as its shards."""
    of_shards = dict(enumerate(_sums(shards, "rows").tolist()))
    of_files = Counter[int]()
    for file in files:
        of_files[file.segment] += file.rows
        if not file.is_part and sum(file.rejected_by_reason.values()) != file.rows:
            raise SnapshotError(
                f"rows do not add up: {file.name} has {file.rows} rows, and {sum(file.rejected_by_reason.values())} with "
                f"a reason; {_REPORT_IT}"
            )
    for number in sorted({*of_shards, *of_files}):
        if of_shards.get(number, 0) != of_files[number]:
            raise SnapshotError(
                f"rows do not add up: the shards of segment {number} have {of_shards.get(number, 0)} rows, and its files "
                f"{of_files[number]}; {_REPORT_IT}"
            )


def _sums(shards: pa.Table, column: str) -> NDArray[np.int64]:
    """Return the sum of a column for each segment, int64 [segments]."""
    values = pc.fill_null(shards[column], 0).to_numpy()
    return np.bincount(shards["segment"].to_numpy(), values).astype(np.int64)


def _segments(job: Job, shards: pa.Table, files: list[FileInfo]) -> Iterator[Segment]:
    """Yield the segments of a snapshot."""
    numbers = np.bincount(shards["segment"].to_numpy())
    size, without = _sums(shards, "bytes"), _sums(shards, "without_texts")
    damaged = np.bincount(shards["segment"].to_numpy(), shards["damaged"].is_valid().to_numpy())
    by_segment: dict[int, list[FileInfo]] = {}
    for file in files:
        by_segment.setdefault(file.segment, []).append(file)
    written = dict(enumerate(job.carry_over.written))
    for number, of_segment in enumerate(numbers.tolist()):
        rows = _row_counts(job, by_segment.get(number, []), int(without[number]))
        yield {
            "shards": of_segment,
            "bytes": int(size[number]),
            "damaged": int(damaged[number]),
            "written": written.get(number, rows["read"]),
            "rows": rows,
        }


def _row_counts(job: Job, files: list[FileInfo], without_texts: int) -> RowCounts:
    """Return the counts of the rows of files, with the rejected ones in the order of the head's reasons."""
    vectors, rejected = (sum(file.rows for file in files if file.is_part == is_part) for is_part in (True, False))
    reasons, contents = Counter[str](), Counter[str]()
    for file in files:
        reasons.update(file.rejected_by_reason)
        contents.update(file.contents)
    return {
        "read": vectors + rejected,
        "vectors": vectors,
        "rejected": rejected,
        "truncated": sum(file.truncated for file in files),
        "without_texts": without_texts,
        "rejected_by_reason": {reason: reasons[reason] for reason in reasons_of(job.head) if reason in reasons},
        "contents": dict(contents),
    }
