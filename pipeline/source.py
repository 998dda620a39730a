"""Text shards to record batches: every row of every shard comes out once, as a row or as a rejected one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems

from .decompress import DamagedShard
from .fields import BadRow, Fields, as_id, as_kept, as_text, lookup, texts_at
from .formats import BATCH_ROWS, READERS, Record, parquet_batches, parquet_records
from .metrics import count
from .records import REJECTED, ROW
from .shards import Shard

MAX_TEXT_BYTES = 1 << 20
BATCH_BYTES = 16 << 20

Batches = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]


class _Gathered:
    """Rows and rejected rows of a shard until there are enough for a batch."""

    def __init__(self, shard: Shard, fields: Fields, kept: pa.Schema, limit: int) -> None:
        self.shard, self.fields, self.kept, self.limit = shard, fields, kept, limit
        self.schema = pa.schema([*ROW, *kept])
        self._clear()

    def _clear(self) -> None:
        self.rows: list[int] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.kept_columns: list[list[object]] = [[] for _ in self.kept]
        self.rejected: list[tuple[str, str, str | None, str | None, str, str]] = []
        self.bytes = 0

    @property
    def full(self) -> bool:
        return len(self.texts) + len(self.rejected) >= BATCH_ROWS or self.bytes >= BATCH_BYTES

    def add(self, row: int, record: Record | BadRow) -> None:
        """Take a record apart into its rows."""
        try:
            if isinstance(record, BadRow):
                raise record
            if isinstance(record, str):
                self._row(row, f"{self.shard.name}#{row}", as_text(record, "the line", self.limit), [])
                return
            self._record(row, record)
        except BadRow as bad:
            self.reject(row, bad)

    def _record(self, row: int, record: dict[str, object]) -> None:
        fields = self.fields
        kept = [as_kept(lookup(record, field.name), field) for field in self.kept]
        if fields.id is None:
            own = f"{self.shard.name}#{row}"
        else:
            own = as_id(lookup(record, fields.id), fields.id)
        for suffix, value in texts_at(record, fields.text):
            try:
                self._row(row, own + suffix, as_text(value, fields.text, self.limit), kept)
            except BadRow as bad:
                bad.id = own + suffix
                self.reject(row, bad)

    def _row(self, row: int, own: str, text: str, kept: list[object]) -> None:
        self.rows.append(row)
        self.ids.append(own)
        self.texts.append(text)
        self.bytes += len(text)
        for column, value in zip(self.kept_columns, kept, strict=False):  # txt keeps nothing
            column.append(value)

    def reject(self, row: int, bad: BadRow) -> None:
        """Put down why a row cannot be embedded."""
        self.rejected.append((self.shard.name, str(row), bad.id, bad.text, bad.reason, bad.detail))
        self.bytes += len(bad.text or "")

    def take(self) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """All that was gathered, as (row batch, rejected batch)."""
        size = len(self.texts)
        columns = [
            _shard_column(self.shard, size),
            pa.array(self.rows, pa.int64()),
            pa.array(self.ids, pa.string()),
            pa.array(self.texts, pa.string()),
        ]
        for field, values in zip(self.kept, self.kept_columns, strict=True):
            columns.append(pa.array(values, field.type) if len(values) == size else pa.nulls(size, field.type))
        rejected = zip(*self.rejected, strict=True) if self.rejected else ([] for _ in REJECTED)
        batches = (
            pa.RecordBatch.from_arrays(columns, schema=self.schema),
            pa.RecordBatch.from_arrays([pa.array(values, pa.string()) for values in rejected], schema=REJECTED),
        )
        self._clear()
        return batches


def _shard_column(shard: Shard, size: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), size), pa.array([shard.name]))


def read_shard(shard: Shard, fields: Fields, kept: pa.Schema, max_text_bytes: int = MAX_TEXT_BYTES) -> Batches:
    """(rows, rejected rows) of a shard, as batches of the schemas ROW with `kept` behind and REJECTED.

    Damage in the shard's content ends it with one rejected row; what cannot be read at all (gone, forbidden) raises
    OSError with the shard's path.
    """
    gathered, row = _Gathered(shard, fields, kept, max_text_bytes), -1
    try:
        with FileSystems.open(shard.path, compression_type="uncompressed") as handle:
            try:
                if shard.format == "parquet":
                    for batch in parquet_batches(handle, fields):
                        yield from _parquet(batch, row + 1, gathered)
                        row += batch.num_rows
                else:
                    for row, record in READERS[shard.format](handle, shard.compression, fields, max_text_bytes):
                        gathered.add(row, record)
                        if gathered.full:
                            yield gathered.take()
            except DamagedShard as damage:
                gathered.reject(row + 1, BadRow("damaged shard", str(damage)))
    except OSError as error:
        raise OSError(error.errno, f"{shard.path} cannot be read: {error.strerror or error}") from error
    yield gathered.take()


def _parquet(batch: pa.RecordBatch, first: int, gathered: _Gathered) -> Batches:
    """A batch of a Parquet shard: column by column where nothing is wrong with any row, else row by row."""
    clean = _clean(batch, first, gathered)
    if clean is not None:
        yield clean, pa.RecordBatch.from_pylist([], REJECTED)
        return
    for row, record in enumerate(parquet_records(batch), first):
        gathered.add(row, record)
    yield gathered.take()


def _clean(batch: pa.RecordBatch, first: int, gathered: _Gathered) -> pa.RecordBatch | None:
    """The row batch of a Parquet batch in which every row is plainly good; None where a closer look is needed."""
    fields, size = gathered.fields, batch.num_rows
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if not {fields.text, *gathered.kept.names, *([fields.id] if fields.id else [])} <= columns.keys():
        return None
    try:
        text = _strings(columns[fields.text])
        own = _strings(columns[fields.id]) if fields.id else None
        kept = [columns[field.name].cast(field.type) for field in gathered.kept]
        for column in (text, own, *kept):
            if column is not None:
                column.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    long = pc.greater(pc.binary_length(text), gathered.limit)
    if text.null_count or pc.any(pc.or_(blank, long)).as_py() or (own is not None and own.null_count):
        return None
    rows = pa.array(range(first, first + size), pa.int64())
    if own is None:
        own = pc.binary_join_element_wise(f"{gathered.shard.name}#", rows.cast(pa.string()), "")
    columns_out = [_shard_column(gathered.shard, size), rows, own, text, *kept]
    return pa.RecordBatch.from_arrays(columns_out, schema=gathered.schema)


def _strings(column: pa.Array) -> pa.StringArray:
    """A column of texts or whole numbers as strings; ArrowException for anything else."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        raise pa.ArrowInvalid(f"{kind} is neither text nor a whole number")
    return column.cast(pa.string())


