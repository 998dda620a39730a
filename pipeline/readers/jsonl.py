"""Records of jsonl: each line is one JSON object, NaN and Infinity may occur, blank lines are skipped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import orjson

from ...model.head import BadRow
from .compression import BadHeader, line_blocks
from .fields import Fields, NumberAsWritten, lookup, texts_at
from .notes import ShardNotes
from .reader import RecordReader, check_utf8, excerpt, too_long
from .shard import RECORD_BYTES, Record, Records, Shard

_PEEKED_LINES = 1000  # in which an object of several lines may end

_CONSTANT = re.compile(rb"\b(?:NaN|Infinity)\b")

_ARRAY = "the file is a JSON array, and jsonl has an object per line: convert it, as in jq -c '.[]' OLD > NEW"
_NOT_LINES = "the JSON objects are not one per line, as jsonl has them: convert the file, as in jq -c . OLD > NEW"


def _blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int, notes: ShardNotes) -> Records:
    row = 0
    for block in line_blocks(handle, shard, RECORD_BYTES, notes):
        filled = [line for line in block if line is None or (line and not line.isspace())]
        if not row and filled:
            _check_beginning(filled, notes.head)
        records = _objects(filled, fields) or [_object(line, fields) for line in filled]
        yield row, records
        row += len(records)


def _check_beginning(lines: list[bytes | None], head: bytes) -> None:
    """Raise BadHeader if a file with these first lines and bytes is JSON in another form than an object per line."""
    with suppress(orjson.JSONDecodeError):
        if type(orjson.loads(lines[0] or b"")) is dict:
            return
    whole = lines[0] is not None  # else it is too long
    first = (lines[0] or head).strip()
    value, rest = _first_value(first) if whole else (None, b"")
    next_is_object = _is_object(lines[1:2])
    if first.startswith(b"["):
        if isinstance(value, list):
            is_array = len(lines) == 1 or (bool(value) and all(isinstance(each, dict) for each in value))
        else:
            is_array = first == b"[" or not next_is_object
        if is_array:
            raise BadHeader(_ARRAY)
    elif first.startswith(b"{") and whole:
        begins_block = first == b"{" or (first.endswith((b"{", b"[", b",")) and not next_is_object)
        if (rest.startswith(b"{") and not next_is_object) or (value is None and (begins_block or _spans_lines(lines))):
            raise BadHeader(_NOT_LINES)


def _first_value(text: bytes) -> tuple[object, bytes]:
    """Return the JSON value that a text begins with and what follows it, or None and nothing."""
    try:
        decoded = text.decode().strip()
        value, end = json.JSONDecoder().raw_decode(decoded)
    except (ValueError, RecursionError):
        return None, b""
    return value, decoded[end:].strip().encode()


def _is_object(lines: list[bytes | None]) -> bool:
    value, rest = _first_value((lines or [b""])[0] or b"")
    return isinstance(value, dict) and not rest


def _spans_lines(lines: list[bytes | None]) -> bool:
    """Return whether lines begin with an object that takes several of them."""
    return isinstance(_first_value(b"\n".join(line or b"" for line in lines[:_PEEKED_LINES]))[0], dict)


def _objects(block: list[bytes | None], fields: Fields) -> list[Record | BadRow] | None:
    """Return the objects of a block, or None if a line is bad or has a number whose digits orjson loses."""
    try:
        records = [orjson.loads(line) for line in block]  # type: ignore[arg-type]  # None raises JSONDecodeError
    except orjson.JSONDecodeError:
        return None
    if any(type(record) is not dict for record in records):
        return None
    return None if _inexact_paths(records, fields) else records


def _inexact_paths(records: Sequence[dict[str, object]], fields: Fields) -> list[str]:
    """Return the paths of ids, or of lists with ids, and of kept fields that have a number whose digits orjson loses.

    The spelling of an id counts, but only the value of a kept number, which is lost if it is an integer over 64 bits.
    """
    found = []
    for _, path in fields.texts:
        if path and "[]" in path:
            if any(isinstance(value, float) for record in records for value in _values_at(record, path)):
                found.append(path.partition("[]")[0])
        elif path and any(isinstance(lookup(record, path), float) for record in records):
            found.append(path)
    return found + [
        path for path in fields.kept_paths if any(_has_large_float(lookup(record, path)) for record in records)
    ]


def _values_at(record: dict[str, object], path: str) -> list[object]:
    with suppress(BadRow):
        return [value for _, value in texts_at(record, path)]
    return []


def _has_large_float(value: object) -> bool:
    """Return whether a value contains a float that may be an integer over 64 bits."""
    if not isinstance(value, dict | list):
        return isinstance(value, float) and abs(value) >= 1 << 63
    values = [value]
    for container in values:  # grows while it is read
        for inner in container.values() if isinstance(container, dict) else container:
            if isinstance(inner, dict | list):
                values.append(inner)
            elif _has_large_float(inner):
                return True
    return False


def _parse_integer(digits: str) -> float:
    return int(digits) if len(digits) < 4000 else NumberAsWritten(digits)  # Python refuses to parse more than 4,300


def _parse_float(digits: str) -> float:
    number = NumberAsWritten(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:30]} is out of range")
    return number


def parse_as_written(line: bytes) -> object:
    """Return the value of JSON with numbers as they are written, NaN and Infinity too. Raises ValueError."""
    value: object = json.loads(
        line.decode(), parse_float=_parse_float, parse_int=_parse_integer, parse_constant=NumberAsWritten
    )
    if b"\\u" in line:
        json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeEncodeError for a lone surrogate
    return value


def _object(line: bytes | None, fields: Fields) -> Record | BadRow:
    if line is None:
        return too_long(RECORD_BYTES)
    try:
        record, exact = orjson.loads(line), None
    except orjson.JSONDecodeError:
        if bad := check_utf8(line):
            return bad
        try:
            if not _CONSTANT.search(line):
                raise
            record = exact = parse_as_written(line)
        except (ValueError, RecursionError) as fault:
            reason = "not UTF-8" if "surrogate" in str(fault) else "malformed record"
            return BadRow(reason, str(fault), excerpt=excerpt(line))
    if not isinstance(record, dict):
        return BadRow("malformed record", "the line is JSON, but not an object", excerpt=excerpt(line))
    if exact is None and (paths := _inexact_paths([record], fields)):
        try:
            exact = parse_as_written(line)
        except RecursionError:  # json's limit of depth is a little below orjson's
            return BadRow("malformed record", "the line is nested too deep", excerpt=excerpt(line))
        return {**record, **{path: lookup(exact, path) for path in paths}}
    return record


JSONL = RecordReader(_blocks)
