"""Rows and rejected rows of a shard, builder one by one until there are enough for a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ..schemas import REJECTED, ROW
from .base import Record
from .compression import BLOCK_ROWS
from .fields import BadRow, Fields, as_id, as_kept, as_text, is_text, lookup, texts_at
from .parquet import BATCH_BYTES
from .shards import Shard

Batches = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]

_NONE = pa.RecordBatch.from_pylist([], REJECTED)


class BatchBuilder:
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
        """Take a record apart into its rows, and give out what was builder whenever it is enough."""
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
            yield self.flush()

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
                    yield self.flush()
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

    def pass_through(self, clean: pa.RecordBatch) -> Batches:
        """What was builder, if anything was, and behind it a batch that had no need to be."""
        if self.texts or self.rejected:
            yield self.flush()
        yield clean, _NONE

    def flush(self) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """All that was builder, as (row batch, rejected batch)."""
        size = len(self.texts)
        columns = [
            shard_column(self.shard, size),
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


def shard_column(shard: Shard, size: int) -> pa.DictionaryArray:
    """The shard's name for `size` rows, spelled out once."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), size), pa.array([shard.name]))


def _column(values: list[object], kind: pa.DataType) -> pa.Array:
    """Values, or arrays of one where they come out of Parquet."""
    if not any(isinstance(value, pa.Array) for value in values):
        return pa.array(values, kind)
    return pa.concat_arrays([value if isinstance(value, pa.Array) else pa.array([value], kind) for value in values])


# The types of Python values that a column takes as they are.
_TAKES: dict[pa.DataType, set[type]] = {
    pa.string(): {str, type(None)},
    pa.int64(): {int, type(None)},
    pa.float64(): {float, int, type(None)},
    pa.bool_(): {bool, type(None)},
}


def rows_of_block(block: list[Record | BadRow], first: int, builder: BatchBuilder) -> pa.RecordBatch | None:
    """The row batch of a block in which every row is plainly good; None where a closer look is needed."""
    fields, own = builder.fields, None
    try:
        if builder.shard.format == "txt":
            kept = [pa.nulls(len(block), field.type) for field in builder.kept]
            return _checked(pa.array(block, pa.string()), None, kept, first, builder)
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
        for field in builder.kept:
            values = [record[field.name] for record in block]  # type: ignore[index]
            if not set(map(type, values)) <= _TAKES.get(field.type, set()):
                return None
            kept.append(pa.array(values, field.type))
        return _checked(pa.array(texts, pa.string()), own, kept, first, builder)
    except (KeyError, TypeError, UnicodeEncodeError, OverflowError, pa.ArrowException):
        return None


def rows_of_parquet(batch: pa.RecordBatch, first: int, builder: BatchBuilder) -> pa.RecordBatch | None:
    """As rows_of_block, for a batch of a Parquet shard."""
    fields = builder.fields
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if not {fields.text, *builder.kept.names, *([fields.id] if fields.id else [])} <= columns.keys():
        return None
    try:
        text = _strings(columns[fields.text])
        own = _strings(columns[fields.id], numbers=True) if fields.id else None
        kept = [columns[field.name].cast(field.type) for field in builder.kept]
        for column in (text, own, *kept):
            if column is not None:
                column.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return _checked(text, own, kept, first, builder)


def _checked(
    text: pa.StringArray, own: pa.StringArray | None, kept: list[pa.Array], first: int, builder: BatchBuilder
) -> pa.RecordBatch | None:
    """The row batch of these columns, where none of their rows is to be rejected."""
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    long = pc.greater(pc.binary_length(text), builder.limit)
    if text.null_count or pc.any(pc.or_(blank, long)).as_py():
        return None
    if own is not None and (own.null_count or (pc.max(pc.binary_length(own)).as_py() or 0) > builder.limit):
        return None
    rows = pa.array(range(first, first + len(text)), pa.int64())
    if own is None:
        own = pc.binary_join_element_wise(f"{builder.shard.name}#", rows.cast(pa.string()), "")
    columns = [shard_column(builder.shard, len(text)), rows, own, text, *kept]
    return pa.RecordBatch.from_arrays(columns, schema=builder.schema)


def _strings(column: pa.Array, *, numbers: bool = False) -> pa.StringArray:
    """A column of texts, or of whole numbers where they may be, as strings; ArrowException for anything else."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (is_text(kind) or binary or (numbers and pa.types.is_integer(kind))):
        raise pa.ArrowInvalid(f"{kind} is not text")
    return column.cast(pa.string())
