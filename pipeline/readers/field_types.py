"""The types of columns that can be texts, ids and kept fields."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from .fields import Fields, is_text
from .shard import InputError, Shard

_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}


def is_uuid(kind: pa.DataType) -> bool:
    """Return whether a type is that of UUIDs."""
    return getattr(kind, "extension_name", None) == "arrow.uuid"


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is one of Arrow's types of lists, without their views."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def check_types(shard: Shard, fields: Fields, types: Mapping[str, pa.DataType]) -> None:
    """Raise InputError if a field of a shard has a type with which it cannot be a text, an id or a kept field.

    `types` are those of the fields that the shard has, by path.
    """
    texts, ids = ({field[place] for field in fields.texts} for place in (0, 1))
    for path, kind in types.items():
        if fields.by_reference and path in texts:
            if can_be_media(kind):
                continue
            role, remedy = "a picture or sound", "give another --media_field, of paths or bytes"
        elif path in fields.entry and not (is_number(kind) or is_text(kind) or pa.types.is_null(kind)):
            role, remedy = "a number of seconds", "give another field, or convert the column to numbers"
        elif path in texts and not can_be_text(kind):
            role, remedy = "a text", "give another --text_field, or convert the column to strings"
        elif path in ids and not can_be_id(kind):
            role, remedy = "an id", "give another --id_field, or convert the column to strings"
        elif path in fields.kept_paths and kept_type(kind) is None:
            role, remedy = "a kept field", "leave it out of --keep_fields, or convert the column"
        else:
            continue
        raise InputError(f"{shard.path}: field {path!r} is {kind}, which cannot be {role}: {remedy}")


def can_be_text(kind: pa.DataType) -> bool:
    """Return whether values of a type are texts: strings, bytes, or lists of these, which are joined."""
    return _is_text_or_bytes(kind) or bool(is_list(kind) and _is_text_or_bytes(kind.value_type))


def can_be_media(kind: pa.DataType) -> bool:
    """Return whether values of a type are pictures or sounds: paths, bytes, or objects with one of these."""
    if pa.types.is_struct(kind):
        return not {"bytes", "path", "uri"}.isdisjoint(field.name for field in kind)
    return _is_text_or_bytes(kind) and not is_uuid(kind)


def is_number(kind: pa.DataType) -> bool:
    """Return whether a type is one of numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def can_be_id(kind: pa.DataType) -> bool:
    """Return whether values of a type are ids: strings, bytes, numbers and UUIDs."""
    return bool(is_number(kind) or is_uuid(kind) or _is_text_or_bytes(kind))


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text_or_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return not is_uuid(kind) and _is_text_or_bytes(kind.storage_type)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return True
    return bool(is_text(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_null(kind))


def kept_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the output column of a kept field, or None if it cannot be kept.

    Types of the same values become one, which all of Arrow's functions take: views and large types are plain, and what a
    list or a struct contains may be null.
    """
    if kind in _PLAIN:
        return _PLAIN[kind]
    if pa.types.is_dictionary(kind):
        return kept_type(kind.value_type)
    if not pa.types.is_nested(kind):
        return kind
    if any(isinstance(kind.field(n).type, pa.BaseExtensionType) for n in range(kind.num_fields)):
        return None  # Arrow has no slices of such lists and structs
    if pa.types.is_struct(kind):
        types = [kept_type(field.type) for field in kind]
        names = [field.name for field in kind]
        return None if None in types else pa.struct([pa.field(*column) for column in zip(names, types, strict=True)])
    if is_list(kind):
        element = kept_type(kind.value_type)
        size = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
        return None if element is None else pa.list_(pa.field("element", element), size)
    if pa.types.is_map(kind):
        key, value = kept_type(kind.key_type), kept_type(kind.item_type)
        return None if key is None or value is None else pa.map_(key, value)
    return None


def becomes_text(kind: pa.DataType) -> bool:
    """Return whether values of a type become text in a column of texts; those of a duration would lose their unit."""
    unclear = pa.types.is_duration(kind) or pa.types.is_interval(kind)
    return bool(is_text(kind) or (pa.types.is_primitive(kind) and not unclear))
