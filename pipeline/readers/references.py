"""What a field of a list or of Parquet says about a picture or sound: a path or URI, a range of a file, or the bytes."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple, TypeAlias

from ...model.head import BadRow, type_name
from ...model.media import Entry
from ..io.paths import given_path, is_local
from .fields import MISSING

MAX_PATH = 4096  # characters; object stores and operating systems have no longer names


class Reference(NamedTuple):
    """A file, or a range of it.

    Attributes:
        path: Where the file is.
        offset: Where the range begins; None for the whole file.
        size: Its bytes; None for all up to the end of the file.
    """

    path: str
    offset: int | None = None
    size: int | None = None


class Inline(NamedTuple):
    """Bytes in the field itself, and the name that is given with them, or ""."""

    data: bytes
    name: str


Content: TypeAlias = "Reference | Inline"


def parse_content(value: object, field: str, root: str, *, is_binary: bool) -> Content:
    """Return what the value of a field names or contains. Raise BadRow if it is not a picture or sound.

    Args:
        value: A path or URI, the bytes of a file, or an object with the fields bytes and path, or uri, offset and size.
        field: The path of the field, for messages.
        root: The directory that paths are relative to.
        is_binary: Whether bytes are those of a file; else they are a path that is not UTF-8.
    """
    if isinstance(value, bytes) and is_binary:
        return Inline(value, "")
    if isinstance(value, Mapping):
        return _of_struct(value, field, root)
    return Reference(_path(value, field, root))


def parse_entry(offset: object, duration: object) -> Entry | None:
    """Return the part of a recording that two fields of a list give; None if both have no value. Raise BadRow."""
    begin, length = (_seconds(value, name) for value, name in ((offset, "offset"), (duration, "duration")))
    return None if begin is None and length is None else Entry(begin or 0.0, length)


def _of_struct(value: Mapping[str, object], field: str, root: str) -> Content:
    if "uri" in value:
        offset, size = (_whole_number(value.get(name), f"{field}.{name}") for name in ("offset", "size"))
        return Reference(_path(value["uri"], f"{field}.uri", root), offset, size)
    if "bytes" not in value and "path" not in value:
        raise BadRow("wrong type", f"field {field!r} has neither bytes and path nor uri, offset and size")
    data, path = value.get("bytes"), value.get("path")
    if data is None:
        return Reference(_path(path, f"{field}.path", root))
    if not isinstance(data, bytes):
        raise BadRow("wrong type", f"field '{field}.bytes' is {type_name(data)}, not bytes")
    return Inline(data, path if isinstance(path, str) else "")


def _path(value: object, field: str, root: str) -> str:
    if value is None or value is MISSING or value in ("", b""):
        empty = "missing" if value is MISSING else "null" if value is None else "empty"
        raise BadRow("missing field", f"field {field!r} is {empty}")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BadRow("not UTF-8", f"field {field!r}: byte {error.start} cannot be decoded") from None
    if not isinstance(value, str):
        raise BadRow("wrong type", f"field {field!r} is {type_name(value)}, not a path or URI")
    if len(value) > MAX_PATH:
        raise BadRow("missing file", f"field {field!r} has {len(value):,} characters, more than a path may have")
    if value.startswith("~"):  # the name of a file: a list is not typed by the user who runs this
        return _below(root, value)
    try:
        path = given_path(value)
        path.encode()
    except ValueError as error:
        raise BadRow("wrong type", str(error)) from None
    return path if "://" in path or os.path.isabs(path) else _below(root, path)


def _below(root: str, path: str) -> str:
    if is_local(root):
        while path.startswith("./"):
            path = path[2:].lstrip("/")
        return os.path.join(root, path)
    scheme, _, place = root.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(place, path))}"


def _seconds(value: object, name: str) -> float | None:
    if value is None or value is MISSING or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            raise ValueError
        seconds = float(value)
    except (ValueError, OverflowError):
        found = repr(value[:100]) if isinstance(value, str) else type_name(value)
        raise BadRow("wrong type", f"the {name} is {found}, not a number of seconds") from None
    if not 0 <= seconds < math.inf:
        raise BadRow("wrong type", f"the {name} is {seconds:g}, not a number of seconds from 0 on")
    return seconds


def _whole_number(value: object, field: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        found = value if isinstance(value, int) else type_name(value)
        raise BadRow("wrong type", f"field {field!r} is {found}, not a whole number from 0 on")
    return value
