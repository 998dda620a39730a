"""Records of csv and tsv as lists of values: with quotes and escapes, or each line as it is."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import NamedTuple

from ...model.head import BadRow
from .compression import BLOCK_ROWS, DamagedShard
from .notes import Notice, ShardNotes
from .reader import decode_lines, excerpt, too_long
from .shard import RECORD_BYTES

# Cost of a line besides its bytes, and the bytes that may be read again in any file.
_LINE_COST, _REREAD_BYTES = 64, 64 << 20

# Stands for a carriage return that is text: csv.reader refuses it outside of quotes. No file can contain it.
_RETURN = "\ud800"


class Syntax(NamedTuple):
    """How the values of a record are separated and quoted."""

    delimiter: str
    quoting: str  # "minimal" or "none"
    escape: str | None = None


class _RecordTooLong(Exception):
    """A record that is not read any further."""


class RecordParser:
    """Parser of records: of a whole block of lines if it contains neither quotes nor escapes, else one by one.

    While a record is read, its lines are held: if it is malformed, reading continues with the line after its first.

    Args:
        blocks: Blocks of lines.
        syntax: How values are separated and quoted.
        notes: What is noticed.
        line: The number of the first line.
    """

    def __init__(self, blocks: Iterator[list[bytes | None]], syntax: Syntax, notes: ShardNotes, line: int = 1) -> None:
        self.blocks, self.syntax, self.notes, self.line = blocks, syntax, notes, line
        self.quoted, delimiter = syntax.quoting == "minimal", re.escape(syntax.delimiter)
        self.looks_quoted = re.compile(rf'(?:^|{delimiter})"[^{delimiter}]*"(?={delimiter}|\r?$)')
        self.separators = 0  # between the values of the header
        self.waiting: list[bytes | None] = []  # last line first
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.fresh, self.reread = 0, 0  # bytes that were read, and bytes of them that were read again
        self.damage: DamagedShard | None = None

    def records(self) -> Iterator[list[list[str] | BadRow]]:
        """Yield blocks of records, a blank line as []; raise DamagedShard at the end if the lines ended with it."""
        while self._fill():
            block = self._whole_block() if self.quoted else self._split_block()
            if block is not None:
                yield block
                continue
            self.reader = self._reader()
            while self.waiting:
                yield [self._record() for _ in range(BLOCK_ROWS) if self.waiting]
        if self.damage:
            raise self.damage

    def _fill(self) -> bool:
        """Read the next block of lines; return False at the end."""
        try:
            self.waiting = next(self.blocks, [])[::-1]
        except DamagedShard as damage:  # raised after the lines that an unfinished record holds are read
            self.damage = damage
        self.line += len(self.waiting)
        self.fresh += sum(_LINE_COST + len(line or b"") for line in self.waiting)
        return bool(self.waiting)

    def _whole_block(self) -> list[list[str] | BadRow] | None:
        lines = decode_lines(self.waiting[::-1])
        if lines is None or self.notes.lone_returns:
            return None
        text = "".join(lines)
        if '"' in text or (self.syntax.escape and self.syntax.escape in text):
            return None
        try:
            records = list(csv.reader(lines, delimiter=self.syntax.delimiter, strict=True))
        except csv.Error:
            return None
        self.waiting = []
        self.separators = self.separators or max(0, max(map(len, records[:1]), default=0) - 1)
        return [*records]

    def _split_block(self) -> list[list[str] | BadRow] | None:
        """Return the records of a block without quoting, a line each, or None if an escape may join it with the next."""
        lines = self.waiting[::-1]
        texts: list[str] | None = decode_lines(lines)
        if texts is None:
            texts = [(line or b"").decode("utf-8", "surrogateescape") for line in lines]
        text = "\n".join(texts)
        if self.syntax.escape and self.syntax.escape in text:
            return None
        self.waiting = []
        if '"' in text:
            self._note_quoted(texts)
        if "\r" in text:
            texts = [text.rstrip("\r") for text in texts]
        delimiter = self.syntax.delimiter
        records: list[list[str] | BadRow] = [text.split(delimiter) if text else [] for text in texts]
        if None in lines:
            return [too_long(RECORD_BYTES) if line is None else records[n] for n, line in enumerate(lines)]
        return records

    def _note_quoted(self, texts: list[str]) -> None:
        """Note the values that begin and end with a quote."""
        found = [len(self.looks_quoted.findall(text)) for text in texts]
        if any(found):
            first = next(place for place, times in enumerate(found) if times)
            self.notes.add(Notice.QUOTED, self.line - len(texts) + first, times=sum(found))

    def _reader(self) -> Iterator[list[str]]:
        if self.syntax.escape:
            return _read_escaped(self, self.syntax)
        return csv.reader(self, delimiter=self.syntax.delimiter, strict=True)

    def __iter__(self) -> RecordParser:
        return self

    def __next__(self) -> str:
        """Return the next line, for csv.reader."""
        if not self.waiting and not self._fill():
            raise StopIteration
        line = self.waiting[-1]
        if line is None:
            raise _RecordTooLong(f"a line of the record is over {RECORD_BYTES:,} bytes")
        self.waiting.pop()
        self.pending.append(line)
        self.pending_bytes += len(line)
        if self.pending_bytes > RECORD_BYTES:
            raise _RecordTooLong(f"the record is over {RECORD_BYTES:,} bytes: is a quote left open?")
        text = line.decode("utf-8", "surrogateescape")
        if self.notes.lone_returns:
            start = text.rstrip("\r")  # as csv.reader has it, several before a line feed are one line end
            text = start.replace("\r", _RETURN) + text[len(start) :]
        return text + self.notes.line_end

    def _record(self) -> list[str] | BadRow:
        if self.waiting[-1] is None:
            self.waiting.pop()
            return too_long(RECORD_BYTES)
        record: list[str] | BadRow
        try:
            record = next(self.reader)
        except (csv.Error, _RecordTooLong) as error:
            record = BadRow("malformed record", self._explain(error), excerpt=excerpt(self.pending[0]))
            self.reread += sum(_LINE_COST + len(line) for line in self.pending)
            # Without this limit, a file in which each line opens a quote takes quadratic time.
            if self.reread > _REREAD_BYTES + 8 * self.fresh:
                raise DamagedShard("too many quotes are left open") from None
            self.waiting.extend(reversed(self.pending[1:]))
            self.reader = self._reader()
        else:
            if self.notes.lone_returns:
                record = [value.replace(_RETURN, "\r") for value in record]
            if len(self.pending) > 1 and self.quoted:
                self._note_swallowed()
            self.separators = self.separators or max(0, len(record) - 1)
        self.pending, self.pending_bytes = [], 0
        return record

    def _note_swallowed(self) -> None:
        """Note a record of several lines of which each could be a record."""
        delimiter = self.syntax.delimiter.encode()
        if self.separators and all(line.count(delimiter) == self.separators for line in self.pending):
            after = self.line - len(self.waiting)
            self.notes.add(Notice.SWALLOWED, after - len(self.pending), after - 1)

    def _explain(self, error: Exception) -> str:
        """Return why a record cannot be read, and the flag that reads it."""
        if not self.syntax.escape and any(rb"\"" in line for line in self.pending):
            return rf"a backslash before a quote does not escape it here: if it should, give --escape '\' ({error})"
        return str(error)


def _read_escaped(lines: Iterator[str], syntax: Syntax) -> Iterator[list[str]]:
    r"""Yield records, as csv.reader does, in which an escape makes text of a quote, a separator, a line end and itself.

    Before any other character it is text, as Spark has it: "C:\temp" keeps its backslash. It takes a line end into a value
    in quotes, or into any value if nothing is quoted. A whole value of the escape and "N" stands for null, and is empty.
    """
    escape, delimiter, quoted = syntax.escape or "", syntax.delimiter, syntax.quoting == "minimal"
    e, d = re.escape(escape), re.escape(delimiter)
    in_quotes, plain = (
        re.compile(rf'(?:[^"{e}]+|{e}.|"")*+', re.DOTALL),
        re.compile(rf"(?:[^{d}{e}]+|{e}.)*+", re.DOTALL),
    )
    special = re.compile(rf'{e}(["{e}{d}\r\n{_RETURN}])')
    special_in_quotes = re.compile(rf'{special.pattern}|"(")')
    while (line := next(lines, None)) is not None:
        (text, end), place, record = _without_end(line), 0, list[str]()
        while text:  # a value begins at `place`
            parts, is_quoted = list[str](), quoted and text.startswith('"', place)
            place += is_quoted
            while found := (in_quotes if is_quoted else plain).match(text, place):
                parts.append(found[0])
                place = found.end()
                if text.startswith('"' if is_quoted else delimiter, place):
                    break
                parts.append(text[place:])  # an escape before the line's end
                if not is_quoted and (quoted or place == len(text)):
                    place = len(text)
                    break
                parts.append(end)
                if (line := next(lines, None)) is None:
                    raise csv.Error("unexpected end of data")
                (text, end), place = _without_end(line), 0
            value, place = "".join(parts), place + is_quoted
            if is_quoted and place < len(text) and text[place] != delimiter:
                raise csv.Error(f"{delimiter!r} expected after '\"'")
            if is_quoted:
                record.append(special_in_quotes.sub(lambda match: match[1] or match[2], value))
            else:
                record.append("" if value == f"{escape}N" else special.sub(r"\1", value))
            if place >= len(text):
                break
            place += 1
        yield record


def _without_end(line: str) -> tuple[str, str]:
    """Return a line without its end, and the end."""
    text = line.rstrip("\r\n")
    return text, line[len(text) :]
