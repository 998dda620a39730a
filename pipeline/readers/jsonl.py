"""Records of jsonl: one JSON object per line."""

from __future__ import annotations

import json
from typing import IO

import orjson

from .base import RECORD_BYTES, Record, Records, not_utf8, shown, too_long
from .compression import line_blocks
from .fields import BadRow, Fields, NumberAsWritten, lookup


def read_jsonl(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """A JSON object a line."""
    row = 0
    for block in line_blocks(handle, compression, RECORD_BYTES):
        filled = [line for line in block if line is None or (line and not line.isspace())]
        records = _objects(filled, fields) or [_object(line, fields) for line in filled]
        yield row, records
        row += len(records)


def _objects(block: list[bytes | None], fields: Fields) -> list[Record | BadRow] | None:
    """All lines of a block as objects, where nothing is wrong with any and no id needs its digits."""
    try:
        records = [orjson.loads(line) for line in block]  # type: ignore[arg-type]  # None is what the except is for
    except orjson.JSONDecodeError:
        return None
    if any(type(record) is not dict for record in records):
        return None
    if fields.id is not None and any(isinstance(lookup(record, fields.id), float) for record in records):
        return None
    return records


def _object(line: bytes | None, fields: Fields) -> Record | BadRow:
    if line is None:
        return too_long(RECORD_BYTES)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = "not UTF-8" if "surrogate" in str(error) else "malformed record"
        return not_utf8(line) or BadRow(reason, str(error), text=shown(line))  # type: ignore[arg-type]
    if not isinstance(record, dict):
        return BadRow("malformed record", "the line is JSON, but no object", text=shown(line))
    if fields.id is not None and isinstance(lookup(record, fields.id), float):
        try:
            written = json.loads(line, parse_float=NumberAsWritten, parse_int=NumberAsWritten)
        except RecursionError:  # json gives up a little before orjson does
            return BadRow("malformed record", "the line is nested too deep", text=shown(line))
        return {**record, fields.id: lookup(written, fields.id)}
    return record
