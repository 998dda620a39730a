"""Records of jsonl: each line is one JSON object, blank lines are skipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import orjson

from ...model.head import BadRow
from .compression import line_blocks
from .fields import Fields, NumberAsWritten, lookup, texts_at
from .reader import RecordReader, check_utf8, excerpt, too_long
from .shard import RECORD_BYTES, Record, Records, Shard


def _blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int) -> Records:
    row = 0
    for block in line_blocks(handle, shard.compression, RECORD_BYTES):
        filled = [line for line in block if line is None or (line and not line.isspace())]
        records = _objects(filled, fields) or [_object(line, fields) for line in filled]
        yield row, records
        row += len(records)


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

    Of an id the spelling counts; of a kept number only its value, which is lost if it is an integer over 64 bits.
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


def _object(line: bytes | None, fields: Fields) -> Record | BadRow:
    if line is None:
        return too_long(RECORD_BYTES)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = "not UTF-8" if "surrogate" in str(error) else "malformed record"
        return check_utf8(line) or BadRow(reason, str(error), excerpt=excerpt(line))
    if not isinstance(record, dict):
        return BadRow("malformed record", "the line is JSON, but not an object", excerpt=excerpt(line))
    if paths := _inexact_paths([record], fields):
        try:
            exact = json.loads(line, parse_float=NumberAsWritten, parse_int=_parse_integer)
        except RecursionError:  # json's limit of depth is a little below orjson's
            return BadRow("malformed record", "the line is nested too deep", excerpt=excerpt(line))
        return {**record, **{path: lookup(exact, path) for path in paths}}
    return record


JSONL = RecordReader(_blocks)
