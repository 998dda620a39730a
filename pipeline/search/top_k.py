"""The rows nearest to some queries, exactly, found batch by batch: memory for one batch and for the hits kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...model.media import media_fragment

# Queries that are compared with a batch at a time. It bounds the matrix of scores.
QUERY_BLOCK = 256

# Decimals of a cosine that float64 keeps in a sum of 1024 numbers. With more, equal cosines would differ.
DECIMALS = 12

# Squared lengths that float32 computes without overflow and without loss.
SMALLEST, LARGEST = 1e-20, 1e30

# Rows whose score is computed in float64 at a time: 8 MiB of 1024-vectors.
CANDIDATES = 1024


class Hit(NamedTuple):
    """A row and its score; what its snapshot does not have is None.

    Attributes:
        score: The cosine with the query, or what was asked for in its place.
        id: The id.
        text: The text.
        file: The path or URI of the file of a picture or sound.
        start: The first second of the row in the file.
        end: The last one.
        duration: The seconds of the whole file.
        row: The number of the row among all that were compared, from 0.
    """

    score: float
    id: str
    text: str | None = None
    file: str | None = None
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    row: int = -1

    @property
    def place(self) -> str:
        """The text, or the file, with a media fragment if the row is a part of it."""
        if self.file is None:
            return self.text or ""
        if self.start is None or self.end is None or (self.start == 0 and self.end == self.duration):
            return self.file
        return f"{self.file}{media_fragment(self.start, self.end)}"


COLUMNS = ("id", "text", "file", "start", "end", "duration")


class Vectors(NamedTuple):
    """The usable vectors of a batch.

    Attributes:
        rows: Their places in the batch.
        numbers: float32 [n, dim]; a vector that float32 cannot multiply has length 1 here.
        lengths: float64 [n], of these numbers.
        factors: float64 [n], what they were divided by, nearly always 1.
    """

    rows: NDArray[np.intp]
    numbers: NDArray[np.float32]
    lengths: NDArray[np.float64]
    factors: NDArray[np.float64]


def vectors_of(batch: pa.RecordBatch) -> NDArray[np.float64]:
    """Return a copy of the column `embedding` as float64 [n, dim]."""
    numbers: NDArray[np.floating] = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(batch.num_rows, -1).astype(np.float64)


def usable_vectors(batch: pa.RecordBatch) -> Vectors:
    """Return the vectors of the column `embedding` [n, dim] that are neither zero nor infinite nor NaN."""
    flat: NDArray[np.floating] = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    stored = flat.reshape(batch.num_rows, batch.column("embedding").type.list_size)
    numbers = stored.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", numbers, numbers)
    lengths, factors = np.sqrt(squares.astype(np.float64)), np.ones(len(numbers))
    rows = np.arange(len(numbers))
    unusual = np.flatnonzero(~((squares > SMALLEST) & (squares < LARGEST)))
    if len(unusual):
        wide = stored[unusual].astype(np.float64)
        factors[unusual] = np.sqrt((wide * wide).sum(axis=1))
        usable = np.isfinite(factors) & (factors > 0)
        numbers, kept = numbers.copy(), usable[unusual]
        numbers[unusual[kept]] = wide[kept] / factors[unusual[kept], None]
        lengths[unusual] = 1.0
        rows = np.flatnonzero(usable)
        numbers, lengths, factors = numbers[rows], lengths[rows], factors[rows]
    return Vectors(rows, numbers, lengths, factors)


class TopK:
    """The `top` rows with the highest score to each of `queries`, float64 [q, dim] of length 1.

    Rows of equal score are in the order of their ids, then of their texts or files, so that the same rows give the same
    list from any files. A matrix product in float32 only selects candidates, with a margin above its error; the score of
    each candidate is computed again in float64, by a sum whose order depends on the row alone.

    Attributes:
        queries: As given.
        top: As given.
        by_length: Whether the score is the product with the vector as it is stored, and not with its direction.
        rows: Rows that were compared.
        incomparable: Rows whose vector is zero, infinite or NaN.
    """

    def __init__(self, queries: NDArray[np.float64], top: int, *, by_length: bool = False) -> None:
        self.queries, self.top, self.by_length = queries, top, by_length
        self.rows = self.incomparable = 0
        self._narrow = queries.astype(np.float32)
        # Twice what rounding to float32 can change of the product of two vectors of length 1 and of a length.
        self._margin = 2 * (2 * queries.shape[1] + 16) * 2.0**-24
        self._kept: list[list[Hit]] = [[] for _ in queries]
        self._floors = np.full(len(queries), -np.inf)  # the score of the last of the `top`, once there are so many

    def add(self, batch: pa.RecordBatch) -> None:
        """Compare the rows of a batch with the columns `id`, `embedding` [n, dim] and those of COLUMNS that it has."""
        self.add_vectors(usable_vectors(batch), batch)

    def add_vectors(self, vectors: Vectors, batch: pa.RecordBatch) -> None:
        """Compare the rows of a batch as `add` does, by vectors that usable_vectors has returned for it."""
        first_row = self.rows
        self.rows += batch.num_rows
        self.incomparable += batch.num_rows - len(vectors.rows)
        if not len(vectors.rows):
            return
        if self.by_length:
            scales, margin = vectors.factors, self._margin * float((vectors.lengths * vectors.factors).max())
        else:
            scales, margin = 1 / vectors.lengths, self._margin
        scales = scales.astype(np.float32)
        for start in range(0, len(self.queries), QUERY_BLOCK):
            scores = self._narrow[start : start + QUERY_BLOCK] @ vectors.numbers.T  # [block, n]
            scores *= scales
            floors = self._floors[start : start + QUERY_BLOCK] - margin
            found = np.flatnonzero(scores.max(axis=1) >= floors)
            if not len(found):
                continue
            scores, floors = scores[found], floors[found]
            if len(vectors.rows) > self.top:
                floors = np.maximum(floors, np.partition(scores, -self.top, axis=1)[:, -self.top] - margin)
            numbers, places = np.nonzero(scores >= floors[:, None])
            for first in range(0, len(places), CANDIDATES):
                part = slice(first, first + CANDIDATES)
                self._keep(start + found[numbers[part]], places[part], vectors, batch, first_row)

    def _keep(
        self,
        numbers: NDArray[np.intp],
        places: NDArray[np.intp],
        vectors: Vectors,
        batch: pa.RecordBatch,
        first_row: int,
    ) -> None:
        """Add rows that may be among the `top` of a query.

        Args:
            numbers: For each row the number of the query.
            places: The place of its vector in `vectors`.
            vectors: The usable vectors of `batch`.
            batch: The rows.
            first_row: The number of its first row among all that were compared.
        """
        wide = vectors.numbers[places].astype(np.float64)
        exact = (wide * self.queries[numbers]).sum(axis=1)
        if self.by_length:
            exact *= vectors.factors[places]
        else:
            exact = np.round(exact / np.sqrt((wide * wide).sum(axis=1)), DECIMALS)
        names = [name for name in COLUMNS if name in batch.schema.names]
        rows = vectors.rows[places]
        columns = batch.select(names).take(pa.array(rows)).to_pydict()
        if "file" in columns:
            columns["file"] = [file and file["uri"] for file in columns["file"]]
        columns["row"] = (rows + first_row).tolist()
        named = zip(*columns.values(), strict=True)
        for number, score, row in zip(numbers.tolist(), exact.tolist(), named, strict=True):
            self._kept[number].append(Hit(score, **dict(zip(columns, row, strict=True))))
        for number in np.unique(numbers).tolist():
            if len(self._kept[number]) > 2 * self.top:
                self._prune(number)

    def _prune(self, number: int) -> None:
        kept = sorted(self._kept[number], key=_order)[: self.top]
        self._kept[number] = kept
        if len(kept) == self.top:
            self._floors[number] = kept[-1].score

    def hits(self) -> list[list[Hit]]:
        """Return the hits of each query, nearest first."""
        for number in range(len(self._kept)):
            self._prune(number)
        return self._kept


def _order(hit: Hit) -> tuple[float, str, str, str, float]:
    return -hit.score, hit.id, hit.text or "", hit.file or "", hit.start or 0.0
