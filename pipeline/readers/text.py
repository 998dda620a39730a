"""Records of txt: each line is one row."""

from __future__ import annotations

from typing import IO

from ...model.head import BadRow
from .compression import line_blocks
from .fields import Fields
from .notes import ShardNotes
from .reader import RecordReader, check_utf8, decode_lines, too_long
from .shard import Record, Records, Shard


def _blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int, notes: ShardNotes) -> Records:
    row = 0
    for block in line_blocks(handle, shard, limit, notes):
        texts = decode_lines(block)
        if texts is not None:
            yield row, [text.removesuffix("\r") for text in texts]
        else:
            yield row, [_line(line, limit) for line in block]
        row += len(block)


def _line(line: bytes | None, limit: int) -> Record | BadRow:
    if line is None:
        return too_long(limit, "line")
    return check_utf8(line) or line.decode().removesuffix("\r")


TEXT = RecordReader(_blocks, has_fields=False)
