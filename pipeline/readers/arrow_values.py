"""Columns of Arrow: their types at a path, their texts, their values as Python objects, and the bytes of their rows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...model.head import BadRow
from ..flags import KeptField
from .exact_cast import cast_exactly
from .field_types import is_list, is_uuid
from .fields import Fields, is_text
from .kept_types import Unfit, cast_given
from .parquet_limits import VALUE_BYTES
from .shard import BATCH_BYTES


def needed_columns(schema: pa.Schema, fields: Fields) -> list[str]:
    """Return the columns with which a path of the fields begins."""
    return [name for name in schema.names if any(_begins(path, name) for path in fields.columns)]


def _begins(path: str, name: str) -> bool:
    return path == name or path.startswith((f"{name}.", f"{name}[]"))


def repeated_name(fields: Iterable[pa.Field], path: str) -> str | None:
    """Return the path of a column, or of a field of a struct, that `path` leads to and that occurs twice, or None."""
    fields = list(fields)
    times = Counter(field.name for field in fields)
    for field in fields:
        if not _begins(path, field.name):
            continue
        if times[field.name] > 1:
            return str(field.name)
        kind, rest = value_type(field.type), path.removeprefix(field.name)
        while rest.startswith("[]") and is_list(kind):
            kind, rest = value_type(kind.value_type), rest.removeprefix("[]")
        rest = rest.removeprefix(".")
        if pa.types.is_struct(kind) and (name := repeated_name(kind, rest)):
            return f"{path.removesuffix(rest)}{name}"
    return None


def type_at(fields: Iterable[pa.Field], path: str) -> pa.DataType | None:
    """Return the type at a dotted path, through lists at "[]", or None if the path does not exist."""
    before, through, rest = path.partition("[]")
    kind = _type_before_list(fields, before)
    if kind is None or not through:
        return kind
    if not is_list(kind):
        return None
    element = value_type(kind.value_type)
    if not rest:
        return element
    return type_at(element, rest.removeprefix(".")) if pa.types.is_struct(element) else None


def binary_paths(schema: pa.Schema, fields: Fields) -> frozenset[str]:
    """Return the paths of the content fields that have bytes, not text."""
    kinds = {field.text: type_at(schema, field.text) for field in fields.texts}
    return frozenset(path for path, kind in kinds.items() if kind is not None and not is_text(kind))


def _type_before_list(fields: Iterable[pa.Field], path: str) -> pa.DataType | None:
    types = {field.name: field.type for field in fields}
    if path in types:
        return value_type(types[path])
    for head in _heads(types, path):
        if pa.types.is_struct(types[head]):
            kind = _type_before_list(types[head], path.removeprefix(f"{head}."))
            if kind is not None:
                return kind
    return None


def _heads(names: Iterable[str], path: str) -> list[str]:
    """Return the names with which a dotted path begins, in the order in which `lookup` tries them."""
    return sorted((name for name in names if path.startswith(f"{name}.")), key=len)


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values: of a dictionary-encoded one, that of the dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def column_at(batch: pa.RecordBatch, path: str) -> pa.Array | None:
    """Return the column at a dotted path, as `lookup` does for a record, or None."""
    return _column_at(dict(zip(batch.schema.names, batch.columns, strict=True)), path)


def _column_at(columns: Mapping[str, pa.Array], path: str) -> pa.Array | None:
    if path in columns:
        return columns[path]
    for head in _heads(columns, path):
        if pa.types.is_struct(columns[head].type):
            names = [field.name for field in columns[head].type]
            parts = dict(zip(names, columns[head].flatten(), strict=True))
            column = _column_at(parts, path.removeprefix(f"{head}."))
            if column is not None:
                return column
    return None


def as_strings(column: pa.Array, *, ids: bool = False) -> pa.StringArray:
    """Return a column of texts as strings, with `ids` also one of whole numbers or UUIDs. Raises ArrowException."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if ids and is_uuid(kind):
        return pa.array(
            [None if value is None else _uuid_text(value) for value in column.storage.to_pylist()], pa.string()
        )
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (is_text(kind) or binary or (ids and pa.types.is_integer(kind))):
        raise pa.ArrowInvalid(f"{kind} is not text")
    return column.cast(pa.string())


