"""What the line formats share: what a record is, how long it may be, and what becomes of lines that are no text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from .fields import BadRow

Record: TypeAlias = "dict[str, object] | str"


Records: TypeAlias = "Iterator[tuple[int, list[Record | BadRow]]]"

# A line of jsonl or a record of csv may hold much beside its text; what is longer is not even gathered.
RECORD_BYTES = 16 << 20


def too_long(limit: int, what: str = "record") -> BadRow:
    """Why a record of over `limit` bytes is none."""
    return BadRow("too long", f"the {what} is over {limit:,} bytes")


def not_utf8(line: bytes) -> BadRow | None:
    """Why a line is no text, or None where it is."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return BadRow("not UTF-8", f"byte {error.start} of the line cannot be decoded", text=shown(line))
    return None


def shown(line: bytes) -> str:
    """The beginning of a line, for people."""
    return line[:1000].decode("utf-8", "backslashreplace")


def decoded(block: list[bytes | None]) -> list[str] | None:
    """The lines as text, where all are there and UTF-8."""
    try:
        return b"\n".join(block).decode().split("\n")  # type: ignore[arg-type]  # None is what the except is for
    except (UnicodeDecodeError, TypeError):
        return None
