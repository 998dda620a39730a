"""ReadShards: every row of every shard becomes a row or a rejected row, exactly once."""

from __future__ import annotations

import functools
import io
import time
from array import array
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any, BinaryIO, TypeAlias, cast

import apache_beam as beam
import pyarrow as pa

from ...model.head import BadRow
from ..content import count_extent
from ..io.in_order import group_calls, map_in_order
from ..io.worker_thread import read_ahead
from ..metrics import BytesRead, count, rows_by_second
from .batch_builder import BatchBuilder
from .compression import BLOCK_ROWS, DamagedShard
from .entry_builder import EntryBuilder
from .input_files import open_shard, reading_errors
from .known_entries import KnownEntries
from .media import HASHED_BYTES, Found, add_found, item_of, look_at
from .notes import Notice, ShardNotes
from .parts import split_group
from .read_settings import ReadSettings
from .registry import LIST_FORMATS, READERS
from .shard import BATCH_BYTES, Batches, Part, Shard

READ_BYTES = 256 << 20  # of files that are read at the same time

Outputs: TypeAlias = Generator[pa.RecordBatch | beam.pvalue.TaggedOutput, None, None]


def read_shard(shard: Shard, settings: ReadSettings, notes: ShardNotes | None = None) -> Batches:
    """Yield (row batch, rejected batch) pairs of a shard, of the schemas that row_schema and rejected_schema give.

    The last row of a shard with damaged content is a rejected one, "damaged shard". What is noticed is added to `notes`.
    Raises OSError or InputError as open_shard does.
    """
    builder = _builder(Part(shard, shard.bytes), settings)
    yield from _read(builder)
    if notes is not None:
        notes.merge(builder.notes)


def _builder(part: Part, settings: ReadSettings, known: KnownEntries | None = None) -> BatchBuilder:
    return EntryBuilder(part, settings, known) if _is_list(part, settings) else BatchBuilder(part, settings)


def _is_list(part: Part, settings: ReadSettings) -> bool:
    return settings.head.by_reference and part.shard.format in LIST_FORMATS


def _read(builder: BatchBuilder) -> Batches:
    return builder.spill.hold(_read_part(builder))


def _read_part(builder: BatchBuilder) -> Batches:
    shard, bytes_read = builder.shard, BytesRead(builder.part.bytes)
    with _open(shard, builder.settings) as handle:
        try:
            for batches in READERS[shard.format].read(handle, builder):
                if builder.part.parts == 1:
                    bytes_read.reach(handle.tell())
                yield batches
        except DamagedShard as damage:
            builder.damage = str(damage)
            builder.reject(builder.next_row, BadRow("damaged shard", str(damage)))
    if not builder.next_row and builder.damage is None and builder.part.parts == 1:
        builder.notes.add(Notice.NO_ROW)
    bytes_read.reach(builder.part.bytes)
    yield builder.flush()


@contextmanager
def _open(shard: Shard, settings: ReadSettings) -> Iterator[IO[bytes]]:
    """Open a shard, as open_shard does; a file of which a header is read is not opened as a whole."""
    if settings.headers_only and shard.format == "media":
        with reading_errors(shard.path, settings.reports):
            yield settings.file_io.open_headers(shard.listed)
    else:
        with open_shard(shard, settings.file_io, settings.reports) as handle:
            yield handle


@contextmanager
def _read_already(shard: Shard, content: bytes | Exception, settings: ReadSettings) -> Iterator[IO[bytes]]:
    """Open what was read of a file, with the errors of open_shard."""
    with reading_errors(shard.path, settings.reports):
        if isinstance(content, Exception):
            raise content
        yield io.BytesIO(content)


@dataclass
class ShardsRead:
    """Result of reading parts of shards.

    Attributes:
        parts: For each part five numbers: the shard's number, the part's, the shard's parts, and of this part the rows,
            rejected ones included, and the documents whose list of contents is missing or empty.
        damaged: Those that were not read to their end, each (number and name of the shard, number of the part, reason).
        rows: All rows.
        copied: The bytes of contents that cannot be read by themselves.
        seconds: The time that it took.
        by_second: The rows that were read in each second.
        notes: What readers noticed.
        kinds: Each kind of values of a kept field whose type may widen, with the place of the first one.
    """

    parts: array[int] = field(default_factory=lambda: array("q"))
    damaged: list[tuple[int, str, int, str]] = field(default_factory=list)
    rows: int = 0
    copied: int = 0
    seconds: float = 0.0
    by_second: Counter[int] = field(default_factory=Counter)
    notes: ShardNotes = field(default_factory=ShardNotes)
    kinds: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, builder: BatchBuilder, rows: int) -> None:
        """Add a part that was read, of so many rows."""
        part, number = builder.part, builder.shard.number
        self.parts.extend((number, part.number, part.parts, rows, builder.without_texts))
        self.notes.merge(builder.notes)
        self.copied += builder.spill.bytes
        for kind, row in builder.kinds.items():
            self.kinds.setdefault(kind, f"{builder.shard.path}, row {row}")
        if builder.damage is not None:
            self.damaged.append((number, builder.shard.name, part.number, builder.damage))


