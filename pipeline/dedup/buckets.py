"""Buckets: rows that belong together meet by the first bits of a content hash, or of an id's checksum.

What is shuffled is (bucket, piece). A piece is bytes: rows of the bucket, a reference to rows in a spill file, or a
reference to a row group of an earlier part file, in which contents are looked up or whose rows are kept.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..content import hash_words
from ..readers.arrow_values import row_bytes
from .spill import PieceCodec, Spill, combine_batches, read_spilled

BUCKETED = tuple[int, bytes]
BUCKET_ROWS = 131_072
MAX_BUCKET_BITS = 24
# A remote run has at least 64 buckets, so that each worker gets several of a small corpus too.
MIN_REMOTE_BITS = 6
# What a worker holds before it splits rows into buckets: the more, the larger the pieces. On one machine pieces go to a
# file, where small ones cost little, and memory is what counts.
SPLIT_BYTES, LOCAL_SPLIT_BYTES = 256 << 20, 32 << 20
PIECE_BYTES = 4 << 20  # of rows in a piece, before compression and without dictionaries, as they are encoded

_ROWS, _SPILLED, _ROW_GROUP, _KEPT = b"r", b"s", b"g", b"k"
_NUMBER = struct.Struct("<I")
_NUMBERS = struct.Struct("<II")


def bucket_bits(rows: int, *, local: bool) -> int:
    """Return how many leading hash bits name a bucket, so that `rows` rows make buckets of about BUCKET_ROWS."""
    bits = max(1, (rows // BUCKET_ROWS).bit_length())
    return min(MAX_BUCKET_BITS, bits if local else max(bits, MIN_REMOTE_BITS))


def bucket_of(column: pa.Array, bits: int) -> NDArray[np.int64]:
    """Return the bucket of each value, int64 [n]: the first `bits` bits of a content hash, or of the checksum of an id."""
    if pa.types.is_string(column.type):
        prefix = np.fromiter((zlib.crc32(value.encode()) for value in column.to_pylist()), np.int64, len(column))
    else:
        prefix = hash_words(column)[:, 0].astype(np.int64)
    return prefix >> (32 - bits)


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(BUCKETED)
class SplitIntoBuckets(beam.DoFn):  # type: ignore[misc]
    """Record batches to (bucket of `column`, piece), gathered over a bundle so that pieces are as large as they may be.

    With a `spill` directory the rows go into a file there, and the pieces are references to them.
    """

    def __init__(self, codec: PieceCodec, column: str, bits: int, spill: str | None) -> None:
        self.codec, self.column, self.bits, self.spill = codec, column, bits, spill

    def start_bundle(self) -> None:
        """Start with nothing, whatever a failed bundle left."""
        self._batches: list[pa.RecordBatch] = []
        self._sizes: list[NDArray[np.int64]] = []  # of the rows of each
        self._bytes = 0
        self._file = Spill(self.spill) if self.spill else None
        self._references: list[BUCKETED] = []

    def process(self, batch: pa.RecordBatch) -> Iterator[BUCKETED]:
        """Keep `batch`, and split everything kept if it is enough."""
        if not batch.num_rows:
            return
        self._batches.append(batch)
        self._sizes.append(row_bytes(batch))
        self._bytes += batch.nbytes
        if self._bytes >= (LOCAL_SPLIT_BYTES if self.spill else SPLIT_BYTES):
            yield from self._split()

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        """Emit the rest."""
        window = beam.window.GlobalWindow()
        pieces = [*self._split()]
        if self._file is not None:
            self._file.close()  # only now can its pieces be read
        for piece in [*pieces, *self._references]:
            yield beam.utils.windowed_value.WindowedValue(piece, window.max_timestamp(), [window])

    def _split(self) -> Iterator[BUCKETED]:
        if not self._batches:
            return
        batch = combine_batches(self._batches)
        sizes = np.concatenate(self._sizes)
        self._batches, self._sizes, self._bytes = [], [], 0
        buckets = bucket_of(batch.column(self.column), self.bits)
        order, runs = sort_by_bucket(buckets)
        batch, sizes = batch.take(pa.array(order)), sizes[order]
        for bucket, start, end in runs:
            for rows in _cut(batch.slice(start, end - start), sizes[start:end]):
                piece = self.codec.encode(rows)
                if self._file is None:
                    yield bucket, _ROWS + piece
                else:
                    self._references.append((bucket, _SPILLED + self._file.add(piece)))


def sort_by_bucket(buckets: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[tuple[int, int, int]]]:
    """Return the order that sorts rows by bucket, int64 [n], and (bucket, start, end) of the rows of each in that order."""
    order = np.argsort(buckets, kind="stable")
    buckets = buckets[order]
    starts = np.flatnonzero(np.diff(buckets, prepend=-1)).tolist()
    return order, list(zip(buckets[starts].tolist(), starts, [*starts[1:], len(order)], strict=True))


def _cut(rows: pa.RecordBatch, sizes: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Yield `rows`, of `sizes` bytes each, in parts of at most PIECE_BYTES, or of one row."""
    if rows.num_rows <= 1 or sizes.sum() <= PIECE_BYTES:
        yield rows
        return
    half = rows.num_rows // 2
    yield from _cut(rows.slice(0, half), sizes[:half])
    yield from _cut(rows.slice(half), sizes[half:])


