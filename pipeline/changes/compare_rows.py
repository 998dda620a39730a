"""Rows of two snapshots matched by id, in buckets on the disk, so that memory does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..dedup.buckets import bucket_of, sort_by_bucket
from ..errors import SnapshotError
from ..schemas import CONTENT_HASH, ID

BUCKET_ROWS, MAX_BITS = 1 << 20, 12
GATHER_BYTES = 8 << 20  # of rows that are split in one go, so that record batches are not tiny


class SplitById:
    """The rows of one snapshot, split by id into 2**bits buckets in a file: `add` them in a `with` block, then iterate."""

    def __init__(self, path: Path, bits: int) -> None:
        self.path, self.bits = path, bits
        self._batches: list[list[int]] = [[] for _ in range(1 << bits)]  # numbers of each bucket's batches in the file
        self._gathered: list[pa.RecordBatch] = []
        self._bytes = self._written = 0
        self._schema = pa.schema([ID, CONTENT_HASH, ("place", pa.int64())])
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._stack = ExitStack()

    def __enter__(self) -> SplitById:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Write the rest, and close the file."""
        with self._stack:
            if kind is None:
                self._write()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows with a column `id`."""
        self._gathered.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= GATHER_BYTES:
            self._write()

    def _write(self) -> None:
        """Write what is gathered, sorted by bucket."""
        if not self._gathered:
            return
        rows = pa.Table.from_batches(self._gathered).combine_chunks()
        self._gathered, self._bytes = [], 0
        if self._writer is None:
            self._schema = rows.schema
            file = self._stack.enter_context(pa.OSFile(str(self.path), "wb"))
            self._writer = self._stack.enter_context(pa.ipc.new_file(file, rows.schema))
        buckets = np.concatenate([bucket_of(ids, self.bits) for ids in rows["id"].chunks])
        order, runs = sort_by_bucket(buckets)
        rows = rows.take(pa.array(order))
        for bucket, start, end in runs:
            for batch in rows.slice(start, end - start).to_batches():
                self._writer.write_batch(batch)
                self._batches[bucket].append(self._written)
                self._written += 1

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the rows of each bucket."""
        if self._writer is None:
            yield from (self._schema.empty_table() for _ in self._batches)
            return
        with pa.memory_map(str(self.path)) as file, pa.ipc.open_file(file) as reader:
            for numbers in self._batches:
                yield pa.Table.from_batches(map(reader.get_batch, numbers), self._schema).combine_chunks()


def bits_for(rows: int) -> int:
    """Return how many bits of an id's checksum make buckets of about BUCKET_ROWS of `rows` rows."""
    return min(MAX_BITS, max(0, (rows - 1).bit_length() - BUCKET_ROWS.bit_length() + 1))


def require_unique(snapshot: str, ids: pa.ChunkedArray, others: pa.ChunkedArray) -> None:
    """Raise SnapshotError if an id of a snapshot occurs twice, or is among the `others`, which are in other files of it."""
    again = pc.unique(others.filter(pc.is_in(others, value_set=ids)))
    counted = pc.value_counts(pa.chunked_array([*ids.chunks, again]))
    repeated = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    if len(repeated):
        raise SnapshotError(
            f"ids occur more than once in {snapshot}, among them {', '.join(map(repr, repeated[:3].to_pylist()))}: changes "
            f"are found by id; embed with ids that are unique (--unique_ids checks it)"
        )


def match_rows(before: pa.Table, now: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_], pa.Array]:
    """Compare the rows of a bucket by id.

    Returns which rows of `now` [n] are added and which are changed, and the ids of the removed ones. A row is changed if any
    column but `id` and `place` differs.
    """
    where = pc.index_in(now["id"], value_set=before["id"]).combine_chunks()
    added = where.is_null().to_numpy(zero_copy_only=False)
    changed = np.zeros(len(now), np.bool_)
    known = pa.array(~added)
    old, new = before.take(where.drop_null()), now.filter(known)
    names = [name for name in now.column_names if name not in ("id", "place")]
    changed[~added] = np.logical_or.reduce([_differs(old[name], new[name]) for name in names])
    removed = before["id"].filter(pc.invert(pc.is_in(before["id"], value_set=now["id"])))
    return added, changed, removed.combine_chunks()


def _differs(old: pa.ChunkedArray, new: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return which values [n] are not the same; two NaN are."""
    if isinstance(old.type, pa.BaseExtensionType):  # as a UUID; Arrow compares neither these nor half floats
        return _differs(old.cast(old.type.storage_type), new.cast(old.type.storage_type))
    if pa.types.is_float16(old.type):
        return _differs(old.cast(pa.float32()), new.cast(pa.float32()))
    if pa.types.is_nested(old.type):
        pairs = zip(old.to_pylist(), new.to_pylist(), strict=True)
        return np.array([a != b and repr(a) != repr(b) for a, b in pairs], np.bool_)  # NaN != NaN
    same = pc.fill_null(pc.equal(old, new), False)
    same = pc.or_(same, pc.and_(pc.is_null(old, nan_is_null=True), pc.is_null(new, nan_is_null=True)))
    differs: NDArray[np.bool_] = np.logical_not(same.to_numpy())
    return differs
