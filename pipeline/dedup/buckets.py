"""Record batches to buckets, by the first bits of a text hash or of an id's checksum: how rows that belong together meet."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..text_hash import hash_prefix
from .spill import SPILLED, Spill, combine_batches, read_spilled

BUCKETED = tuple[int, pa.RecordBatch]

BUCKET_ROWS = 16384  # as many as the encoder sorts at once: texts that begin alike share work only within a batch

MAX_BUCKET_BITS = 16


# Rows that a worker holds before it splits them into buckets: large enough that a shuffled piece is not all header.
SPLIT_ROWS = 131_072

SPLIT_BYTES = 256 << 20  # of what is held: long texts are split sooner


def bucket_bits(rows: int) -> int:
    """How many leading hash bits name a bucket, so that `rows` rows make buckets of about BUCKET_ROWS."""
    return min(MAX_BUCKET_BITS, max(1, (rows // BUCKET_ROWS).bit_length()))


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(BUCKETED)
class Split(beam.DoFn):  # type: ignore[misc]
    """Record batches -> (bucket of `column`, its rows), gathered over a bundle so that the pieces are not crumbs.

    With a `spill` directory the rows stay in a file there, and (bucket, references to them) come out.
    """

    def __init__(self, column: str, bits: int, spill: str | None) -> None:
        self.column, self.bits, self.spill = column, bits, spill

    def start_bundle(self) -> None:
        """Begin with nothing, whatever a failed bundle held."""
        self._held: list[pa.RecordBatch] = []
        self._file = Spill(self.spill) if self.spill else None
        self._places: dict[int, list[tuple[int, int]]] = {}

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Hold `batch`; split all that is held once it is enough."""
        self._held.append(batch)
        enough = sum(held.num_rows for held in self._held) >= SPLIT_ROWS
        if enough or sum(held.nbytes for held in self._held) >= SPLIT_BYTES:
            yield from self._split()

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        """Give out the rest."""
        window = beam.window.GlobalWindow()
        for piece in [*self._split(), *self._references()]:
            yield beam.utils.windowed_value.WindowedValue(piece, window.max_timestamp(), [window])

    def _split(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        if not self._held:
            return
        batch = combine_batches(self._held)
        self._held = []
        buckets = bucket_of(batch.column(self.column), self.bits)
        order = np.argsort(buckets, kind="stable")
        ends = np.flatnonzero(np.diff(buckets[order])) + 1
        for places in np.split(order, ends):
            if not len(places):
                continue
            bucket, piece = int(buckets[places[0]]), batch.take(pa.array(places))
            if self._file is None:
                yield bucket, piece
            else:
                self._places.setdefault(bucket, []).append(self._file.add(piece))

    def _references(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        if self._file is None:
            return
        self._file.close()
        for bucket, places in self._places.items():
            offsets, lengths = zip(*places, strict=True)
            columns = {"path": [self._file.path] * len(places), "offset": offsets, "length": lengths}
            yield bucket, pa.RecordBatch.from_pydict(columns, schema=SPILLED)


class Buckets(beam.PTransform):  # type: ignore[misc]
    """Record batches -> (bucket of `column`, its pieces), 2**bits buckets in all, by one shuffle.

    `read_pieces` has the batches of a bucket. `spill` is as for Split; `also` are (bucket, batch) that meet them there.
    """

    def __init__(self, column: str, bits: int, spill: str | None, also: beam.PCollection | None = None) -> None:
        super().__init__()
        self.split, self.also = Split(column, bits, spill), also

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Split and shuffle."""
        pieces = batches | "SplitIntoBuckets" >> beam.ParDo(self.split)
        if self.also is not None:
            pieces = (pieces, self.also) | "AddReferences" >> beam.Flatten()
        return pieces | "GroupByBucket" >> beam.GroupByKey()


def read_pieces(bucket: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches of a bucket as they were split, wherever they lie."""
    for batch in bucket:
        if batch.schema.equals(SPILLED):
            yield from read_spilled(batch)
        else:
            yield batch


def bucket_of(column: pa.Array, bits: int) -> NDArray[np.int64]:
    """Bucket number of each value [n]: the first `bits` bits of a text hash, or of the checksum of an id; int64 [n]."""
    if pa.types.is_string(column.type):
        prefix = np.fromiter((zlib.crc32(value.encode()) >> 16 for value in column.to_pylist()), np.int64, len(column))
    else:
        prefix = hash_prefix(column).astype(np.int64)
    return prefix >> (16 - bits)
