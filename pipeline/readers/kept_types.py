"""The one type of all values of a kept field, whatever shards they are in, and how a type that was given is applied."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from ...model.head import BadRow
from ..flags import KEPT_TYPES, KeptField
from .exact_cast import cast_exactly
from .field_types import becomes_text, is_list, kept_type
from .fields import NumberAsWritten, as_text, is_text
from .shard import InputError

# What a value or a column is: a type of Arrow, or a word for values of text formats, which have no declared type.
Kind: TypeAlias = "pa.DataType | str"

LARGE = "int64 beyond 2^53"  # a double may round it
TYPES = {"bool": pa.bool_(), "int64": pa.int64(), LARGE: pa.int64(), "double": pa.float64(), "string": pa.string()}

_UNITS = ("s", "ms", "us", "ns")

_ZONED = re.compile(r":\d\d(?:[.,]\d+)?\s*(?:[Zz]|[+-]\d\d:?(?:\d\d)?)$")  # the end of a time


def kind_of(value: object) -> str:
    """Return the kind of a value of a text format, in TYPES; what Arrow's scalars do not hold is kept as JSON text."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= 1 << 53:
            return "int64"
        return LARGE if -(1 << 63) <= value < 1 << 63 else "string"
    if isinstance(value, NumberAsWritten) and value.is_too_large:
        return "string"
    return "double" if isinstance(value, float) else "string"


def common_type(field: KeptField, kinds: Mapping[Kind, str], *, more: bool = False) -> pa.DataType:
    """Return the type that holds the values of all kinds exactly; null if all values are null.

    Args:
        field: The kept field.
        kinds: Its kinds, each with the place where it was found first.
        more: Whether others may follow: beside text, large integers and doubles are text.

    Raises:
        InputError: No type does.
    """
    types = [TYPES[kind] if isinstance(kind, str) else kind for kind in kinds]
    common = _common(types)
    if common is not None and (more or not (LARGE in kinds and pa.types.is_floating(common))):
        return common
    distinct = {str(kind): place for kind, place in kinds.items() if str(kind) != "null"}
    remedy = "leave it out, or embed the shards in separate runs"
    if common is not None or all(becomes_text(kept_type(kind) or kind) for kind in types):
        remedy = f"leave it out, or give a type that holds all values, as in {type_remedy(field)}"
    places = "; ".join(f"{kind} in {place}" for kind, place in distinct.items())
    raise InputError(
        f"kept field {field.name!r} has types without a common one: {', '.join(distinct)}; {remedy} ({places})"
    )


def type_remedy(field: KeptField) -> str:
    """Return the flag with which the values of a field become text."""
    return f"--keep_fields {'' if field.name == field.path else f'{field.name}='}{field.path}:string"


def _common(types: Iterable[pa.DataType]) -> pa.DataType | None:
    """Return the type that fits values of all types: numbers widen, times get the finest unit, others become strings.

    Returns null if there is no other type, and None if none fits.
    """
    plain = dict.fromkeys(kept_type(kind) or kind for kind in types)
    distinct = [kind for kind in plain if not pa.types.is_null(kind)]  # nulls fit any type
    if len(distinct) < 2:
        return distinct[0] if distinct else pa.null()
    if all(map(pa.types.is_struct, distinct)):
        return _common_struct(distinct)
    if all(map(is_list, distinct)):
        element = _common(kind.value_type for kind in distinct)
        sizes = {kind.list_size if pa.types.is_fixed_size_list(kind) else -1 for kind in distinct}
        size = sizes.pop() if len(sizes) == 1 else -1
        return None if element is None else pa.list_(pa.field("element", element), size)
    if all(map(pa.types.is_map, distinct)):
        key, item = _common(kind.key_type for kind in distinct), _common(kind.item_type for kind in distinct)
        return None if key is None or item is None else pa.map_(key, item)
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in distinct):
        if any(map(pa.types.is_floating, distinct)):
            return pa.float64()
        return pa.uint64() if all(map(pa.types.is_unsigned_integer, distinct)) else pa.int64()
    if any(map(pa.types.is_decimal, distinct)):
        return _common_decimal(distinct)
    if all(map(pa.types.is_date, distinct)):
        return pa.date32()
    if all(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) for kind in distinct):
        return pa.binary()
    zones = {kind.tz for kind in distinct if pa.types.is_timestamp(kind)}
    for is_kind in (pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration):
        if all(map(is_kind, distinct)) and len(zones) < 2:
            return max(distinct, key=lambda kind: _UNITS.index(kind.unit))
    return pa.string() if all(map(becomes_text, distinct)) and len(zones) < 2 else None


def _common_struct(structs: list[pa.DataType]) -> pa.DataType | None:
    """Return the struct with the fields of all, of which some may lack a field: there it is null."""
    fields: dict[str, list[pa.DataType]] = {}
    for struct in structs:
        if len({field.name for field in struct}) < struct.num_fields:
            return None
        for field in struct:
            fields.setdefault(field.name, []).append(field.type)
    types = {name: _common(kinds) for name, kinds in fields.items()}
    return None if None in types.values() else pa.struct(list(types.items()))


def _common_decimal(kinds: list[pa.DataType]) -> pa.DataType | None:
    """Return the decimal with the digits of all before and after the point; whole numbers have up to 20."""
    if not all(pa.types.is_decimal(kind) or pa.types.is_integer(kind) for kind in kinds):
        return None
    decimals = list(filter(pa.types.is_decimal, kinds))
    scale = max(kind.scale for kind in decimals)
    before = max(kind.precision - kind.scale if pa.types.is_decimal(kind) else 20 for kind in kinds)
    make = pa.decimal128 if before + scale <= 38 else pa.decimal256
    return make(before + scale, scale) if before + scale <= 76 else None


