"""The rows nearest to some queries, exactly, found batch by batch: memory for one batch and for the hits kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Queries that are compared with a batch at a time. It bounds the matrix of scores.
QUERY_BLOCK = 256

# Decimals of a cosine that float64 keeps in a sum of 1024 numbers. With more, equal cosines would differ.
DECIMALS = 12

# More than a matrix product in float64 differs from the exact cosine.
MARGIN = 1e-10

# Hits beyond twice `top` that may wait to be sorted, so that a large `top` is not sorted with every batch.
SPARE = 16


class Hit(NamedTuple):
    """A row and its cosine with the query; `text` is None if the snapshot has no texts."""

    cosine: float
    id: str
    text: str | None


class TopK:
    """The `top` rows with the highest cosine to each of `queries`, float64 [q, dim] of length 1.

    Rows of equal cosine are in the order of their ids, then of their texts, so that the same rows give the same list
    from any files. A matrix product rounds differently with the size of the batch, so it only selects candidates; the
    cosine of each candidate is computed again by a sum whose order depends on the row alone.

    Attributes:
        queries: As given.
        top: As given.
        rows: Rows that were compared.
        incomparable: Rows whose vector is zero, infinite or NaN.
    """

    def __init__(self, queries: NDArray[np.float64], top: int) -> None:
        self.queries, self.top = queries, top
        self.rows = self.incomparable = 0
        self._kept: list[list[Hit]] = [[] for _ in queries]
        self._floors = [-np.inf] * len(queries)  # the cosine of the last of the `top`, once there are so many

    def add(self, batch: pa.RecordBatch) -> None:
        """Compare the rows of a batch with columns `id`, `embedding` [n, dim] and, optionally, `text`."""
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        vectors = vectors_of(batch)
        lengths = np.sqrt((vectors * vectors).sum(axis=1))
        usable = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
        self.incomparable += batch.num_rows - len(usable)
        if not len(usable):
            return
        if len(usable) < batch.num_rows:
            vectors, lengths = vectors[usable], lengths[usable]
            batch = batch.take(pa.array(usable))
        vectors /= lengths[:, None]
        for start in range(0, len(self.queries), QUERY_BLOCK):
            cosines_of_block = self.queries[start : start + QUERY_BLOCK] @ vectors.T  # [block, n]
            for number, cosines in enumerate(cosines_of_block, start):
                self._keep(number, cosines, vectors, batch)

    def _keep(
        self, number: int, cosines: NDArray[np.float64], vectors: NDArray[np.float64], batch: pa.RecordBatch
    ) -> None:
        floor = self._floors[number]
        if len(cosines) > self.top:
            floor = max(floor, np.partition(cosines, -self.top)[-self.top])
        places = np.flatnonzero(cosines >= floor - MARGIN)
        if not len(places):
            return
        exact = np.round((vectors[places] * self.queries[number]).sum(axis=1), DECIMALS).tolist()
        rows = pa.array(places)
        ids = batch.column("id").take(rows).to_pylist()
        texts = batch.column("text").take(rows).to_pylist() if "text" in batch.schema.names else [None] * len(ids)
        self._kept[number] += [Hit(*row) for row in zip(exact, ids, texts, strict=True)]
        if len(self._kept[number]) > 2 * self.top + SPARE:
            self._prune(number)

    def _prune(self, number: int) -> None:
        kept = sorted(self._kept[number], key=_order)[: self.top]
        self._kept[number] = kept
        if len(kept) == self.top:
            self._floors[number] = kept[-1].cosine

    def hits(self) -> list[list[Hit]]:
        """Return the hits of each query, nearest first."""
        for number in range(len(self._kept)):
            self._prune(number)
        return self._kept


def _order(hit: Hit) -> tuple[float, str, str]:
    return -hit.cosine, hit.id, hit.text or ""


def vectors_of(batch: pa.RecordBatch) -> NDArray[np.float64]:
    """Return a copy of the column `embedding` as float64 [n, dim]."""
    numbers: NDArray[np.floating] = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(batch.num_rows, -1).astype(np.float64)