class _ReadShard(beam.DoFn):  # type: ignore[misc]
    """A shard -> its row batches; on "rejected" the rejected ones, on "read" (shard, rows found in it)."""

    def __init__(self, fields: Fields, kept: pa.Schema, max_text_bytes: int) -> None:
        self.fields, self.kept, self.max_text_bytes = fields, kept.serialize().to_pybytes(), max_text_bytes

    def process(self, shard: Shard) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Read the shard as a stream."""
        kept, total, began = pa.ipc.read_schema(pa.py_buffer(self.kept)), 0, time.perf_counter()
        for rows, rejected in read_shard(shard, self.fields, kept, self.max_text_bytes):
            total += rows.num_rows + rejected.num_rows
            count("rows_read", rows.num_rows + rejected.num_rows)
            count("read_msecs", round(1000 * (time.perf_counter() - began)))
            if rows.num_rows:
                yield rows
            if rejected.num_rows:
                yield beam.pvalue.TaggedOutput("rejected", rejected)
            began = time.perf_counter()
        yield beam.pvalue.TaggedOutput("read", (shard.name, total))


class ReadShards(beam.PTransform):  # type: ignore[misc]
    """Shards -> `.rows` (row batches), `.rejected` (rejected batches) and `.read` ((shard, rows), one a shard)."""

    def __init__(self, fields: Fields, kept: pa.Schema, max_text_bytes: int = MAX_TEXT_BYTES) -> None:
        super().__init__()
        self.do = _ReadShard(fields, kept, max_text_bytes)

    def expand(self, shards: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Read each shard on its own."""
        return shards | "Read" >> beam.ParDo(self.do).with_outputs("rejected", "read", main="rows")
