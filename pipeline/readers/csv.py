"""Records of csv and tsv, quoted as in RFC 4180; the first record names the fields."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import IO

from ...model.head import BadRow
from .compression import BLOCK_ROWS, BadHeader, DamagedShard, line_blocks
from .fields import Fields
from .reader import EXCERPT, RecordReader, decode_lines, excerpt, some_of, too_long
from .shard import RECORD_BYTES, Record, Records, Shard

# Cost of a line besides its bytes, and the bytes that may be read again in any file.
_LINE_COST, _REREAD_BYTES = 64, 64 << 20


# Python's message names a remedy that users do not have.
_CARRIAGE_RETURN = (
    "a carriage return (CR) is outside of quotes, and no line feed (LF) follows it: quote the field, or if all lines end "
    r"so, convert them, as in tr '\r' '\n' < OLD > NEW"
)


class _RecordTooLong(Exception):
    """A record that is not read any further."""


class _RecordParser:
    """Parser of records: of a whole block of lines if it contains no quotes, else one by one.

    While a record is read, its lines are held: if it is malformed, reading continues with the line after its first.
    """

    def __init__(self, blocks: Iterator[list[bytes | None]], delimiter: str) -> None:
        self.blocks, self.delimiter = blocks, delimiter
        self.waiting: list[bytes | None] = []  # last line first
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.fresh, self.reread = 0, 0  # bytes that were read, and bytes of them that were read again
        self.damage: DamagedShard | None = None

    def records(self) -> Iterator[list[list[str] | BadRow]]:
        """Yield blocks of records, a blank line as []; raise DamagedShard at the end if the lines ended with it."""
        while self._fill():
            block = self._whole_block()
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
        self.fresh += sum(_LINE_COST + len(line or b"") for line in self.waiting)
        return bool(self.waiting)

    def _whole_block(self) -> list[list[str] | BadRow] | None:
        lines = decode_lines(self.waiting[::-1])
        if lines is None or '"' in "".join(lines):
            return None
        try:
            records: list[list[str] | BadRow] = list(csv.reader(lines, delimiter=self.delimiter, strict=True))
        except csv.Error:
            return None
        self.waiting = []
        return records

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self, delimiter=self.delimiter, strict=True)

    def __iter__(self) -> _RecordParser:
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
        return line.decode("utf-8", "surrogateescape") + "\n"

    def _record(self) -> list[str] | BadRow:
        if self.waiting[-1] is None:
            self.waiting.pop()
            return too_long(RECORD_BYTES)
        record: list[str] | BadRow
        try:
            record = next(self.reader)
        except (csv.Error, _RecordTooLong) as error:
            detail = _CARRIAGE_RETURN if str(error).startswith("new-line character") else str(error)
            record = BadRow("malformed record", detail, excerpt=excerpt(self.pending[0]))
            self.reread += sum(_LINE_COST + len(line) for line in self.pending)
            # Without this limit, a file in which each line opens a quote takes quadratic time.
            if self.reread > _REREAD_BYTES + 8 * self.fresh:
                raise DamagedShard("too many quotes are left open") from None
            self.waiting.extend(reversed(self.pending[1:]))
            self.reader = self._reader()
        self.pending, self.pending_bytes = [], 0
        return record


def _csv_blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int) -> Records:
    return _blocks(handle, shard, fields, shard.delimiter or ",", is_csv=True)


def _tsv_blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int) -> Records:
    return _blocks(handle, shard, fields, "\t", is_csv=False)


def _blocks(handle: IO[bytes], shard: Shard, fields: Fields, delimiter: str, *, is_csv: bool) -> Records:
    csv.field_size_limit(2 * RECORD_BYTES)
    row, names = 0, list[str]()
    for block in _RecordParser(line_blocks(handle, shard.compression, RECORD_BYTES), delimiter).records():
        records = [values for values in block if values]
        if not names and records:
            header = records.pop(0)
            if isinstance(header, BadRow):
                raise DamagedShard(f"csv: the header cannot be read: {header.detail}")
            names = [_printable(name)[0] for name in header]
            _check_repeated(names)
            if len(names) == 1 and names[0] not in fields.columns:
                _check_delimiter(names[0], shard, delimiter, is_csv=is_csv)
        yield row, [bad if isinstance(bad, BadRow) else _named(names, bad, delimiter) for bad in records]
        row += len(records)


def _check_repeated(names: list[str]) -> None:
    """Raise BadHeader if a name occurs twice."""
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise BadHeader(
            f"the header has the field {some_of(list(map(repr, repeated)))} more than once: rename the others"
        )


def _check_delimiter(name: str, shard: Shard, delimiter: str, *, is_csv: bool) -> None:
    """Raise BadHeader if the only name of a header seems to be several with another delimiter."""
    other = next((other for other in ";\t|," if other != delimiter and other in name), None)
    if other:
        rest = " without --delimiter" if shard.delimiter else ""
        if other == "," and is_csv:
            remedy = "leave --delimiter out"
        elif other in ",\t":
            remedy = f"try --input_format {'csv' if other == ',' else 'tsv'}{rest}"
        else:
            remedy = f"try {'' if is_csv else '--input_format csv '}--delimiter '{other}'"
        raise BadHeader(f"the header {name[:EXCERPT]!r} is a single field that contains {other!r}: {remedy}")


def _named(names: list[str], values: list[str], delimiter: str) -> Record | BadRow:
    if len(values) != len(names):
        detail = f"{len(values)} fields, the header has {len(names)}"
        return BadRow("malformed record", detail, excerpt=_printable(delimiter.join(values)[:1000])[0])
    if not all(map(str.isascii, values)):
        for name, value in zip(names, values, strict=True):
            text, is_utf8 = _printable(value)
            if not is_utf8:
                return BadRow("not UTF-8", f"field {name!r} cannot be decoded", excerpt=text[:1000])
    return dict(zip(names, values, strict=True))


def _printable(value: str) -> tuple[str, bool]:
    """Return `value` with bytes that are not UTF-8 spelled out, and whether there are none of them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), False
    return value, True


CSV = RecordReader(_csv_blocks, has_delimiter=True)
TSV = RecordReader(_tsv_blocks)