def _uuid_text(value: bytes) -> str:
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def records_of(batch: pa.RecordBatch) -> list[dict[str, object]]:
    """Return a batch as records; in a column that is not UTF-8 throughout, texts are bytes."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [plain_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def cast_kept(column: pa.Array, field: KeptField, kind: pa.DataType) -> pa.Array:
    """Return a column of a kept field as `kind`. Raises ArrowException if a value is not exactly one of that type."""
    return cast_given(column, kind) if field.type else cast_exactly(column, kind)


def kept_values(batch: pa.RecordBatch, kept: KeptField, field: pa.Field) -> list[object]:
    """Return the values of a kept field: texts as str, others as arrays of length 1 and `field`'s type, which lose nothing.

    A BadRow instead of a value is one that does not fit.
    """
    column = column_at(batch, kept.path)
    if column is None:
        return [None] * batch.num_rows
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type) and is_text(field.type):
        return plain_values(column)
    try:
        column = cast_kept(column, kept, field.type)
    except pa.ArrowException:
        return [_kept_value(column.slice(row, 1), kept, field) for row in range(len(column))]
    return [column.slice(row, 1) for row in range(len(column))]


def _kept_value(value: pa.Array, kept: KeptField, field: pa.Field) -> pa.Array | BadRow:
    try:
        return cast_kept(value, kept, field.type)
    except pa.ArrowException as error:
        if "UTF8" in str(error):  # Arrow has no class of its own for it
            return BadRow("not UTF-8", f"kept field {field.name!r} cannot be decoded")
        return Unfit(field, value[0], value.type)


def plain_values(column: pa.Array) -> list[object]:
    """Return a column as Python values; a value that Python has no type for becomes an array of length 1."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain_values(column.dictionary_decode())
    if is_text(kind):
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError:
            binary = pa.binary() if pa.types.is_string_view(kind) else pa.large_binary()
            return list(column.cast(binary).to_pylist())
    if pa.types.is_struct(kind):
        parts = [plain_values(part) for part in column.flatten()]
        names = [field.name for field in kind]
        rows = zip(*parts, strict=True) if parts else ((),) * len(column)
        return [
            dict(zip(names, row, strict=True)) if valid else None
            for row, valid in zip(rows, _validity(column), strict=True)
        ]
    if is_list(kind):
        values = iter(plain_values(column.flatten()))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if length is None else list(itertools.islice(values, length)) for length in lengths]
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, KeyError):  # nanoseconds, years after 9999, unknown time zones
        return [column.slice(row, 1) if valid else None for row, valid in enumerate(_validity(column))]


def _validity(column: pa.Array) -> list[bool]:
    return list(column.is_valid().to_pylist())


def row_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return about how many bytes each row takes with its dictionaries expanded, int64 [n].

    `nbytes` counts a whole dictionary, of which a slice of a batch may use one value.
    """
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += _value_bytes(column)
    return sizes


def _value_bytes(column: pa.Array) -> NDArray[np.int64]:
    """Return about how many bytes each value of a column takes, int64 [n]."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        of_values = _value_bytes(column.dictionary)
        ends = pc.min_max(column.indices).as_py()
        if ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < len(of_values):
            raise ValueError(f"an index is outside of its dictionary of {len(of_values):,} values")
        longest = int(of_values.max(initial=0))
        if longest * len(column) <= BATCH_BYTES >> 4:  # small in any case
            return np.full(len(column), longest, np.int64)
        return np.asarray(pa.array(of_values).take(column.indices).fill_null(0))
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _value_bytes(column.cast(pa.large_binary()))
    if is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        lengths = pc.binary_length(column)
        return np.asarray(lengths.fill_null(0) if lengths.null_count else lengths).astype(np.int64)
    if pa.types.is_struct(kind):
        return sum((_value_bytes(part) for part in column.flatten()), np.zeros(len(column), np.int64))
    if is_list(kind):
        lengths = np.asarray(pc.list_value_length(column).cast(pa.int64()).fill_null(0))
        sums = np.concatenate([[0], np.cumsum(_value_bytes(column.flatten()))])
        ends = np.cumsum(lengths)
        return np.asarray(sums[ends] - sums[ends - lengths] + VALUE_BYTES * lengths)
    return np.full(len(column), column.nbytes // max(1, len(column)) + 1, np.int64)