class _BatchCombiner:
    """Batches that follow each other, combined while they are small: a thousand shards of one row make one batch."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Add a batch; yield what was added before if both together are too large for one."""
        if not batch.num_rows:
            return
        if self._rows + batch.num_rows > BLOCK_ROWS or self._bytes + batch.nbytes > BATCH_BYTES:
            yield from self.flush()
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield what was added."""
        batches, self._batches, self._rows, self._bytes = self._batches, [], 0, 0
        if len(batches) > 1:
            batches = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()
        yield from batches


class _ReadParts(beam.DoFn):  # type: ignore[misc]
    """Parts -> row batches; rejected batches are tagged "rejected", a ShardsRead is tagged "read"."""

    def __init__(self, settings: ReadSettings) -> None:
        self.settings = settings

    def process(self, parts: list[Part]) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Read parts as a stream. Raises InputError if a shard is not the version that was listed."""
        read, counted = ShardsRead(), 0
        for output in read_ahead(self._read_timed(parts, read)):
            rows = read.rows
            count("rows_read", rows - counted)  # here: Beam's metrics are those of this thread
            counted = rows
            if isinstance(output, pa.RecordBatch):
                count_extent(output, self.settings.head, count)
            yield output
        count("rows_read", read.rows - counted)
        count("read_msecs", round(1000 * read.seconds))
        yield beam.pvalue.TaggedOutput("read", read)

    def _read_timed(self, parts: list[Part], read: ShardsRead) -> Outputs:
        began = time.perf_counter()
        for output in self._read(parts, read):
            read.seconds += time.perf_counter() - began
            yield output
            began = time.perf_counter()
        read.seconds += time.perf_counter() - began

    def _read(self, parts: list[Part], read: ShardsRead) -> Outputs:
        rows, rejected = _BatchCombiner(), _BatchCombiner()
        is_files = len(parts) > 1 and all(part.shard.format == "media" for part in parts)
        for row_batch, rejected_batch in self._read_files(parts, read) if is_files else self._read_each(parts, read):
            size = row_batch.num_rows + rejected_batch.num_rows
            read.rows += size
            read.by_second.update(rows_by_second(size))
            yield from rows.add(row_batch)
            for batch in rejected.add(rejected_batch):
                yield beam.pvalue.TaggedOutput("rejected", batch)
        yield from rows.flush()
        for batch in rejected.flush():
            yield beam.pvalue.TaggedOutput("rejected", batch)

    def _read_each(self, parts: list[Part], read: ShardsRead) -> Batches:
        """Yield the batches of parts; add these to `read`."""
        for builder, batches in self._read_parts(parts):
            rows = 0
            for pair in batches:
                rows += pair[0].num_rows + pair[1].num_rows
                yield pair
            read.add(builder, rows)

    def _read_parts(self, parts: list[Part]) -> Iterator[tuple[BatchBuilder, Iterable[tuple[Any, Any]]]]:
        """Yield a builder for each part, with the batches that it gives; tars are read at the same time."""
        settings = self.settings
        lists = [part.shard.name for part in parts if _is_list(part, settings)]
        known = settings.earlier.load(lists) if lists and settings.earlier else None
        builders = (_builder(part, settings, known) for part in parts)
        if len(parts) == 1 or lists or not settings.head.by_reference:  # files of lists are read at the same time
            yield from ((builder, _read(builder)) for builder in builders)
            return
        yield from map_in_order(
            lambda builder: (builder, list(_read(builder))),
            builders,
            settings.threads,
            lambda builder: 0 if settings.headers_only else builder.part.bytes,
            READ_BYTES,
        )

    def _read_files(self, parts: list[Part], read: ShardsRead) -> Batches:
        """Yield the batches of files that are one content each, as _read_each does.

        They are read at the same time: most of the time is spent on opening them. Their rows have one builder: a batch for
        each would take longer than reading it.
        """
        builder = BatchBuilder(parts[0], self.settings)

        def size_of(part: Part) -> int:
            return min(part.bytes, HASHED_BYTES) if self.settings.headers_only else part.bytes

        groups = list(group_calls(parts, lambda part: part.shard.path, size_of))
        looked = map_in_order(
            lambda group: self._look_at(builder, [part.shard for part in group]),
            groups,
            self.settings.threads,
            lambda group: sum(map(size_of, group)),
            READ_BYTES,
        )
        for part, found in zip(parts, chain.from_iterable(looked), strict=True):
            builder.turn_to(part)
            yield from add_found(builder, part.shard.name, found)
            read.add(builder, builder.next_row)
        yield builder.flush()

    def _look_at(self, builder: BatchBuilder, shards: Sequence[Shard]) -> list[Found]:
        """Return what files are, of which several are small and local; `builder` has the settings of the job."""
        if len(shards) == 1 or self.settings.headers_only:
            return [self._look(builder, shard) for shard in shards]
        look = functools.partial(self._look, builder)
        return self.settings.file_io.use_each(shards, lambda shard: (shard.listed, 0, shard.bytes), look)

    def _look(self, builder: BatchBuilder, shard: Shard, content: bytes | Exception | None = None) -> Found:
        """Return what a file is, of which the content was read, or with this error, or is read now."""
        with _open(shard, self.settings) if content is None else _read_already(shard, content, self.settings) as handle:
            found = look_at(builder, item_of(shard), cast(BinaryIO, handle))
        BytesRead(shard.bytes).reach(shard.bytes)
        return found


class ReadShards(beam.PTransform):  # type: ignore[misc]
    """Groups of shards -> `.rows` (row batches), `.rejected` (rejected batches) and `.read` (ShardsRead of all parts).

    `spread_parts` is False if no shard is large: then there are no parts to spread.
    """

    def __init__(self, settings: ReadSettings, *, spread_parts: bool = True) -> None:
        super().__init__()
        self.settings, self.spread_parts = settings, spread_parts

    def expand(self, groups: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Split large shards into parts, spread these, and read each group of parts as one element."""
        parts = groups | "SplitShards" >> beam.FlatMap(split_group, self.settings)
        if self.spread_parts:
            parts = parts | "SpreadParts" >> beam.Reshuffle()
        return parts | "ReadParts" >> beam.ParDo(_ReadParts(self.settings)).with_outputs(
            "rejected", "read", main="rows"
        )
