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
from ..io.paths import join
from ..metrics import count
from ..readers.settle_types import SettledTypes, apply_types
from ..schemas import CONTENT_HASH, model_columns
from ..snapshots.listing import CarriedFile
from ..snapshots.snapshot import UNREADABLE
from ..writers.kept_files import DroppedShards, open_kept, reading_kept
from ..writers.parquet_file import ROW_GROUP
from .buckets import BUCKETED, Buckets, bucket_of, kept_in, kept_piece, row_group_piece, row_groups_in
from .slices import batches_of, slices_of
from .spill import PieceCodec

_LOGGER = logging.getLogger(__name__)

MAX_RANGE = 4  # buckets; of a row group that spans more, as --no_dedupe writes them, the hashes themselves are read
MAX_OPEN_FILES = 8


class ReferToRowGroups(beam.DoFn):  # type: ignore[misc]
    """Part files to (bucket, reference) for each bucket that a row group of them may have rows in.

    An element is the path of an earlier part file, in which contents are looked up, or a CarriedFile whose rows are kept. Of
    the former, a file of another fingerprint is not referred to, and one that cannot be read costs model time, nothing else.

    Args:
        fingerprint: That of the run's model.
        bits: How many bits of a content hash name a bucket.
        previous: The directory of the previous snapshot.
        file_io: How files are opened.
    """

    def __init__(self, fingerprint: str, bits: int, previous: str, file_io: FileIO) -> None:
        self.fingerprint, self.bits, self.previous, self.file_io = fingerprint, bits, previous, file_io

    def process(self, element: str | CarriedFile) -> Iterator[BUCKETED]:
        """Read the footer of the file. Raises SnapshotError if rows of it are kept and it cannot be read."""
        if isinstance(element, CarriedFile):
            path = join(self.previous, element.file.name)
            with open_kept(path, self.file_io) as handle:
                references = self._refer(pq.ParquetFile(handle, page_checksum_verification=True))
            yield from ((bucket, kept_piece(path, number, element.before)) for bucket, number in references)
            return
        try:
            with self.file_io.open(element) as handle:
                file = pq.ParquetFile(handle, page_checksum_verification=True)
                made_with = (file.metadata.metadata or {}).get(b"fingerprint", b"").decode("utf-8", "replace")
                references = self._refer(file) if made_with == self.fingerprint else []
        except UNREADABLE as error:
            _warn_unreadable(element, error)
            return
        yield from ((bucket, row_group_piece(element, number)) for bucket, number in references)

    def _refer(self, file: pq.ParquetFile) -> list[tuple[int, int]]:
        """Return (bucket, row group) of all buckets that row groups may have rows in."""
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
            references += [(bucket, number) for bucket in buckets]
        return references


class ReuseVectors(beam.DoFn):  # type: ignore[misc]
    """(bucket, pieces) to embedded batches of kept rows and known contents, and on "new" to hashed row batches of new ones.

    Rows of equal content leave in one batch, or in batches that follow each other, so that the encoder gets each content
    once. A bucket that is larger than SLICE_BYTES is processed in slices cut by hash. An earlier file that cannot be
    read (removed, or its checksums are wrong) costs model time, nothing else.

    Args:
        codec: The codec of hashed row batches.
        head: The head whose contents they have.
        batch_items: The most different contents of a batch of new rows.
        columns: The columns that are taken from earlier files; by default those that the model computes.
        bits: How many bits of a content hash name a bucket.
        dropped: The shards whose rows are not kept; None if there are no kept rows.
        file_io: How files are opened.
    """

    def __init__(
        self,
        codec: PieceCodec,
        head: Head,
        batch_items: int,
        columns: tuple[str, ...] | None = None,
        *,
        bits: int = 1,
        dropped: DroppedShards | None = None,
        file_io: FileIO = FileIO(),
    ) -> None:
        self.bits, self.dropped = bits, dropped
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
        bucket, pieces = element
        for path, number, segment in kept_in(pieces):
            yield from self._kept(bucket, path, number, segment, types)
        row_groups = row_groups_in(pieces) if reuse else []
        for rows in slices_of(pieces, self.codec):
            rows = rows if types is None else apply_types(rows, types)
            yield from self._process_slice(rows, row_groups)
            del rows  # before the next ones are read

    def _kept(
        self, bucket: int, path: str, number: int, segment: int, types: SettledTypes | None
    ) -> Iterator[EmbeddedBatch]:
        """Yield the rows of a row group of the previous snapshot that are of a bucket and are kept, with their vectors.

        Raises SnapshotError if it cannot be read.
        """
        assert self.dropped is not None
        with reading_kept(path):
            file = self._file(path)
            places = file.read_row_group(number, columns=[CONTENT_HASH.name, "shard"], use_threads=False)
            of_bucket = bucket_of(places[CONTENT_HASH.name].combine_chunks(), self.bits) == bucket
            kept = of_bucket & self.dropped.kept(places["shard"], segment)
            if not kept.any():
                return
            rows = file.read_row_group(number, use_threads=False).filter(pa.array(kept))
        count("earlier_row_groups", 1)
        for batch in rows.combine_chunks().to_batches():
            yield EmbeddedBatch(batch if types is None else apply_types(batch, types), outcome="copied")

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
            yield EmbeddedBatch(pa.RecordBatch.from_arrays(embedded, names=names), outcome="reused")
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
        earlier: The elements of `refer`; None without any.
        refer: The step that refers to their row groups.
        reuse: The step that takes the vectors.
        spill: As for Buckets.
        sides: The other arguments of that step, by name; side inputs are among them.
    """

    def __init__(
        self,
        earlier: beam.PCollection | None,
        refer: ReferToRowGroups,
        reuse: ReuseVectors,
        spill: str | None,
        sides: Mapping[str, object],
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
