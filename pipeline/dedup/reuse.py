"""Reuse of earlier vectors: rows and earlier row groups meet by content hash, and known rows take their vectors from there.

Rows go through one shuffle by the first bits of their content hash. Vectors are never shuffled: the worker that has a
bucket opens the row groups whose hashes can be in it. A row group of a part file belongs to one bucket, so Parquet's
own minimum and maximum of `content_hash` are the index; workers read it from the footers of earlier files.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import IO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...model.head import Head
from ..embedded_batch import EmbeddedBatch
from ..io.file_io import FileIO
from ..metrics import count
from ..readers.settle_types import SettledTypes, apply_types
from ..schemas import CONTENT_HASH, model_columns
from ..snapshots.snapshot import UNREADABLE
from ..writers.parquet_file import ROW_GROUP
from .buckets import BUCKETED, Buckets, bucket_of, row_group_piece, row_groups_in
from .slices import batches_of, slices_of
from .spill import PieceCodec

_LOGGER = logging.getLogger(__name__)

MAX_RANGE = 4  # buckets; of a row group that spans more, as --no_dedupe writes them, the hashes themselves are read
MAX_OPEN_FILES = 8


class ReferToRowGroups(beam.DoFn):  # type: ignore[misc]
    """Path of an earlier part file to (bucket, reference) for each bucket that a row group of it may have rows in.

    A file of another fingerprint is not referred to. One that cannot be read costs model time, nothing else.
    """

    def __init__(self, fingerprint: str, bits: int, file_io: FileIO) -> None:
        self.fingerprint, self.bits, self.file_io = fingerprint, bits, file_io

    def process(self, path: str) -> Iterator[BUCKETED]:
        """Read the footer of the file."""
        try:
            with self.file_io.open(path) as handle:
                yield from self._refer(path, pq.ParquetFile(handle, page_checksum_verification=True))
        except UNREADABLE as error:
            _warn_unreadable(path, error)

    def _refer(self, path: str, file: pq.ParquetFile) -> list[BUCKETED]:
        if (file.metadata.metadata or {}).get(b"fingerprint", b"").decode("utf-8", "replace") != self.fingerprint:
            return []
        column = file.schema_arrow.names.index(CONTENT_HASH.name)  # columns before it are flat
        references = []
        for number in range(file.num_row_groups):
            statistics = file.metadata.row_group(number).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                ends = bucket_of(pa.array([statistics.min, statistics.max], pa.binary(16)), self.bits).tolist()
                buckets: Iterable[int] = range(ends[0], ends[1] + 1)
            if statistics is None or not statistics.has_min_max or len(range(*ends)) >= MAX_RANGE:
                table = file.read_row_group(number, columns=[CONTENT_HASH.name], use_threads=False)
                buckets = np.unique(bucket_of(table[CONTENT_HASH.name].combine_chunks(), self.bits)).tolist()
            references += [(bucket, row_group_piece(path, number)) for bucket in buckets]
        return references


class ReuseVectors(beam.DoFn):  # type: ignore[misc]
    """(bucket, pieces) to embedded batches of known contents, and on "new" to hashed row batches of new ones.

    Rows of equal content leave in one batch, or in batches that follow each other, so that the encoder gets each content
    once. A bucket that is larger than SLICE_BYTES is processed in slices cut by hash. An earlier file that cannot be
    read (removed, or its checksums are wrong) costs model time, nothing else.

    Args:
        codec: The codec of hashed row batches.
        head: The head whose contents they have.
        batch_items: The most different contents of a batch of new rows.
        columns: The columns that are taken from earlier files; by default those that the model computes.
        file_io: How these are opened.
    """

    def __init__(
        self,
        codec: PieceCodec,
        head: Head,
        batch_items: int,
        columns: tuple[str, ...] | None = None,
        file_io: FileIO = FileIO(),
    ) -> None:
        self.codec, self.sort_by, self.batch_items, self.file_io = codec, head.sort_by, batch_items, file_io
        self.columns = model_columns(head) if columns is None else columns
        self._open: dict[str, tuple[IO[bytes], pq.ParquetFile]] = {}

    def process(
        self, element: tuple[int, Iterable[bytes]], reuse: bool = True, types: SettledTypes | None = None
    ) -> Iterator[EmbeddedBatch | beam.pvalue.TaggedOutput]:
        """Process a bucket.

        `reuse` is the result of the canary: if it is False, every row is new. `types` are those of the kept fields, if they
        were not known before the run.
        """
        _, pieces = element
        row_groups = row_groups_in(pieces) if reuse else []
        for rows in slices_of(pieces, self.codec):
            rows = rows if types is None else apply_types(rows, types)
            yield from self._process_slice(rows, row_groups)
            del rows  # before the next ones are read

    def _process_slice(
        self, batch: pa.RecordBatch, row_groups: list[tuple[str, int]]
    ) -> Iterator[EmbeddedBatch | beam.pvalue.TaggedOutput]:
        for path, number in row_groups:
            if batch.num_rows:
                batch = yield from self._take_known(batch, path, number)
        for part in batches_of(batch, self.batch_items, self.sort_by):
            yield beam.pvalue.TaggedOutput("new", part)

    def _take_known(
        self, batch: pa.RecordBatch, path: str, number: int
    ) -> Generator[EmbeddedBatch, None, pa.RecordBatch]:
        """Yield embedded batches of the rows whose hashes are in that row group; return the other rows.

        Only one batch is in memory with its vectors: a known content may occur in any number of rows.
        """
        try:
            file = self._file(path)
            place = pc.index_in(
                batch.column(CONTENT_HASH.name), value_set=self._read(file, number, [CONTENT_HASH.name])[0]
            )
            is_known = pc.is_valid(place)
            if place.null_count == len(place):
                return batch
            columns = self._read(file, number, list(self.columns))
        except UNREADABLE as error:
            _warn_unreadable(path, error)
            return batch
        rows, place = batch.filter(is_known), place.drop_null()
        order = pc.sort_indices(rows.column(CONTENT_HASH.name))
        rows, place = rows.take(order), place.take(order)
        for start in range(0, rows.num_rows, ROW_GROUP):
            part, places = rows.slice(start, ROW_GROUP), place.slice(start, ROW_GROUP)
            names = [*part.schema.names, *self.columns]
            embedded = [*part.columns, *(column.take(places) for column in columns)]
            yield EmbeddedBatch(pa.RecordBatch.from_arrays(embedded, names=names), reused=True)
        return batch.filter(pc.invert(is_known))

    def _file(self, path: str) -> pq.ParquetFile:
        if path not in self._open:
            while len(self._open) >= MAX_OPEN_FILES:
                self._close(next(iter(self._open)))
            handle = self.file_io.open(path)
            self._open[path] = handle, pq.ParquetFile(handle, page_checksum_verification=True)
        return self._open[path][1]

    @staticmethod
    def _read(file: pq.ParquetFile, number: int, columns: list[str]) -> list[pa.Array]:
        table = file.read_row_group(number, columns=columns, use_threads=False)
        count("earlier_row_groups", 1)
        return [table[name].combine_chunks() for name in columns]

    def _close(self, path: str) -> None:
        handle, file = self._open.pop(path)
        file.close(force=True)
        handle.close()

    def teardown(self) -> None:
        """Close the earlier files."""
        for path in list(self._open):
            self._close(path)


def _warn_unreadable(path: str, error: Exception) -> None:
    _LOGGER.warning("%s cannot be read (%s): what it contains is embedded again", path, error)
    count("earlier_unreadable", 1)


class JoinWithEarlierVectors(beam.PTransform):  # type: ignore[misc]
    """Hashed row batches to `.known`, embedded from earlier vectors, and `.new`.

    Rows meet the row groups of earlier part files in buckets of content hashes.

    Args:
        earlier: The paths of earlier part files; None without any.
        refer: The step that refers to their row groups.
        reuse: The step that takes the vectors.
        spill: As for Buckets.
        sides: The side inputs of that step, by name.
    """

    def __init__(
        self,
        earlier: beam.PCollection | None,
        refer: ReferToRowGroups,
        reuse: ReuseVectors,
        spill: str | None,
        sides: Mapping[str, beam.pvalue.AsSideInput],
    ) -> None:
        super().__init__()
        self.earlier, self.refer, self.reuse, self.spill, self.sides = earlier, refer, reuse, spill, sides

    def expand(self, rows: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Shuffle rows and references once."""
        references = None
        if self.earlier is not None:
            references = self.earlier | "ReferToRowGroups" >> beam.ParDo(self.refer).with_output_types(BUCKETED)
        reuse = beam.ParDo(self.reuse, **self.sides)
        buckets = rows | "MeetInBuckets" >> Buckets(
            self.reuse.codec, CONTENT_HASH.name, self.refer.bits, self.spill, references
        )
        return buckets | "ReuseVectors" >> reuse.with_outputs("new", main="known")
