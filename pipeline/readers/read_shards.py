"""Text shards to record batches: every row of every shard comes out once, as a row or as a rejected one."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import apache_beam as beam
import pyarrow as pa

from ..io.file_io import FileIO
from ..io.filesystem import StoreError
from ..metrics import count, rows_by_second
from .batch_builder import BatchBuilder, Batches, rows_of_block, rows_of_parquet
from .compression import DamagedShard
from .fields import BadRow, Fields, is_text
from .parquet import column_at, parquet_batches, parquet_records, plain_values
from .registry import READERS
from .shards import Shard, shard_changed, shard_state

MAX_TEXT_BYTES = 1 << 20


def read_shard(
    shard: Shard,
    fields: Fields,
    kept: pa.Schema,
    max_text_bytes: int = MAX_TEXT_BYTES,
    file_io: FileIO = FileIO(),
) -> Batches:
    """(rows, rejected rows) of a shard, as batches of the schemas ROW with `kept` behind and REJECTED.

    Damage in the shard's content ends it with one rejected row; what cannot be read at all (gone, forbidden, or nothing
    came for as long as `file_io` waits) raises OSError with the shard's path.
    """
    builder = BatchBuilder(shard, fields, kept, max_text_bytes)
    try:
        with file_io.open(shard.path) as handle:
            yield from _read(handle, builder)
    except StoreError:
        raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{shard.path} cannot be read: {error.strerror or error}") from error
    yield builder.flush()


def _read(handle: IO[bytes], builder: BatchBuilder) -> Batches:
    shard, fields, row = builder.shard, builder.fields, 0
    try:
        if shard.format == "parquet":
            for row, batch in parquet_batches(handle, fields):
                if isinstance(batch, BadRow):
                    yield from builder.add(row, batch)
                    row += 1
                    continue
                clean = rows_of_parquet(batch, row, builder)
                if clean is None:
                    values = [_kept_values(batch, field) for field in builder.kept]
                    for at, record in enumerate(parquet_records(batch)):
                        yield from builder.add(row + at, record, [column[at] for column in values])
                else:
                    yield from builder.pass_through(clean)
                row += batch.num_rows
        else:
            for row, block in READERS[shard.format](handle, shard.compression, fields, builder.limit):
                clean = rows_of_block(block, row, builder)
                if clean is None:
                    for at, found in enumerate(block, row):
                        yield from builder.add(at, found)
                else:
                    yield from builder.pass_through(clean)
                row += len(block)
    except DamagedShard as damage:
        builder.reject(row, BadRow("damaged shard", str(damage)))


def _kept_values(batch: pa.RecordBatch, field: pa.Field) -> list[object]:
    """The values of a kept field, as arrays of one unless they are text."""
    column = column_at(batch, field.name)
    if column is None:
        return [None] * batch.num_rows
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type) and is_text(field.type):
        return plain_values(column)
    return [column.slice(row, 1) for row in range(len(column))]


@dataclass
class ShardRead:
    """What was read of a shard: its rows, bad ones included, the seconds it took, and rows by the second of reading."""

    shard: str
    rows: int = 0
    seconds: float = 0.0
    by_second: Counter[int] = field(default_factory=Counter)
    damage: str | None = None  # why the shard was not read to its end


class _ReadShard(beam.DoFn):  # type: ignore[misc]
    """A shard -> its row batches; on "rejected" the rejected ones, on "read" a ShardRead."""

    def __init__(self, fields: Fields, kept: pa.Schema, max_text_bytes: int, file_io: FileIO) -> None:
        self.fields, self.kept = fields, kept.serialize().to_pybytes()
        self.max_text_bytes, self.file_io = max_text_bytes, file_io

    def process(self, shard: Shard) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Read the shard as a stream."""
        kept, read = pa.ipc.read_schema(pa.py_buffer(self.kept)), ShardRead(shard.name)
        before = shard_state(shard)
        began = time.perf_counter()
        for rows, rejected in read_shard(shard, self.fields, kept, self.max_text_bytes, self.file_io):
            found = rows.num_rows + rejected.num_rows
            read.rows += found
            count("rows_read", found)
            read.by_second.update(rows_by_second(found))
            read.seconds += time.perf_counter() - began
            if rows.num_rows:
                yield rows
            if rejected.num_rows:
                if rejected.column("reason")[-1].as_py() == "damaged shard":
                    read.damage = rejected.column("detail")[-1].as_py()
                yield beam.pvalue.TaggedOutput("rejected", rejected)
            began = time.perf_counter()
        read.seconds += time.perf_counter() - began
        count("read_msecs", round(1000 * read.seconds))
        if shard_state(shard) != before:
            raise shard_changed(shard)
        yield beam.pvalue.TaggedOutput("read", read)


class ReadShards(beam.PTransform):  # type: ignore[misc]
    """Shards -> `.rows` (row batches), `.rejected` (rejected batches) and `.read` (a ShardRead each)."""

    def __init__(
        self,
        fields: Fields,
        kept: pa.Schema,
        max_text_bytes: int = MAX_TEXT_BYTES,
        file_io: FileIO = FileIO(),
    ) -> None:
        super().__init__()
        self.do = _ReadShard(fields, kept, max_text_bytes, file_io)

    def expand(self, shards: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Read each shard on its own."""
        return shards | "Read" >> beam.ParDo(self.do).with_outputs("rejected", "read", main="rows")
