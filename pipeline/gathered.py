"""Rows and rejected rows of a shard, gathered one by one until there are enough for a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from .decompress import BLOCK_ROWS
from .fields import BadRow, Fields, as_id, as_kept, as_text, lookup, texts_at
from .lines import Record
from .parquet import BATCH_BYTES
from .records import REJECTED, ROW
from .shards import Shard

Batches = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]
_NONE = pa.RecordBatch.from_pylist([], REJECTED)


class Gathered:
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