def given_type(field: KeptField, kinds: Mapping[Kind, str]) -> pa.DataType:
    """Return the type that was given for a field, a timestamp with the time zone of its columns.

    Raises InputError if a column is of a type that has no values of it.
    """
    kind = pa.type_for_alias(KEPT_TYPES[str(field.type)])
    columns = [column for column in kinds if not isinstance(column, str)]
    zones = {column.tz for column in columns if pa.types.is_timestamp(column)}
    if pa.types.is_timestamp(kind) and len(zones) == 1:
        kind = pa.timestamp(kind.unit, zones.pop())
    for column in columns:
        try:
            cast_given(pa.nulls(0, column), kind)
        except pa.ArrowException:
            raise InputError(
                f"--keep_fields {field.path}:{field.type}: the field is {column} in {kinds[column]}, whose values are of "
                f"another kind: give another type, or leave it out"
            ) from None
    return kind


def cast_given(column: pa.Array, kind: pa.DataType, *, empty_is_null: bool = False) -> pa.Array:
    """Return a column as `kind`, a type that was given: texts are read as values of it, others are cast exactly.

    Args:
        column: The column.
        kind: The type.
        empty_is_null: Whether an empty text is a missing value, as in csv.

    Raises:
        ArrowException: A value is not one of that type.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not is_text(column.type) or is_text(kind):
        return cast_exactly(column, kind, nulls_fit=False)
    if empty_is_null:
        column = pc.if_else(pc.equal(column, ""), None, column)
    if pa.types.is_floating(kind):
        return cast_exactly(_doubles(column), kind)
    if pa.types.is_time(kind):  # Arrow reads such texts only behind a date
        column = pc.binary_join_element_wise("1970-01-01T", column.cast(pa.string()), "").cast(pa.timestamp(kind.unit))
    values = column.cast(kind)
    if pa.types.is_integer(kind) and not values.cast(pa.string()).equals(column.cast(pa.string())):
        raise pa.ArrowInvalid("a text has other digits than its number")
    if pa.types.is_boolean(kind) and not values.cast(pa.string()).equals(pc.utf8_lower(column).cast(pa.string())):
        raise pa.ArrowInvalid("a text is neither true nor false")
    return values


def _doubles(column: pa.Array) -> pa.Array:
    """Return texts as doubles. Raise ArrowInvalid for a whole number that a double rounds, and one beyond its range."""
    values = column.cast(pa.float64())
    short = pc.less_equal(pc.binary_length(column), 15)  # so few digits are exact
    doubtful = pc.invert(pc.and_(short, pc.is_finite(values)))
    for text, value in zip(column.filter(doubtful).to_pylist(), values.filter(doubtful).to_pylist(), strict=True):
        digits = text.strip().lstrip("+-")
        if (int(digits) != abs(value)) if digits.isdecimal() else (math.isinf(value) and digits[:1] in "0123456789."):
            raise pa.ArrowInvalid("a double does not hold the number")
    return values


class Unfit(BadRow):
    """A kept value that its column cannot hold exactly: it ends the run, as no row is lost because of a kept field.

    Attributes:
        field: The name of the column.
    """

    def __init__(self, column: pa.Field, value: object, kind: object) -> None:
        self.field = column.name
        super().__init__(
            "wrong type",
            f"kept field {column.name!r} is {str(value)[:80]} ({kind}), and its column, {column.type}, holds no such value",
        )


# The kinds of values that columns of a type hold while rows are read; a field without a known type has a column of nulls.
FITTING = {pa.bool_(): {"bool"}, pa.int64(): {"int64", LARGE}, pa.float64(): {"double", "int64"}}


def as_kept(value: object, field: KeptField, column: pa.Field, *, empty_is_null: bool = False) -> object:
    """Return a value of a text format for the column of a kept field, or an Unfit; some as an array of length 1.

    Args:
        value: The value.
        field: The kept field.
        column: Its column.
        empty_is_null: As for cast_given.

    Raises:
        BadRow: A text is not UTF-8.
    """
    if value is None or isinstance(value, Unfit):
        return value
    if is_text(column.type):
        return as_text(value)
    kind = kind_of(value)
    if kind in FITTING.get(column.type, ()):
        return float(value) if kind == "double" or pa.types.is_floating(column.type) else value  # type: ignore[arg-type]
    try:
        if isinstance(value, str) and field.type:
            cast = cast_given(pa.array([value], pa.string()), column.type, empty_is_null=empty_is_null)
        elif kind == "string":
            raise pa.ArrowInvalid("neither a bool nor a number")
        else:
            cast = cast_exactly(pa.array([value], TYPES[kind]), column.type)
    except pa.ArrowException:
        if isinstance(value, str):
            kind = "string" if not _ZONED.search(value) else "string with a time zone, which the type does not have"
        return Unfit(column, as_text(value), kind)
    return cast


def unsettled(values: Mapping[int, object]) -> str | None:
    """Return the values of a row that do not fit the columns of kept fields, by number, for UNSETTLED."""
    if not values:
        return None
    plain = {number: as_text(value) if kind_of(value) == "string" else value for number, value in values.items()}
    return json.dumps(plain)
