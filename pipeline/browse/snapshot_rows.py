"""SnapshotRows: the rows of a snapshot in memory, with their vectors, searched exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..schemas import CONTENT_HASH, EMBEDDING
from ..search.exact_search import open_consistent
from ..search.queries import QueryError
from ..search.top_k import Hit, TopK, Vectors, usable_vectors
from ..snapshots.snapshot import Snapshot, iter_rows

BLOCK_ROWS = 1 << 16  # 256 MiB of 1,024-vectors, for which one product of matrices is made


class _Block(NamedTuple):
    """Rows that follow each other: their columns without the vectors, and the vectors, float32."""

    columns: pa.RecordBatch
    vectors: Vectors


@dataclass(frozen=True)
class SnapshotRows:
    """All rows of a snapshot, as they were when it was read.

    Attributes:
        snapshot: The snapshot.
        blocks: The rows; all but the last block have BLOCK_ROWS.
        kept: The names of the kept fields.
    """

    snapshot: Snapshot
    blocks: tuple[_Block, ...]
    kept: tuple[str, ...]

    @classmethod
    def read(cls, output: str) -> SnapshotRows:
        """Read the current snapshot of `output`: 4 bytes per number of a vector, and what the other columns take.

        Raises SnapshotError if it cannot be read.
        """
        snapshot = open_consistent(output)
        blocks, kept = list[_Block](), tuple[str, ...]()
        for batch in _blocks(snapshot):
            names = batch.schema.names
            kept = tuple(names[names.index(EMBEDDING) + 1 :])
            columns = batch.select([name for name in names if name not in (EMBEDDING, CONTENT_HASH.name)])
            blocks.append(_Block(columns, usable_vectors(batch)))
        return cls(snapshot, tuple(blocks), kept)

    def __len__(self) -> int:
        return sum(block.columns.num_rows for block in self.blocks)

    @property
    def unusable(self) -> int:
        """How many rows cannot be found, because their vectors are zero, infinite or NaN."""
        return len(self) - sum(len(block.vectors.rows) for block in self.blocks)

    def nearest(self, query: NDArray[np.float64], top: int) -> list[Hit]:
        """Return the `top` rows with the highest cosine to `query` [dim], of length 1, as `search` does."""
        nearest = TopK(query[None], top)
        for block in self.blocks:
            nearest.add_vectors(block.vectors, block.columns)
        return nearest.hits()[0]

    def row(self, number: int) -> dict[str, Any]:
        """Return the columns of a row, but its vector, hash and kept fields. Raise IndexError if there is no such row."""
        block, place = self._place(number)
        names = [name for name in block.columns.schema.names if name not in self.kept]
        row: dict[str, Any] = block.columns.select(names).slice(place, 1).to_pylist()[0]
        return row

    def kept_values(self, number: int) -> Iterator[tuple[str, str]]:
        """Yield name and value of the kept fields of a row that have one. Raise IndexError if there is no such row."""
        block, place = self._place(number)
        for name in self.kept:
            value = block.columns.column(name).slice(place, 1)
            if value.null_count == 0:
                yield name, _spell(value)

    def vector(self, number: int) -> NDArray[np.float32]:
        """Return the vector [dim] of a row, or one of its direction.

        Raises:
            IndexError: There is no such row.
            QueryError: The vector is zero, infinite or NaN.
        """
        block, place = self._place(number)
        vectors = block.vectors
        at = int(np.searchsorted(vectors.rows, place))
        if at == len(vectors.rows) or vectors.rows[at] != place:
            raise QueryError(f"row {number} has a vector that is zero or not finite: no row is near to it")
        found: NDArray[np.float32] = vectors.numbers[at]
        return found

    def _place(self, number: int) -> tuple[_Block, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"{self.snapshot.path} has no row {number}")
        return self.blocks[number // BLOCK_ROWS], number % BLOCK_ROWS


def _spell(value: pa.Array) -> str:
    """Return the only value of an array as a string. Not every value is an object of Python: dates after 9999 are not."""
    with suppress(pa.ArrowException):  # of lists, structs, bytes that are not UTF-8 and unknown time zones
        return str(value.cast(pa.string())[0])
    try:
        found = value[0].as_py()
    except Exception:  # of many kinds, some of them only if pandas is missing
        return f"a value of the type {value.type}"
    return json.dumps(found, default=str, ensure_ascii=False) if isinstance(found, dict | list) else str(found)


def _blocks(snapshot: Snapshot) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches of BLOCK_ROWS."""
    waiting, rows = list[pa.RecordBatch](), 0
    for batch in iter_rows(snapshot):
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= BLOCK_ROWS:
            last = waiting[-1]
            beyond = rows - BLOCK_ROWS
            waiting[-1] = last.slice(0, last.num_rows - beyond)
            yield _one_batch(waiting)
            waiting, rows = [last.slice(last.num_rows - beyond)] if beyond else [], beyond
    if rows:
        yield _one_batch(waiting)


def _one_batch(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return batch
