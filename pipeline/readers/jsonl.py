"""Records of jsonl: each line is one JSON object, blank lines are skipped."""

from __future__ import annotations

import json
from typing import IO

import orjson

from .base import RecordReader, check_utf8, excerpt, too_long
from .compression import line_blocks
from .fields import BadRow, Fields, NumberAsWritten, lookup
from .shard import RECORD_BYTES, Record, Records, Shard


def _blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int) -> Records:
    row = 0
    for block in line_blocks(handle, shard.compression, RECORD_BYTES):
        filled = [line for line in block if line is None or (line and not line.isspace())]
        records = _objects(filled, fields) or [_object(line, fields) for line in filled]
        yield row, records
        row += len(records)


def _objects(block: list[bytes | None], fields: Fields) -> list[Record | BadRow] | None:
    """Return the objects of a block, or None if a line is bad or an id is a number whose digits a float would lose."""
    try:
        records = [orjson.loads(line) for line in block]  # type: ignore[arg-type]  # None raises JSONDecodeError
    except orjson.JSONDecodeError:
        return None
    if any(type(record) is not dict for record in records):
        return None
    if any(isinstance(lookup(record, path), float) for path in _ids(fields) for record in records):
        return None
    return records


def _ids(fields: Fields) -> list[str]:
    """Return the paths of ids that are not elements of a list."""
    return [field.id for field in fields.texts if field.id is not None and "[]" not in field.id]


def _object(line: bytes | None, fields: Fields) -> Record | BadRow:
    if line is None:
        return too_long(RECORD_BYTES)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = "not UTF-8" if "surrogate" in str(error) else "malformed record"
        return check_utf8(line) or BadRow(reason, str(error), text=excerpt(line))  # type: ignore[arg-type]
    if not isinstance(record, dict):
        return BadRow("malformed record", "the line is JSON, but not an object", text=excerpt(line))
    if any(isinstance(lookup(record, path), float) for path in _ids(fields)):
        try:
            exact = json.loads(line, parse_float=NumberAsWritten, parse_int=NumberAsWritten)
        except RecursionError:  # json's limit of depth is a little below orjson's
            return BadRow("malformed record", "the line is nested too deep", text=excerpt(line))
        return {**record, **{path: lookup(exact, path) for path in _ids(fields)}}
    return record


JSONL = RecordReader(_blocks)
