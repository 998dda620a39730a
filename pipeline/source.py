"""Text shards to record batches: every row of every shard comes out once, as a row or as a rejected one."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from typing import IO

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from .decompress import BLOCK_ROWS, DamagedShard
from .fields import BadRow, Fields, as_id, as_kept, as_text, is_text, lookup, texts_at
from .formats import READERS
from .lines import Record
from .metrics import count
from .parquet import BATCH_BYTES, column_at, parquet_batches, parquet_records, plain_values
from .reading import READ_TIMEOUT, open_to_read
from .records import REJECTED, ROW
from .shards import Shard, changed, state_of
from .stores import StoreError

MAX_TEXT_BYTES = 1 << 20

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

    def add(self, row: int, record: Record | BadRow, kept: Sequence[object] | None = None) -> Batches:
        """Take a record apart into its rows, and give out what was gathered whenever it is enough."""
        try:
            if isinstance(record, BadRow):
                raise record
            if isinstance(record, str):
                self._row(row, f"{self.shard.name}#{row}", as_text(record, "the line", self.limit), ())
            else:
                yield from self._record(row, record, kept)
        except BadRow as bad:
            self.reject(row, bad)
        if self._full():
            yield self.take()

    def _record(self, row: int, record: dict[str, object], kept: Sequence[object] | None) -> Batches:
        fields = self.fields
        if fields.id is None:
            own = f"{self.shard.name}#{row}"
        else:
            own = as_id(lookup(record, fields.id), fields.id, self.limit)
        try:
            if kept is None:
                kept = [lookup(record, field.name) for field in self.kept]
            kept = [as_kept(value, field) for value, field in zip(kept, self.kept, strict=True)]
            texts = texts_at(record, fields.text)
            for suffix, value in texts:
                try:
                    self._row(row, own + suffix, as_text(value, fields.text, self.limit), kept)
                except BadRow as bad:
                    bad.id = own + suffix
                    self.reject(row, bad)
                if self._full():  # a record may hold millions of texts
                    yield self.take()
        except BadRow as bad:
            bad.id = own
            raise

    def _row(self, row: int, own: str, text: str, kept: Sequence[object]) -> None:
        self.rows.append(row)
        self.ids.append(own)
        self.texts.append(text)
        self.bytes += len(text) + len(own)
        for column, value in zip(self.kept_columns, kept, strict=False):  # txt keeps nothing
            column.append(value)
            self.bytes += len(value) if isinstance(value, str) else 8

    def reject(self, row: int, bad: BadRow) -> None:
        """Put down why a row cannot be embedded."""
        self.rejected.append((self.shard.name, str(row), bad.id, bad.text, bad.reason, bad.detail))
        self.bytes += len(bad.text or "") + len(bad.id or "")

    def _full(self) -> bool:
        return len(self.texts) + len(self.rejected) >= BLOCK_ROWS or self.bytes >= BATCH_BYTES

    def then(self, clean: pa.RecordBatch) -> Batches:
        """What was gathered, if anything was, and behind it a batch that had no need to be."""
        if self.texts or self.rejected:
            yield self.take()
        yield clean, _NONE

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
            columns.append(_column(values, field.type) if len(values) == size else pa.nulls(size, field.type))
        rejected = zip(*self.rejected, strict=True) if self.rejected else ([] for _ in REJECTED)
        batches = (
            pa.RecordBatch.from_arrays(columns, schema=self.schema),
            pa.RecordBatch.from_arrays([pa.array(values, pa.string()) for values in rejected], schema=REJECTED),
        )
        self._clear()
        return batches


def _shard_column(shard: Shard, size: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), size), pa.array([shard.name]))


def _column(values: list[object], kind: pa.DataType) -> pa.Array:
    """Values, or arrays of one where they come out of Parquet."""
    if not any(isinstance(value, pa.Array) for value in values):
        return pa.array(values, kind)
    return pa.concat_arrays([value if isinstance(value, pa.Array) else pa.array([value], kind) for value in values])


def read_shard(
    shard: Shard,
    fields: Fields,
    kept: pa.Schema,
    max_text_bytes: int = MAX_TEXT_BYTES,
    read_timeout: float = READ_TIMEOUT,
) -> Batches:
    """(rows, rejected rows) of a shard, as batches of the schemas ROW with `kept` behind and REJECTED.

    Damage in the shard's content ends it with one rejected row; what cannot be read at all (gone, forbidden, or nothing
    came for `read_timeout` seconds) raises OSError with the shard's path.
    """
    gathered = _Gathered(shard, fields, kept, max_text_bytes)
    try:
        with open_to_read(shard.path, read_timeout) as handle:
            yield from _read(handle, gathered)
    except StoreError:
        raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{shard.path} cannot be read: {error.strerror or error}") from error
    yield gathered.take()


def _read(handle: IO[bytes], gathered: _Gathered) -> Batches:
    shard, fields, row = gathered.shard, gathered.fields, 0
    try:
        if shard.format == "parquet":
            for row, batch in parquet_batches(handle, fields):
                if isinstance(batch, BadRow):
                    yield from gathered.add(row, batch)
                    row += 1
                    continue
                clean = _clean_parquet(batch, row, gathered)
                if clean is None:
                    values = [_kept_values(batch, field) for field in gathered.kept]
                    for at, record in enumerate(parquet_records(batch)):
                        yield from gathered.add(row + at, record, [column[at] for column in values])
                else:
                    yield from gathered.then(clean)
                row += batch.num_rows
        else:
            for row, block in READERS[shard.format](handle, shard.compression, fields, gathered.limit):
                clean = _clean_block(block, row, gathered)
                if clean is None:
                    for at, found in enumerate(block, row):
                        yield from gathered.add(at, found)
                else:
                    yield from gathered.then(clean)
                row += len(block)
    except DamagedShard as damage:
        gathered.reject(row, BadRow("damaged shard", str(damage)))


_NONE = pa.RecordBatch.from_pylist([], REJECTED)
# The types of Python values that a column takes as they are.
_TAKES: dict[pa.DataType, set[type]] = {
    pa.string(): {str, type(None)},
    pa.int64(): {int, type(None)},
    pa.float64(): {float, int, type(None)},
    pa.bool_(): {bool, type(None)},
}


def _clean_block(block: list[Record | BadRow], first: int, gathered: _Gathered) -> pa.RecordBatch | None:
    """The row batch of a block in which every row is plainly good; None where a closer look is needed."""
    fields, own = gathered.fields, None
    try:
        if gathered.shard.format == "txt":
            kept = [pa.nulls(len(block), field.type) for field in gathered.kept]
            return _clean(pa.array(block, pa.string()), None, kept, first, gathered)
        texts = [record[fields.text] for record in block]  # type: ignore[index]  # what it may be instead, fails
        if set(map(type, texts)) != {str}:
            return None
        if fields.id is not None:
            ids = [record[fields.id] for record in block]  # type: ignore[index]
            types = set(map(type, ids))
            if not types <= {str, int}:
                return None
            own = pa.array(ids if types == {str} else list(map(str, ids)), pa.string())
        kept = []
        for field in gathered.kept:
            values = [record[field.name] for record in block]  # type: ignore[index]
            if not set(map(type, values)) <= _TAKES.get(field.type, set()):
                return None
            kept.append(pa.array(values, field.type))
        return _clean(pa.array(texts, pa.string()), own, kept, first, gathered)
    except (KeyError, TypeError, UnicodeEncodeError, OverflowError, pa.ArrowException):
        return None


def _clean_parquet(batch: pa.RecordBatch, first: int, gathered: _Gathered) -> pa.RecordBatch | None:
    """As _clean_block, for a batch of a Parquet shard."""
    fields = gathered.fields
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if not {fields.text, *gathered.kept.names, *([fields.id] if fields.id else [])} <= columns.keys():
        return None
    try:
        text = _strings(columns[fields.text])
        own = _strings(columns[fields.id], numbers=True) if fields.id else None
        kept = [columns[field.name].cast(field.type) for field in gathered.kept]
        for column in (text, own, *kept):
            if column is not None:
                column.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return _clean(text, own, kept, first, gathered)


def _clean(
    text: pa.StringArray, own: pa.StringArray | None, kept: list[pa.Array], first: int, gathered: _Gathered
) -> pa.RecordBatch | None:
    """The row batch of these columns, where none of their rows is to be rejected."""
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    long = pc.greater(pc.binary_length(text), gathered.limit)
    if text.null_count or pc.any(pc.or_(blank, long)).as_py():
        return None
    if own is not None and (own.null_count or (pc.max(pc.binary_length(own)).as_py() or 0) > gathered.limit):
        return None
    rows = pa.array(range(first, first + len(text)), pa.int64())
    if own is None:
        own = pc.binary_join_element_wise(f"{gathered.shard.name}#", rows.cast(pa.string()), "")
    columns = [_shard_column(gathered.shard, len(text)), rows, own, text, *kept]
    return pa.RecordBatch.from_arrays(columns, schema=gathered.schema)


def _strings(column: pa.Array, *, numbers: bool = False) -> pa.StringArray:
    """A column of texts, or of whole numbers where they may be, as strings; ArrowException for anything else."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (is_text(kind) or binary or (numbers and pa.types.is_integer(kind))):
        raise pa.ArrowInvalid(f"{kind} is not text")
    return column.cast(pa.string())


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


