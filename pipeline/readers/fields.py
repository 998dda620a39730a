"""Fields: the paths of the content, the id and the kept fields of a record, and what ids and kept values become."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import NamedTuple
from uuid import UUID

import orjson
import pyarrow as pa

from ...model.head import BadRow, type_name
from ...model.text.texts import EXCERPT, check_encodable, decode

MISSING = object()  # the value at a path that a record does not have


class NoTexts(BadRow):
    """A document whose list of texts is missing, null or empty: it has no rows, and none to reject."""


class NumberAsWritten(float):
    """A number with its digits as written in a text format: a float loses some."""

    def __new__(cls, text: str) -> NumberAsWritten:
        """Return the number that `text` spells."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


class TextField(NamedTuple):
    """The path of a text, and that of its id, or None for generated ids."""

    text: str
    id: str | None


@dataclass(frozen=True)
class Fields:
    """The paths of the fields that are read: names joined by dots, with `[]` after a list whose elements are read.

    A record has a row for each text of `text` and of the text fields in `more`.
    """

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()
    more: tuple[TextField, ...] = ()

    @property
    def texts(self) -> tuple[TextField, ...]:
        """Return all text fields with their ids, in the order given."""
        return TextField(self.text, self.id), *self.more

    @property
    def columns(self) -> list[str]:
        """Return every path once, as given."""
        paths = [path for field in self.texts for path in field if path is not None]
        return list(dict.fromkeys([*paths, *self.keep]))

    @property
    def is_plain(self) -> bool:
        """Return whether a record has one text, with the id at a path without a list."""
        return not self.more and "[]" not in f"{self.text}{self.id}"


def lookup(record: object, path: str) -> object:
    """Return the value at a dotted path, or MISSING; a name that contains the dots itself comes first."""
    if not isinstance(record, dict):
        return MISSING
    if path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    while dot:
        if head in record and (value := lookup(record[head], rest)) is not MISSING:
            return value
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return MISSING


def texts_at(record: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield (suffix of the id, value) of each text at a path; each element of a list has a suffix "/0", "/1", ..."""
    before, through, rest = path.partition("[]")
    if not through:
        yield "", lookup(record, path)
        return
    elements = lookup(record, before)
    if elements is MISSING or elements is None or elements == []:
        error = NoTexts if isinstance(record, dict) else BadRow
        raise error("missing field", f"field {before!r} is {'missing' if elements is MISSING else 'empty'}")
    if not isinstance(elements, list):
        raise BadRow("wrong type", f"field {before!r} is {type_name(elements)}, not a list")
    for number, element in enumerate(elements):
        if not rest:
            yield f"/{number}", element
            continue
        try:
            for suffix, value in texts_at(element, rest.removeprefix(".")):
                yield f"/{number}{suffix}", value
        except BadRow as bad:  # only this element is rejected
            yield f"/{number}", bad


def has_value_at(record: object, path: str) -> bool:
    """Return whether a record has the field at a path."""
    try:
        return any(value is not MISSING and not isinstance(value, BadRow) for _, value in texts_at(record, path))
    except BadRow as bad:
        return bad.reason != "missing field"


def as_id(value: object, field: str, limit: int) -> str:
    """Return a value as an id, a number as its decimal text. Raises BadRow if it cannot be one or is over `limit` bytes."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        value = decode(value)
    if isinstance(value, str):
        if len(value) * 4 > limit and len(value.encode("utf-8", "replace")) > limit:
            raise BadRow("too long", f"the id in field {field!r} is over {limit:,} bytes")
        return check_encodable(value)
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not isfinite(value)):
        if value is MISSING or value is None:
            raise BadRow("missing field", f"id field {field!r} is {'missing' if value is MISSING else 'null'}")
        raise BadRow("wrong type", f"id field {field!r} is {type_name(value)}, neither text nor a number")
    if isinstance(value, Decimal):
        return format(value, "f")  # str writes 0.0000001 as 1E-7
    return value.text if isinstance(value, NumberAsWritten) else str(value)


def as_kept(value: object, field: pa.Field) -> object:
    """Return a kept value for a column of `field`'s type, an array of length 1 as such. Raises BadRow if it does not fit."""
    if value is MISSING or value is None:
        return None
    if isinstance(value, BadRow):
        raise value
    if isinstance(value, pa.Array):  # of Parquet, and of the column's type: Python has no nanoseconds
        return value
    if is_text(field.type):
        if isinstance(value, bytes):
            return decode(value)
        return check_encodable(value) if isinstance(value, str) else _json(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_float64(field.type) and number:
        with suppress(OverflowError):  # an integer of over 308 digits
            kept = float(value)  # type: ignore[arg-type]
            if kept == value or kept != kept:  # NaN equals nothing  # noqa: PLR0124
                return kept
        raise BadRow("wrong type", f"kept field {field.name!r} does not fit its column, {field.type}")
    if pa.types.is_boolean(field.type) and isinstance(value, bool):
        return value
    if pa.types.is_integer(field.type) and number and isinstance(value, int):
        try:
            return pa.scalar(value, field.type).as_py()
        except (pa.ArrowException, OverflowError):
            raise BadRow("wrong type", f"kept field {field.name!r} does not fit its column, {field.type}") from None
    raise BadRow("wrong type", f"kept field {field.name!r} is {type_name(value)}, its column is {field.type}")


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is one of Arrow's three types of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # deep nesting, an integer over 64 bits, a number as written
        pass
    try:
        return _spell(value)
    except RecursionError:
        raise BadRow("wrong type", "the value is nested too deep to be kept as JSON text") from None


def _spell(value: object) -> str:
    """Return a value as JSON, spelled as orjson does."""
    if isinstance(value, dict):
        members = zip(map(_spell, value), map(_spell, value.values()), strict=True)
        return f"{{{','.join(map(':'.join, members))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_spell, value))}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, NumberAsWritten):
        if not isfinite(value):  # which orjson writes as null
            return value.text
        value = float(value)
    return orjson.dumps(value, default=str).decode()


def excerpt_of(value: object) -> str:
    """Return the beginning of a value as JSON."""
    try:
        return _json(value)[:EXCERPT]
    except BadRow:
        return "..."
