"""BatchBuilder: collects the rows and rejected rows of a part of a shard into record batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from ...model.head import BadRow
from ..content import MediaContent
from ..schemas import CONTENT_HASH, SOURCE, UNSETTLED, content_fields, rejected_schema, row_schema
from .compression import BLOCK_ROWS
from .content_spill import ContentSpill
from .fields import MISSING, NoTexts, as_id, lookup, texts_at
from .kept_types import FITTING, LARGE, Unfit, as_kept, cast_given, kind_of, type_remedy, unsettled
from .notes import ShardNotes
from .read_settings import ReadSettings
from .shard import BATCH_BYTES, Batches, InputError, Part, Record

REFERENCE_BYTES = 300  # about, of a reference to a content

FEW_ROWS = 16  # which Arrow's functions cannot check faster than Python does

# The types of Python values that a column of a type takes unchanged.
_EXACT_TYPES: dict[pa.DataType, set[type]] = {
    pa.string(): {str, type(None)},
    pa.int64(): {int, type(None)},
    pa.float64(): {float, int, type(None)},
    pa.bool_(): {bool, type(None)},
    pa.null(): {type(None)},
}


class BatchBuilder:
    """Rows and rejected rows of a part of a shard, collected until they fill a batch.

    A block of strings without any row to reject becomes a batch at once, without a look at each row.

    Attributes:
        next_row: The number of the row after the last one added.
        damage: Why the shard was not read to its end.
        without_texts: Documents whose list of contents is missing or empty.
        notes: What its reader notices.
        kinds: The kinds of values of the kept fields whose types may widen, each with the row of its first value.
        spill: Copies of contents that cannot be read by themselves.
    """

    def __init__(self, part: Part, settings: ReadSettings) -> None:
        self.part, self.shard, self.settings = part, part.shard, settings
        self.fields, self.kept, self.limit = settings.fields, settings.kept, settings.limit
        self.schema, self.rejected_schema = row_schema(settings.head, settings.columns), rejected_schema(settings.head)
        self.kinds: dict[tuple[str, str], int] = {}
        self.empty_is_null = self.shard.format in ("csv", "tsv")
        self.content_fields = content_fields(settings.head)
        self.content_type = self.content_fields[0].type
        self.keeps_strings = settings.head.keeps_strings
        self.next_row = part.row
        self.damage: str | None = None
        self.without_texts = 0
        self.notes = ShardNotes(part.shard.name)
        self.spill = ContentSpill(settings.spill)
        self._none_rejected = pa.RecordBatch.from_pylist([], self.rejected_schema)
        self._clear()

    def _clear(self) -> None:
        self.rows: list[int] = []
        self.shards: list[str] = []
        self.ids: list[str] = []
        self.contents: list[object] = []
        self.kept_columns: list[list[object]] = [[] for _ in self.settings.columns]
        self.rejected: list[tuple[object, ...]] = []
        self.bytes = 0

    def turn_to(self, part: Part) -> None:
        """Add rows of another shard from now on, by `add_content` and `reject_next`; batches may have rows of several."""
        self.part, self.shard, self.next_row = part, part.shard, part.row

    def add_block(self, first: int, block: list[Record | BadRow]) -> Batches:
        """Add the records from row `first` on; yield the batches that this completes."""
        batch = self._rows_of_block(first, block) if len(block) > FEW_ROWS else None
        if batch is not None:
            yield from self.pass_through(first, batch)
            return
        yield from self.add_records(first, block)

    def add_records(
        self,
        first: int,
        records: Iterable[Record | BadRow],
        kept: Sequence[Sequence[object]] | None = None,
        schema: pa.Schema | None = None,
    ) -> Batches:
        """Add records one by one; yield the batches that this completes.

        Args:
            first: The number of the first row.
            records: The records of the rows.
            kept: The values of each kept field; without it they are looked up in the records.
            schema: The columns that the records were made of, if there are any.
        """
        for at, record in enumerate(records):
            yield from self.add(first + at, record, None if kept is None else [column[at] for column in kept])

    def add(self, row: int, record: Record | BadRow, kept: Sequence[object] | None = None) -> Batches:
        """Add the contents of a record; yield the batches that this completes.

        `kept` are the values of the kept fields; without it they are looked up in the record.
        """
        self.next_row = row + 1
        try:
            if isinstance(record, BadRow):
                raise record
            if isinstance(record, str):
                self._add_row(row, f"{self.shard.name}#{row}", self.settings.content(record, "the line"), (), 0)
            else:
                yield from self._add_record(row, record, kept)
        except BadRow as bad:
            self.reject(row, bad)
        if self._is_full():
            yield self.flush()

    def add_content(
        self, row_id: str, content: MediaContent, kept: Sequence[object], row: int | None = None
    ) -> Batches:
        """Add a row whose content a reader has looked at, by default the next one; yield the batch that this completes."""
        if row is None:
            row, self.next_row = self.next_row, self.next_row + 1
        self.rows.append(row)
        self.shards.append(self.shard.name)
        self.ids.append(row_id)
        self.contents.append(content)
        self.bytes += REFERENCE_BYTES + len(row_id) + sum(map(_bytes_of, kept))
        self._keep(row, kept)
        if self._is_full():
            yield self.flush()

    def reject_next(self, bad: BadRow, known: Sequence[object] = ()) -> Batches:
        """Add the next row as a rejected one, with arguments as `reject` has them; yield the batch that this completes."""
        self.reject(self.next_row, bad, known)
        self.next_row += 1
        if self._is_full():
            yield self.flush()

    def _add_record(self, row: int, record: dict[str, object], kept: Sequence[object] | None) -> Batches:
        for number in range(len(self.fields.texts)):
            try:
                yield from self._add_texts(row, record, number, kept)
            except NoTexts:
                self.without_texts += 1
            except BadRow as bad:
                self.reject(row, bad)

    def _add_texts(self, row: int, record: dict[str, object], number: int, kept: Sequence[object] | None) -> Batches:
        """Add the rows of one content field of a record."""
        field = self.fields.texts[number]
        record_id = self._record_id(row, record, number)
        element_ids = _element_ids(record, field.id) if record_id is None else {}
        try:
            kept = self.kept_values(row, record, kept)
            kept_bytes = sum(map(_bytes_of, kept))
            for suffix, value in texts_at(record, field.text):
                if isinstance(value, NoTexts):
                    self.without_texts += 1
                    continue
                row_id = None if record_id is None else record_id + suffix
                try:
                    if row_id is None:
                        row_id = as_id(element_ids.get(suffix, MISSING), str(field.id), self.limit)
                    self._add_value(row, row_id, value, field.text, record=record, kept=kept, kept_bytes=kept_bytes)
                except BadRow as bad:
                    bad.id = row_id
                    self.reject(row, bad)
                if self._is_full():  # a record may contain millions of contents
                    yield self.flush()
        except BadRow as bad:
            bad.id = record_id
            raise

    def kept_values(self, row: int, record: dict[str, object], kept: Sequence[object] | None = None) -> list[object]:
        """Return the values of a record for the kept columns; an Unfit is one that ends the run if the row is added."""
        if kept is None:
            kept = [lookup(record, field.path) for field in self.fields.kept]
        values, others = list[object](), dict[int, object]()
        for number, (value, field, column) in enumerate(zip(kept, self.fields.kept, self.kept, strict=True)):
            if value is MISSING or value is None or isinstance(value, pa.Array):
                values.append(None if value is MISSING else value)
                continue
            if isinstance(value, BadRow) and not isinstance(value, Unfit):
                raise value
            if column.name in self.settings.open:
                kind = kind_of(value)
                self.kinds.setdefault((column.name, kind), row)
                if kind not in FITTING.get(column.type, ()):
                    others[number], value = value, None
            values.append(as_kept(value, field, column, empty_is_null=self.empty_is_null))
        return [*values, unsettled(others)] if self.settings.open else values

    def _record_id(self, row: int, record: dict[str, object], number: int) -> str | None:
        """Return the id of a record's contents, which their place in a list follows; None if each element has its own."""
        fields = self.fields.texts
        field, ids = fields[number], [other.id for other in fields[:number]]
        if field.id is not None and "[]" in field.id:
            return None
        if field.id is None:
            record_id = f"{self.shard.name}#{row}"
        else:
            record_id = as_id(lookup(record, field.id), field.id, self.limit)
        return f"{record_id}/{field.text.replace('[]', '')}" if field.id in ids else record_id

    def _add_value(
        self,
        row: int,
        row_id: str,
        value: object,
        path: str,
        *,
        record: dict[str, object],
        kept: Sequence[object],
        kept_bytes: int,
    ) -> None:
        """Add the row of the value at a path of a record. Raise BadRow if it is not a content."""
        self._add_row(row, row_id, self.settings.content(value, path), kept, kept_bytes)

    def _add_row(self, row: int, row_id: str, content: str | bytes, kept: Sequence[object], kept_bytes: int) -> None:
        self.rows.append(row)
        self.ids.append(row_id)
        self.contents.append(content)
        self.bytes += len(content) + len(row_id) + kept_bytes
        self._keep(row, kept)

    def _keep(self, row: int, kept: Sequence[object]) -> None:
        for column, value in zip(
            self.kept_columns, kept, strict=False
        ):  # lines of txt have no kept fields, nor have files
            if isinstance(value, Unfit):
                self._end_run(row, value)
            column.append(value)

    def _end_run(self, row: int, unfit: Unfit) -> NoReturn:
        field = next(field for field in self.fields.kept if field.name == unfit.field)
        with self.settings.reports.errors():
            raise InputError(
                f"{self.shard.path}, row {row}: {unfit.detail}: give another type, as in {type_remedy(field)}, or leave it "
                f"out"
            )

    def reject(self, row: int, bad: BadRow, known: Sequence[object] = ()) -> None:
        """Add a rejected row, with what is known of its content: the values of the first content columns."""
        if not known and pa.types.is_string(self.content_type):
            known = (bad.excerpt,)
        missing = [None] * (len(self.content_fields) - len(known))
        self.rejected.append((self.shard.name, str(row), bad.id, *known, *missing, bad.reason, bad.detail))
        self.bytes += len(bad.excerpt or "") + len(bad.id or "")

    def _is_full(self) -> bool:
        return len(self.contents) + len(self.rejected) >= BLOCK_ROWS or self.bytes >= BATCH_BYTES

    def pass_through(self, first: int, batch: pa.RecordBatch) -> Batches:
        """Yield what was collected, if anything was, then a batch of good rows that begins with row `first`."""
        self.next_row = first + batch.num_rows
        if self.contents or self.rejected:
            yield self.flush()
        yield batch, self._none_rejected

    def flush(self) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return everything collected as (row batch, rejected batch)."""
        size = len(self.contents)
        columns = [
            self._shard_column(size),
            pa.array(self.rows, pa.int64()),
            pa.array(self.ids, pa.string()),
            *self._content_columns(),
        ]
        for field, values in zip(self.settings.columns, self.kept_columns, strict=True):
            columns.append(_column(values, field.type) if len(values) == size else pa.nulls(size, field.type))
        if self.settings.head.by_reference:
            columns.append(pa.array([content.hash for content in self._references()], CONTENT_HASH.type))
        rejected = zip(*self.rejected, strict=True) if self.rejected else ([] for _ in self.rejected_schema)
        columns_rejected = [
            pa.array(values, field.type) for values, field in zip(rejected, self.rejected_schema, strict=True)
        ]
        batches = (
            pa.RecordBatch.from_arrays(columns, schema=self.schema),
            pa.RecordBatch.from_arrays(columns_rejected, schema=self.rejected_schema),
        )
        self._clear()
        return batches

    def _references(self) -> list[MediaContent]:
        return self.contents  # type: ignore[return-value]

    def _content_columns(self) -> list[pa.Array]:
        """Return the contents that were collected, as row_schema has them."""
        if not self.settings.head.by_reference:
            return [pa.array(self.contents, self.content_type)]
        contents = self._references()
        values = [[content.file for content in contents]]
        values += [list(column) for column in zip(*(content.values for content in contents), strict=True)]
        values += [[]] * (len(self.content_fields) - len(values))  # without a row
        arrays = [pa.array(column, field.type) for column, field in zip(values, self.content_fields, strict=True)]
        return [*arrays, pa.array([content.source.as_row() for content in contents], SOURCE.type)]

    def _shard_column(self, size: int) -> pa.DictionaryArray:
        if self.shards:
            return pa.array(self.shards, pa.string()).dictionary_encode()
        return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), size), pa.array([self.shard.name]))

    def _rows_of_block(self, first: int, block: list[Record | BadRow]) -> pa.RecordBatch | None:
        """Return the row batch of a block, or None if a row must be looked at by itself."""
        fields, ids = self.fields, None
        if not self.keeps_strings:
            return None
        try:
            if block and isinstance(block[0], str):
                kept = [pa.nulls(len(block), field.type) for field in self.kept]
                return self.checked_batch(first, pa.array(block, pa.string()), None, kept)
            if not fields.is_plain:
                return None
            contents = [record[fields.text] for record in block]  # type: ignore[index]  # BadRow raises TypeError
            if set(map(type, contents)) != {str}:
                return None
            if fields.id is not None:
                values = [record[fields.id] for record in block]  # type: ignore[index]
                types = set(map(type, values))
                if not types <= {str, int}:
                    return None
                ids = pa.array(values if types == {str} else list(map(str, values)), pa.string())
            kept = []
            for field, column in zip(fields.kept, self.kept, strict=True):
                values = [record[field.path] for record in block]  # type: ignore[index]
                types = set(map(type, values))
                if types <= _EXACT_TYPES.get(column.type, set()):
                    kept.append(pa.array(values, column.type))
                    if column.name in self.settings.open:
                        self._add_kinds(column.name, first, values, types, kept[-1])
                elif field.type and types <= {str, type(None)}:
                    strings = pa.array(values, pa.string())
                    kept.append(cast_given(strings, column.type, empty_is_null=self.empty_is_null))
                else:
                    return None
            return self.checked_batch(first, pa.array(contents, pa.string()), ids, kept)
        except (KeyError, TypeError, UnicodeEncodeError, OverflowError, pa.ArrowException):
            return None

    def _add_kinds(self, name: str, first: int, values: list[Any], types: set[type], column: pa.Array) -> None:
        """Add the kinds of the values of a kept field, of these types and as a column, in the rows from `first` on."""
        kinds = {"bool": bool in types, "double": float in types, "int64": int in types}
        ends = pc.min_max(column).as_py() if pa.types.is_integer(column.type) and int in types else {"min": 0, "max": 0}
        kinds[LARGE] = max(-ends["min"], ends["max"]) > 1 << 53
        for kind, occurs in kinds.items():
            if occurs and (name, kind) not in self.kinds:
                found = (row for row, value in enumerate(values, first) if value is not None and kind_of(value) == kind)
                self.kinds[name, kind] = next(found, first)

    def checked_batch(
        self, first: int, contents: pa.StringArray, ids: pa.StringArray | None, kept: list[pa.Array]
    ) -> pa.RecordBatch | None:
        """Return the row batch of these columns, or None if a row of them must be rejected."""
        blank = pc.equal(pc.utf8_trim_whitespace(contents), "")
        long = pc.greater(pc.binary_length(contents), self.limit)
        if contents.null_count or pc.any(pc.or_(blank, long)).as_py():
            return None
        if ids is not None and (ids.null_count or (pc.max(pc.binary_length(ids)).as_py() or 0) > self.limit):
            return None
        if self.settings.open:
            kept = [*kept, pa.nulls(len(contents), UNSETTLED.type)]
        rows = pa.array(range(first, first + len(contents)), pa.int64())
        if ids is None:
            ids = pc.binary_join_element_wise(f"{self.shard.name}#", rows.cast(pa.string()), "")
        return pa.RecordBatch.from_arrays(
            [self._shard_column(len(contents)), rows, ids, contents, *kept], schema=self.schema
        )


def _element_ids(record: dict[str, object], path: str | None) -> dict[str, object]:
    """Return the ids of a record's elements, by the suffix that texts_at gives the same elements."""
    try:
        return dict(texts_at(record, path or ""))
    except BadRow:
        return {}


def _bytes_of(value: object) -> int:
    """Return about how many bytes a kept value takes in its column."""
    if isinstance(value, pa.Array):
        return int(value.nbytes)
    return len(value) if isinstance(value, str) else 8


def _column(values: list[object], kind: pa.DataType) -> pa.Array:
    """Return the column of these values; those of Parquet are arrays of length 1."""
    if not any(isinstance(value, pa.Array) for value in values):
        return pa.array(values, kind)
    return pa.concat_arrays([value if isinstance(value, pa.Array) else pa.array([value], kind) for value in values])
