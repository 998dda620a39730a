"""`audioclip pairs`: for each row of one snapshot the nearest rows of another one, exactly, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..snapshots.manifest import Manifest
from ..snapshots.snapshot import Snapshot, iter_rows
from ..writers.result_directory import check_new_directory, new_directory, write_rows, write_summary
from .exact_search import open_consistent, weights_notes
from .spaces import OtherSpaceError, compare_releases, released_of
from .top_k import TopK, usable_vectors

BLOCK_ROWS = 8192  # of the first snapshot, for each of which the second one is read once
SUMMARY = "_pairs.json"  # readers of a directory of Parquet files skip what begins with _

_SCHEMA = pa.schema(
    [
        pa.field("id_a", pa.string(), nullable=False),
        pa.field("id_b", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)


@dataclass
class Pairs:
    """The number of pairs, the files that were written, and what users must know."""

    pairs: int
    files: list[str]
    notes: list[str]


def find_pairs(output: str, other: str, target: str, *, top: int = 1) -> Pairs:
    """Write for each row of the current snapshot of `output` the `top` nearest rows of that of `other`, by cosine.

    Args:
        output: The directory of the first snapshots.
        other: That of the second ones, of any head.
        target: A new or empty directory, which gets the pairs as Parquet.
        top: The number of rows of the second snapshot for each row.

    Raises:
        ValueError: The snapshots are of different trainings (OtherSpaceError), or `target` is not new.
        SnapshotError: A snapshot cannot be read.
    """
    target = check_new_directory(target, output, other)
    first, second = open_consistent(output), open_consistent(other)
    warning = compare_spaces(output, first.manifest, other, second.manifest)
    found = Pairs(0, [], ([warning] if warning else []) + weights_notes(first))
    for snapshot in (first, second):
        if not any(file.rows for file in snapshot.files if file.is_part):
            found.notes.append(f"{snapshot.path} has no rows")
    with new_directory(target) as directory:
        found.files = [*write_rows(directory, "pairs", _SCHEMA, _pairs(first, second, top, found))]
        write_summary(
            directory, SUMMARY, {"a": first.name, "b": second.name, "pairs": found.pairs, "files": found.files}
        )
    return found


def compare_spaces(output: str, first: Manifest, other: str, second: Manifest) -> str:
    """Return a warning if it is not known whether two snapshots are of one space. Raise OtherSpaceError if they are not."""
    if first["dim"] != second["dim"]:
        raise OtherSpaceError(
            f"{output} has vectors of {first['dim']} numbers, and {other} of {second['dim']}: embed both with one training"
        )
    weights = [manifest["fingerprint_parts"]["weights"] for manifest in (first, second)]
    if first["head"] == second["head"] and weights[0] == weights[1]:
        return ""
    names = [f"{out} ({manifest['checkpoint']['name']})" for out, manifest in ((output, first), (other, second))]
    return compare_releases(names[0], released_of(first), names[1], released_of(second))


def _blocks(snapshot: Snapshot) -> Iterator[pa.Table]:
    """Yield the ids and vectors of a snapshot, BLOCK_ROWS at a time or a few more."""
    batches, rows = list[pa.RecordBatch](), 0
    for batch in iter_rows(snapshot, ("id", "embedding")):
        batches.append(batch)
        rows += batch.num_rows
        if rows >= BLOCK_ROWS:
            yield pa.Table.from_batches(batches)
            batches, rows = [], 0
    if batches:
        yield pa.Table.from_batches(batches)


def _pairs(first: Snapshot, second: Snapshot, top: int, found: Pairs) -> Iterator[pa.RecordBatch]:
    """Yield the pairs in the order of the first snapshot's rows, and count them."""
    left_out = incomparable = 0
    for block in _blocks(first):
        (batch,) = block.combine_chunks().to_batches()
        usable = usable_vectors(batch)
        left_out += batch.num_rows - len(usable.rows)
        units = usable.numbers.astype(np.float64)
        units /= np.sqrt((units * units).sum(axis=1))[:, None]
        nearest = TopK(units, top)
        for other in iter_rows(second, ("id", "embedding")):
            nearest.add(other)
        incomparable = nearest.incomparable  # the same of each block
        ids = batch.column("id").take(pa.array(usable.rows)).to_pylist()
        rows = [
            {"id_a": row_id, "id_b": hit.id, "rank": rank, "score": hit.score}
            for row_id, hits in zip(ids, nearest.hits(), strict=True)
            for rank, hit in enumerate(hits, 1)
        ]
        found.pairs += len(rows)
        yield pa.RecordBatch.from_pylist(rows, _SCHEMA)
    if left_out or incomparable:
        found.notes.append(
            f"WARNING: {left_out:,} and {incomparable:,} rows are in no pair, because their vectors are zero or not finite: "
            f"audioclip validate names them"
        )
