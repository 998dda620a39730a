"""The nearest rows to some queries, exactly, while batches pass: memory for a batch and for what is kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Queries that are compared with a batch at a time, which bounds the table of scores.
QUERY_BLOCK = 256


# What float64 keeps of a cosine of 1024 numbers: beyond it, cosines that are equal come out as different.
DECIMALS = 12

MARGIN = 1e-10


# How many hits beyond twice `top` may wait to be sorted, so that a large `top` is not sorted with every batch.
SPARE = 16


class Hit(NamedTuple):
    """A row found, and its cosine with the query; `text` is None where the snapshot holds no texts."""

    cosine: float
    id: str
    text: str | None


class TopK:
    """The `top` rows with the highest cosines to each of `queries`, float64 [q, dim] of length 1.

    Rows of equal cosine stand by id, then by text, so that the same rows give the same list wherever they lie. A matrix
    product rounds one way here and another there; so it only picks out candidates, and each of those is computed again
    by a sum whose order depends on the row alone. `incomparable` counts rows whose vector has no direction: NaN,
    infinite or zero.
    """

    def __init__(self, queries: NDArray[np.float64], top: int) -> None:
        self.queries, self.top = queries, top
        self.rows = self.incomparable = 0
        self._held: list[list[Hit]] = [[] for _ in queries]
        self._floors = [-np.inf] * len(queries)  # what is farther than that has no place among the `top`

    def add(self, batch: pa.RecordBatch) -> None:
        """Compare a batch with columns `id`, `embedding` [n, dim] and, where there is one, `text`."""
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        vectors = vectors_of(batch)
        lengths = np.sqrt((vectors * vectors).sum(axis=1))
        with_direction = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
        self.incomparable += batch.num_rows - len(with_direction)
        if not len(with_direction):
            return
        if len(with_direction) < batch.num_rows:
            vectors, lengths = vectors[with_direction], lengths[with_direction]
            batch = batch.take(pa.array(with_direction))
        vectors /= lengths[:, None]
        for start in range(0, len(self.queries), QUERY_BLOCK):
            roughly = self.queries[start : start + QUERY_BLOCK] @ vectors.T  # [block, n]
            for number, cosines in enumerate(roughly, start):
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
        self._held[number] += [Hit(*row) for row in zip(exact, ids, texts, strict=True)]
        if len(self._held[number]) > 2 * self.top + SPARE:
            self._prune(number)

    def _prune(self, number: int) -> None:
        held = sorted(self._held[number], key=_order)[: self.top]
        self._held[number] = held
        if len(held) == self.top:
            self._floors[number] = held[-1].cosine

    def hits(self) -> list[list[Hit]]:
        """What was found for each query, the nearest first."""
        for number in range(len(self._held)):
            self._prune(number)
        return self._held


def _order(hit: Hit) -> tuple[float, str, str]:
    return -hit.cosine, hit.id, hit.text or ""


def vectors_of(batch: pa.RecordBatch) -> NDArray[np.float64]:
    """The column `embedding` as float64 [n, dim], of its own memory."""
    numbers: NDArray[np.floating] = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(batch.num_rows, -1).astype(np.float64)