class _ReadShard(beam.DoFn):  # type: ignore[misc]
    """A shard -> its row batches; on "rejected" the rejected ones, on "read" (shard, rows found in it, seconds)."""

    def __init__(self, fields: Fields, kept: pa.Schema, max_text_bytes: int, read_timeout: float) -> None:
        self.fields, self.kept = fields, kept.serialize().to_pybytes()
        self.max_text_bytes, self.read_timeout = max_text_bytes, read_timeout

    def process(self, shard: Shard) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Read the shard as a stream."""
        kept, total, seconds = pa.ipc.read_schema(pa.py_buffer(self.kept)), 0, 0.0
        before = state_of(shard)
        began = time.perf_counter()
        for rows, rejected in read_shard(shard, self.fields, kept, self.max_text_bytes, self.read_timeout):
            total += rows.num_rows + rejected.num_rows
            count("rows_read", rows.num_rows + rejected.num_rows)
            seconds += time.perf_counter() - began
            if rows.num_rows:
                yield rows
            if rejected.num_rows:
                yield beam.pvalue.TaggedOutput("rejected", rejected)
            began = time.perf_counter()
        seconds += time.perf_counter() - began
        count("read_msecs", round(1000 * seconds))
        if state_of(shard) != before:
            raise changed(shard)
        yield beam.pvalue.TaggedOutput("read", (shard.name, total, seconds))


class ReadShards(beam.PTransform):  # type: ignore[misc]
    """Shards -> `.rows` (row batches), `.rejected` (rejected batches) and `.read` ((shard, rows, seconds), one a shard)."""

    def __init__(
        self,
        fields: Fields,
        kept: pa.Schema,
        max_text_bytes: int = MAX_TEXT_BYTES,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        super().__init__()
        self.do = _ReadShard(fields, kept, max_text_bytes, read_timeout)

    def expand(self, shards: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Read each shard on its own."""
        return shards | "Read" >> beam.ParDo(self.do).with_outputs("rejected", "read", main="rows")
