"""Records of txt: one row per line."""

from __future__ import annotations

from typing import IO

from .base import Record, Records, decoded, not_utf8, too_long
from .compression import line_blocks
from .fields import BadRow, Fields


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
