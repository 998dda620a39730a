"""ReadShards: every row of every shard becomes a row or a rejected row, exactly once."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa

from ..io.file_io import FileIO
from ..io.filesystem import StoreError
from ..io.versions import FileChanged
from ..metrics import BytesRead, count, rows_by_second
from .batch_builder import BatchBuilder
from .compression import DamagedShard
from .fields import BadRow, Fields
from .registry import READERS
from .shard import Batches, Shard
from .shards import shard_changed

MAX_TEXT_BYTES = 1 << 20


def read_shard(
    shard: Shard,
    fields: Fields,
    kept: pa.Schema,
    max_text_bytes: int = MAX_TEXT_BYTES,
    file_io: FileIO = FileIO(),
) -> Batches:
    """Yield (row batch, rejected batch) pairs of a shard, of the schemas ROW followed by `kept`, and REJECTED.

    The last row of a shard with damaged content is a rejected one, "damaged shard". Raises OSError with the shard's path
    if it cannot be read at all: it is forbidden, or gives no byte for as long as `file_io` waits. Raises InputError if it is
    gone or not the version that was listed.
    """
    yield from _read(BatchBuilder(shard, fields, kept, max_text_bytes), file_io)


def _read(builder: BatchBuilder, file_io: FileIO) -> Batches:
    shard, bytes_read = builder.shard, BytesRead(builder.shard.bytes)
    try:
        with file_io.open_version(shard.listed) as handle:
            try:
                for batches in READERS[shard.format].read(handle, builder):
                    bytes_read.reach(handle.tell())
                    yield batches
            except DamagedShard as damage:
                builder.damage = str(damage)
                builder.reject(builder.next_row, BadRow("damaged shard", str(damage)))
    except FileChanged as error:
        raise shard_changed(error) from error
    except StoreError:
        raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{shard.path} cannot be read: {error.strerror or error}") from error
    bytes_read.reach(shard.bytes)
    yield builder.flush()


@dataclass
class ShardRead:
    """Result of reading a shard: its rows, rejected ones included, the seconds it took, and the rows of each second.

    `damage` says why a shard was not read to its end, and is None if it was; `without_texts` counts its documents whose
    list of texts is missing or empty.
    """

    shard: str
    rows: int = 0
    seconds: float = 0.0
    by_second: Counter[int] = field(default_factory=Counter)
    damage: str | None = None
    without_texts: int = 0


class _ReadShard(beam.DoFn):  # type: ignore[misc]
    """Shard -> row batches; rejected batches are tagged "rejected", a ShardRead is tagged "read"."""

    def __init__(self, fields: Fields, kept: pa.Schema, max_text_bytes: int, file_io: FileIO) -> None:
        self.fields, self.kept = fields, kept.serialize().to_pybytes()
        self.max_text_bytes, self.file_io = max_text_bytes, file_io

    def process(self, shard: Shard) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Read a shard as a stream. Raises InputError if it is not the version that was listed."""
        kept, read = pa.ipc.read_schema(pa.py_buffer(self.kept)), ShardRead(shard.name)
        began = time.perf_counter()
        builder = BatchBuilder(shard, self.fields, kept, self.max_text_bytes)
        for rows, rejected in _read(builder, self.file_io):
            size = rows.num_rows + rejected.num_rows
            read.rows += size
            count("rows_read", size)
            read.by_second.update(rows_by_second(size))
            read.seconds += time.perf_counter() - began
            if rows.num_rows:
                yield rows
            if rejected.num_rows:
                yield beam.pvalue.TaggedOutput("rejected", rejected)
            began = time.perf_counter()
        read.seconds += time.perf_counter() - began
        count("read_msecs", round(1000 * read.seconds))
        read.damage, read.without_texts = builder.damage, builder.without_texts
        yield beam.pvalue.TaggedOutput("read", read)


class ReadShards(beam.PTransform):  # type: ignore[misc]
    """Shards -> `.rows` (row batches), `.rejected` (rejected batches) and `.read` (one ShardRead per shard)."""

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
        """Read each shard as one element."""
        return shards | "ReadShard" >> beam.ParDo(self.do).with_outputs("rejected", "read", main="rows")