class Buckets(beam.PTransform):  # type: ignore[misc]
    """Record batches to (bucket, its pieces), by one shuffle; `read_rows` returns the batches of a bucket.

    Args:
        codec: How pieces are encoded.
        column: The column with the hashes that decide on buckets.
        bits: There are 2**bits buckets.
        spill: As for SplitIntoBuckets.
        also: More pairs of bucket and piece, which are grouped with them.
    """

    def __init__(
        self, codec: PieceCodec, column: str, bits: int, spill: str | None, also: beam.PCollection | None = None
    ) -> None:
        super().__init__()
        self.split, self.also = SplitIntoBuckets(codec, column, bits, spill), also

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Split and shuffle."""
        pieces = batches | "SplitIntoBuckets" >> beam.ParDo(self.split)
        if self.also is not None:
            pieces = (pieces, self.also) | "AddReferences" >> beam.Flatten()
        return pieces | "GroupByBucket" >> beam.GroupByKey()


def read_rows(pieces: Iterable[bytes], codec: PieceCodec) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a bucket, each read when it is its turn; references to row groups are passed over."""
    for piece in pieces:
        kind = piece[:1]
        if kind in (_ROWS, _SPILLED):
            yield codec.decode(piece[1:] if kind == _ROWS else read_spilled(piece[1:]))


def row_group_piece(path: str, row_group: int) -> bytes:
    """Return the piece that refers to a row group of an earlier part file."""
    return _ROW_GROUP + _NUMBER.pack(row_group) + os.fsencode(path)


def row_groups_in(pieces: Iterable[bytes]) -> list[tuple[str, int]]:
    """Return (path, row group) of the references to row groups among the pieces of a bucket, in order."""
    found = {
        (os.fsdecode(piece[1 + _NUMBER.size :]), _NUMBER.unpack_from(piece, 1)[0])
        for piece in pieces
        if piece[:1] == _ROW_GROUP
    }
    return sorted(found)


def kept_piece(path: str, row_group: int, segment: int) -> bytes:
    """Return the piece that refers to a row group of the previous snapshot, of that segment, whose rows are kept."""
    return _KEPT + _NUMBERS.pack(row_group, segment) + os.fsencode(path)


def kept_in(pieces: Iterable[bytes]) -> list[tuple[str, int, int]]:
    """Return (path, row group, segment) of the references to kept row groups among the pieces of a bucket, in order."""
    found = {
        (os.fsdecode(piece[1 + _NUMBERS.size :]), *_NUMBERS.unpack_from(piece, 1))
        for piece in pieces
        if piece[:1] == _KEPT
    }
    return sorted(found)
