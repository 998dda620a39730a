"""cast_exactly: a kept column as the type of its output column, without a change of any value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .field_types import becomes_text, is_list, kept_type
from .fields import as_text, is_text


def cast_exactly(column: pa.Array, kind: pa.DataType, *, nulls_fit: bool = True) -> pa.Array:
    """Return a column of a shard as `kind`, the type of a kept field.

    With `nulls_fit` a column without a value fits any type. Raises ArrowException if a value is not exactly one of that
    type, or is not UTF-8.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if nulls_fit and column.null_count == len(column):
        return pa.nulls(len(column), kind)
    source = kept_type(column.type)
    if source is None or not may_be_equal(source, kind):
        raise pa.ArrowInvalid("the values are of another kind")
    cast = _as_texts(column, kind) if is_text(kind) else column.cast(kind)
    if source != kind:
        _check_floats(column, cast)
    cast.validate(full=True)
    return cast


def may_be_equal(source: pa.DataType, kind: pa.DataType) -> bool:
    """Return whether values of two types may be the same: Arrow casts others too, as "02134" to 2134 and 7 to true."""
    if source == kind or pa.types.is_null(source) or (is_text(kind) and becomes_text(source)):
        return True
    if is_list(source) and is_list(kind):
        return may_be_equal(source.value_type, kind.value_type)
    if pa.types.is_struct(source) and pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}  # those that the source lacks are null
        names = [field.name for field in source]
        if names == list(types) or len(set(names)) == len(names):
            return all(field.name in types and may_be_equal(field.type, types[field.name]) for field in source)
        return False
    if pa.types.is_map(source) and pa.types.is_map(kind):
        return may_be_equal(source.key_type, kind.key_type) and may_be_equal(source.item_type, kind.item_type)
    if pa.types.is_timestamp(source) and pa.types.is_timestamp(kind):
        return bool(source.tz == kind.tz)
    return any(test(source) and test(kind) for test in _KINDS)


def _as_texts(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return values as texts, floats and times spelled as in any wider type, which they may have in a file."""
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_pylist()
        return pa.array([None if value is None else as_text(value) for value in values], kind)
    texts = column.cast(kind)
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):
        for zeros, rest in ((r"\.0+(Z?)$", r"\1"), (r"(\.\d*[1-9])0+(Z?)$", r"\1\2")):
            texts = pc.replace_substring_regex(texts, zeros, rest)
    return texts


def is_spelled_alike(before: pa.DataType, now: pa.DataType) -> bool:
    """Return whether a cast to `now` spells values that become texts as it would in narrower types than `before`.

    That is not so of floats and times in lists and structs.
    """
    if not (pa.types.is_nested(before) and pa.types.is_nested(now)):
        return True
    types = {now.field(number).name: now.field(number).type for number in range(now.num_fields)}
    inner = [before.field(number) for number in range(before.num_fields)]
    return all(
        is_spelled_alike(each.type, types[each.name])
        and not (is_text(types[each.name]) and (pa.types.is_floating(each.type) or pa.types.is_temporal(each.type)))
        for each in inner
    )


def _is_plain_text_or_bytes(kind: pa.DataType) -> bool:
    return bool(is_text(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_integer_or_float(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_integer_or_decimal(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind))


# If one of these is true of both types, Arrow's cast checks the values, except floats.
_KINDS = (
    _is_plain_text_or_bytes,
    _is_integer_or_float,
    _is_integer_or_decimal,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_duration,
)


def _check_floats(before: pa.Array, after: pa.Array) -> None:
    """Raise ArrowInvalid if a float was rounded by a cast, also within lists and structs."""
    if pa.types.is_null(before.type):
        return
    if pa.types.is_struct(after.type):
        new = dict(zip((field.name for field in after.type), after.flatten(), strict=True))
        for field, old in zip(before.type, before.flatten(), strict=True):
            _check_floats(old, new[field.name])
    elif is_list(after.type):
        _check_floats(before.flatten(), after.flatten())
    elif pa.types.is_floating(after.type) and before.type != after.type:
        old, new = (column.cast(pa.float64()).to_numpy(zero_copy_only=False) for column in (before, after))
        if not np.array_equal(old, new, equal_nan=True):
            raise pa.ArrowInvalid("a float would be rounded")
