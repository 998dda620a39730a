"""Records out of a shard's bytes, one format a function: blocks of (first row's number, records or why they are none).

A record is a dict of fields; a line of txt is a str. Rows count from 0, bad ones included; blank lines of jsonl and csv
are no rows. Whatever the bytes, a reader goes on to the next record, and ends with DamagedShard where it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO

import orjson

from .decompress import line_blocks
from .delimited import read_delimited
from .fields import BadRow, Fields, Written, lookup
from .lines import RECORD_BYTES, Record, Records, decoded, not_utf8, shown, too_long
from .parquet import read_parquet


def read_txt(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """A line a row."""
    row = 0
    for block in line_blocks(handle, compression, limit):
        texts = decoded(block)
        if texts is not None:
            yield row, [text.removesuffix("\r") for text in texts]
        else:
            yield row, [_line(line, limit) for line in block]
        row += len(block)


def _line(line: bytes | None, limit: int) -> Record | BadRow:
    if line is None:
        return too_long(limit, "line")
    return not_utf8(line) or line.decode().removesuffix("\r")


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
            written = json.loads(line, parse_float=Written, parse_int=Written)
        except RecursionError:  # json gives up a little before orjson does
            return BadRow("malformed record", "the line is nested too deep", text=shown(line))
        return {**record, fields.id: lookup(written, fields.id)}
    return record


READERS: dict[str, Callable[[IO[bytes], str | None, Fields, int], Records]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_delimited(","),
    "tsv": read_delimited("\t"),
    "parquet": read_parquet,
}
