"""Fields: the paths of the content, the id and the kept fields of a record, and what ids and kept values become."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import NamedTuple
from uuid import UUID

import orjson
import pyarrow as pa

from ...model.head import BadRow, type_name
from ...model.text.texts import EXCERPT, check_encodable, decode
from ..flags import KeptField

MISSING = object()  # the value at a path that a record does not have

_NOTHING = object()  # no value behind a word of JSON


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

    @property
    def is_too_large(self) -> bool:
        """Return whether it is an integer of thousands of digits, or beyond what a float can be."""
        return self.text.lstrip("-").isdigit() or (math.isinf(self) and self.text[-1:].isdigit())


class TextField(NamedTuple):
    """The path of a text, and that of its id, or None for generated ids."""

    text: str
    id: str | None


@dataclass(frozen=True)
class Fields:
    """The paths of the fields that are read: names joined by dots, with `[]` after a list whose elements are read.

    A record has a row for each text of `text` and of the text fields in `more`, or one for each picture or recording with
    `by_reference`. `keep` are the fields to keep, as --keep_fields gives them; `entry` are those of the offset and the
    duration of what an entry of a list is of a recording, each of which may be None.
    """

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()
    more: tuple[TextField, ...] = ()
    entry: tuple[str | None, ...] = ()
    by_reference: bool = False

    @property
    def texts(self) -> tuple[TextField, ...]:
        """Return all text fields with their ids, in the order given."""
        return TextField(self.text, self.id), *self.more

    @cached_property
    def kept(self) -> tuple[KeptField, ...]:
        """Return the fields to keep."""
        return tuple(map(KeptField.parse, self.keep))

    @cached_property
    def kept_paths(self) -> frozenset[str]:
        """Return the paths of the fields to keep."""
        return frozenset(field.path for field in self.kept)

    @property
    def columns(self) -> list[str]:
        """Return every path once, as given."""
        paths = [path for field in self.texts for path in field if path is not None]
        paths += [path for path in self.entry if path is not None]
        return list(dict.fromkeys([*paths, *(field.path for field in self.kept)]))

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
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        if value is MISSING or value is None:
            raise BadRow("missing field", f"id field {field!r} is {'missing' if value is MISSING else 'null'}")
        raise BadRow("wrong type", f"id field {field!r} is {type_name(value)}, neither text nor a number")
    if isinstance(value, Decimal):
        return format(value, "f")  # str writes 0.0000001 as 1E-7
    return value.text if isinstance(value, NumberAsWritten) else str(value)


def as_text(value: object) -> str:
    """Return a kept value as text: what is not text as JSON. Raises BadRow if it is not UTF-8.

    A float that is an integer is spelled as one: as a double in a file, 1 and 1.0 are the same.
    """
    if isinstance(value, bytes):
        return decode(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= 1 << 53 and (value or str(value) == "0.0"):
        return str(int(value))
    return check_encodable(value) if isinstance(value, str) else _json(value)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is one of Arrow's three types of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _json(value: object) -> str:
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # deep nesting, an integer over 64 bits, a number as written
        return _spell(value)
    return _spell(value) if "null" in text else text  # orjson writes null for NaN


def _spell(value: object) -> str:
    """Return a value as JSON, spelled as orjson does, however deep it is nested."""
    words, waiting = list[str](), [("", value)]  # of what follows, last first: a word, then a value
    while waiting:
        word, item = waiting.pop()
        words.append(word)
        if item is _NOTHING:
            continue
        if isinstance(item, dict):
            names = (f"{',' if number else '{'}{_spell_scalar(name)}:" for number, name in enumerate(item))
            parts = list(zip(names, item.values(), strict=True))
            waiting += [("}" if item else "{}", _NOTHING), *reversed(parts)]
        elif isinstance(item, list):
            parts = [("," if number else "[", element) for number, element in enumerate(item)]
            waiting += [("]" if item else "[]", _NOTHING), *reversed(parts)]
        else:
            words.append(_spell_scalar(item))
    return "".join(words)


def _spell_scalar(value: object) -> str:
    if isinstance(value, NumberAsWritten):
        if value.is_too_large:
            return value.text
        value = float(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # NaN, Infinity
    return orjson.dumps(value, default=str).decode()


def excerpt_of(value: object) -> str:
    """Return the beginning of a value as JSON."""
    return _json(value)[:EXCERPT]
