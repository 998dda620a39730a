"""Records of csv and tsv: quoted as RFC 4180 has it, the first one names the fields."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from typing import IO

from .base import RECORD_BYTES, Record, Records, decoded, shown, too_long
from .compression import BLOCK_ROWS, DamagedShard, line_blocks
from .fields import BadRow, Fields

_LINE, _AGAIN = 64, 64 << 20  # the price of a line beside its bytes, and what lines read again may cost at any rate


class _Unending(Exception):
    """A csv record that is not read any further."""


class _Delimited:
    """Records of csv: of a block of lines at once where no quotes are in it, else one by one.

    One by one, the lines of the record in the making are held, to go back to the line behind its first where it fails.
    """

    def __init__(self, blocks: Iterator[list[bytes | None]], delimiter: str) -> None:
        self.blocks, self.delimiter = blocks, delimiter
        self.waiting, self.held, self.bytes = list[bytes | None](), list[bytes](), 0  # waiting: last line first
        self.fresh, self.again = 0, 0  # what was read, and what of it was read again
        self.damage: DamagedShard | None = None

    def records(self) -> Iterator[list[list[str] | BadRow]]:
        """Blocks of records, a blank line as []; DamagedShard at the end where the lines ended with it."""
        while self._fill():
            at_once = self._at_once()
            if at_once is not None:
                yield at_once
                continue
            self.reader = self._reader()
            while self.waiting:
                yield [self._record() for _ in range(BLOCK_ROWS) if self.waiting]
        if self.damage:
            raise self.damage

    def _fill(self) -> bool:
        """Have the next block wait, unless the lines are at an end."""
        try:
            self.waiting = next(self.blocks, [])[::-1]
        except DamagedShard as damage:  # told when the lines that a record in the making had taken are read
            self.damage = damage
        self.fresh += sum(_LINE + len(line or b"") for line in self.waiting)
        return bool(self.waiting)

    def _at_once(self) -> list[list[str] | BadRow] | None:
        lines = decoded(self.waiting[::-1])
        if lines is None or '"' in "".join(lines):
            return None
        try:
            found: list[list[str] | BadRow] = list(csv.reader(lines, delimiter=self.delimiter, strict=True))
        except csv.Error:
            return None
        self.waiting = []
        return found

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self, delimiter=self.delimiter, strict=True)

    def __iter__(self) -> _Delimited:
        return self

    def __next__(self) -> str:
        """The reader's next line."""
        if not self.waiting and not self._fill():
            raise StopIteration
        line = self.waiting[-1]
        if line is None:
            raise _Unending(f"a line of the record is over {RECORD_BYTES:,} bytes")
        self.waiting.pop()
        self.held.append(line)
        self.bytes += len(line)
        if self.bytes > RECORD_BYTES:
            raise _Unending(f"the record is over {RECORD_BYTES:,} bytes: is a quote left open?")
        return line.decode("utf-8", "surrogateescape") + "\n"

    def _record(self) -> list[str] | BadRow:
        if self.waiting[-1] is None:
            self.waiting.pop()
            return too_long(RECORD_BYTES)
        found: list[str] | BadRow
        try:
            found = next(self.reader)
        except (csv.Error, _Unending) as error:
            found = BadRow("malformed record", str(error), text=shown(self.held[0]))
            self.again += sum(_LINE + len(line) for line in self.held)
            if self.again > _AGAIN + 8 * self.fresh:  # lines can be made such that each one opens a quote to the end
                raise DamagedShard("too many quotes are left open") from None
            self.waiting.extend(reversed(self.held[1:]))
            self.reader = self._reader()
        self.held, self.bytes = [], 0
        return found


def read_delimited(delimiter: str) -> Callable[[IO[bytes], str | None, Fields, int], Records]:
    """The reader of csv (",") or tsv ("\\t"): quoted as RFC 4180 has it, the first record names the fields."""

    def read(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
        csv.field_size_limit(2 * RECORD_BYTES)
        row, names = 0, list[str]()
        for found in _Delimited(line_blocks(handle, compression, RECORD_BYTES), delimiter).records():
            found = [values for values in found if values]
            if not names and found:
                header = found.pop(0)
                if isinstance(header, BadRow):
                    raise DamagedShard(f"csv: the header cannot be read: {header.detail}")
                names = [_readable(name)[0] for name in header]
            yield row, [bad if isinstance(bad, BadRow) else _named(names, bad, delimiter) for bad in found]
            row += len(found)

    return read


def _named(names: list[str], values: list[str], delimiter: str) -> Record | BadRow:
    if len(values) != len(names):
        detail = f"{len(values)} fields, the header has {len(names)}"
        return BadRow("malformed record", detail, text=_readable(delimiter.join(values)[:1000])[0])
    if not all(map(str.isascii, values)):
        for name, value in zip(names, values, strict=True):
            clear, clean = _readable(value)
            if not clean:
                return BadRow("not UTF-8", f"field {name!r} cannot be decoded", text=clear[:1000])
    return dict(zip(names, values, strict=True))


def _readable(value: str) -> tuple[str, bool]:
    """(`value` with undecodable bytes spelled out, whether there were none)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), False
    return value, True
