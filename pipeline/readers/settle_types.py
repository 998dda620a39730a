"""The types of kept fields that only the values themselves show: settled when all shards were read, applied to their rows.

While rows are read, a value that does not fit its column is beside it, in UNSETTLED. Readers report the kinds of values
that they have seen. These are few, so what they add up to is a side input of the steps behind the shuffle.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..schemas import UNSETTLED
from .exact_cast import cast_exactly, is_spelled_alike, may_be_equal
from .fields import Fields
from .infer_schema import KeptTypes, no_field
from .kept_types import Unfit, as_kept, common_type, type_remedy
from .shard import InputError

Kinds = dict[tuple[str, str], str]  # (name of the kept field, kind) to the place of its first value


@dataclass(frozen=True)
class SettledTypes:
    """The types of all kept fields.

    Attributes:
        fields: The fields as given.
        schema: Their columns, as an IPC message: a pickled schema forgets which elements are not null.
        without_values: The names of those without any value.
        widened: The names of those with another type than in the files that are carried over.
    """

    fields: Fields
    schema: bytes
    without_values: frozenset[str]
    widened: frozenset[str]

    @property
    def kept(self) -> pa.Schema:
        """The columns of the kept fields in part files."""
        return pa.ipc.read_schema(pa.py_buffer(self.schema))


def merge_kinds(found: Iterable[Kinds]) -> Kinds:
    """Return the kinds of all values, each with the first place by name."""
    merged: Kinds = {}
    for kinds in found:
        for key, place in kinds.items():
            merged[key] = min(place, merged.get(key, place))
    return merged


def settle_types(kinds: Kinds, fields: Fields, types: KeptTypes) -> list[SettledTypes]:
    """Return the types of the kept fields for values of all kinds that were read. Raises InputError if one has none."""
    columns = list[pa.Field]()
    for field, column in zip(fields.kept, types.schema, strict=True):
        kind = column.type
        if field.name in types.open:
            read = {key: place for (name, key), place in sorted(kinds.items()) if name == field.name}
            kind = common_type(field, {**types.open[field.name], **read})
            if field.name in types.missing and pa.types.is_null(kind):
                raise no_field([field.path], types.names)
        columns.append(column.with_type(kind))
    final = KeptTypes(pa.schema(columns)).final
    pairs = zip(types.stored or final, final, strict=True)
    widened = frozenset(before.name for before, now in pairs if before.type != now.type)
    nulls = frozenset(column.name for column in columns if pa.types.is_null(column.type))
    return [SettledTypes(fields, final.serialize().to_pybytes(), nulls, widened)]


def can_widen(stored: pa.Schema, final: pa.Schema, without_values: Collection[str]) -> bool:
    """Return whether apply_types may give columns in files, of `stored`, the types of `final`.

    Those `without_values` have no value. A single value may still not fit: then apply_types names it.
    """
    return stored.names == final.names and all(
        before.name in without_values
        or (may_be_equal(before.type, now.type) and is_spelled_alike(before.type, now.type))
        for before, now in zip(stored, final, strict=True)
    )


def apply_types(batch: pa.RecordBatch, types: SettledTypes) -> pa.RecordBatch:
    """Return rows with the settled types of their kept fields, and without UNSETTLED. Raises InputError as settle_types."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    others: dict[int, Mapping[str, object]] = {}
    if UNSETTLED.name in columns and (texts := columns.pop(UNSETTLED.name)).null_count < len(texts):
        others = {row: json.loads(text) for row, text in enumerate(texts.to_pylist()) if text is not None}
    for number, field in enumerate(types.kept):
        try:
            column = columns[field.name]
            column = column if column.type == field.type else cast_exactly(column, field.type)
            found = {row: values[str(number)] for row, values in others.items() if str(number) in values}
            if found:
                column = _replace(column, found, field)
        except pa.ArrowException:
            raise _does_not_fit(batch, field, types) from None
        columns[field.name] = column
    fields = [types.kept.field(name) if name in types.kept.names else batch.schema.field(name) for name in columns]
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields, batch.schema.metadata))


def _replace(column: pa.Array, found: Mapping[int, object], field: pa.Field) -> pa.Array:
    """Return a column with other values in some rows."""
    (kept,) = Fields(keep=(f"{field.name}={field.name}",)).kept
    values = [as_kept(value, kept, field) for value in found.values()]
    if any(isinstance(value, Unfit) for value in values):
        raise pa.ArrowInvalid("a value does not fit")
    mask = pa.array([row in found for row in range(len(column))], pa.bool_())
    return pc.replace_with_mask(column, mask, pa.array(values, field.type))


def _does_not_fit(batch: pa.RecordBatch, field: pa.Field, types: SettledTypes) -> InputError:
    """Return the error that names the first row whose value cannot get the type of a field."""
    column, row = batch.column(field.name), 0
    for row in range(batch.num_rows):
        try:
            cast_exactly(column.slice(row, 1), field.type)
        except pa.ArrowException:
            break
    name = "row" if "row" in batch.schema.names else "id"
    place = f"{batch.column('shard')[row].as_py()}, {name} {batch.column(name)[row].as_py()}"
    remedy = next(type_remedy(kept) for kept in types.fields.kept if kept.name == field.name)
    return InputError(
        f"{place}: kept field {field.name!r} is {column[row]} ({column.type}), and its column, {field.type}, holds no such "
        f"value: give another type, as in {remedy}, or leave it out"
    )
