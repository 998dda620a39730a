"""Headers of tars: v7, ustar, pax and GNU, with long names, sizes over 8 GiB and the maps of sparse members."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .compression import DamagedShard
from .shard import RECORD_BYTES

BLOCK = 512
MAX_NUMBER = 1 << 60  # of bytes: more are damage, and would not fit into the columns of a row

_CHECKSUM = slice(148, 156)
_OCTAL = re.compile(rb" *([0-7]*) *(?:\0.*)?", re.DOTALL)
_DECIMAL = re.compile(rb"\d{1,19}")

# What the type flag of a header says, of those without bytes behind them; all others have bytes.
_WITHOUT_BYTES = {b"1": "hard link", b"2": "link", b"3": "device", b"4": "device", b"5": "directory", b"6": "pipe"}
_FILE, _SPARSE, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), b"S", b"L", b"K", (b"x", b"X"), b"g"

# The keys of pax headers that say where the bytes of a member are, and what it is called.
_PAX_KEYS = (b"path", b"size")
_PAX_SPARSE = b"GNU.sparse."

# (place in the content, size) of the regions of a sparse member that are stored; the rest are zeros.
Regions = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        name: Its path in the tar.
        kind: "file", or what else it is.
        offset: Where its bytes begin, in the tar without compression.
        stored: How many bytes there are.
        size: The bytes of its content.
        regions: Which of these are stored, of a sparse member; None if all are.
        fault: Why its content cannot be read, or "".
    """

    name: bytes
    kind: str
    offset: int
    stored: int
    size: int
    regions: Regions | None = None
    fault: str = ""

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.offset + padded(self.stored)


def padded(size: int) -> int:
    """Return how many bytes so many take in whole blocks."""
    return -(-size // BLOCK) * BLOCK


@dataclass
class HeaderReader:
    """Reader of the headers of members, which may take several blocks.

    Attributes:
        read: Returns the next bytes of the tar, so many, or fewer at its end.
        tell: Returns how many bytes of the tar were read.
    """

    read: Callable[[int], bytes]
    tell: Callable[[], int]
    _globals: dict[bytes, bytes] = field(default_factory=dict)

    def read_member(self, block: bytes) -> Member:
        """Return the member whose headers begin with a block. Raise DamagedShard if they are damaged."""
        name: bytes | None = None
        pax, pairs, start = dict(self._globals), list[tuple[bytes, bytes]](), self.tell() - BLOCK
        while True:
            if not is_header(block):
                raise DamagedShard(f"the header at byte {self.tell() - BLOCK:,} is damaged: copy the tar again")
            flag, size = block[156:157], _number(block[124:136], start)
            if flag == _LONG_NAME:
                name = self._payload(size, start).partition(b"\0")[0]
            elif flag in _PAX:
                pairs = list(_pax_pairs(self._payload(size, start), start))
                pax = {**self._globals, **dict(pairs)}
            elif flag == _PAX_GLOBAL:
                found = dict(_pax_pairs(self._payload(size, start), start))
                self._globals.update({key: value for key, value in found.items() if key in _PAX_KEYS})
                pax = {**self._globals, **pax}
            elif flag == _LONG_LINK:
                self._payload(size, start)
            else:
                return self._member(block, flag, size, start, name=name, pax=pax, pairs=pairs)
            if len(block := self.read(BLOCK)) < BLOCK:
                raise DamagedShard(f"the tar ends inside of the header at byte {start:,}: copy it again")

    def _payload(self, size: int, start: int) -> bytes:
        if size > RECORD_BYTES:
            raise DamagedShard(f"the header at byte {start:,} has {size:,} bytes, over {RECORD_BYTES:,}")
        data = self.read(padded(size))
        if len(data) < padded(size):
            raise DamagedShard(f"the tar ends inside of the header at byte {start:,}: copy it again")
        return data[:size]

    def _member(
        self,
        block: bytes,
        flag: bytes,
        size: int,
        start: int,
        *,
        name: bytes | None,
        pax: dict[bytes, bytes],
        pairs: list[tuple[bytes, bytes]],
    ) -> Member:
        name = pax.get(b"path") or name or _name(block)
        if kind := _WITHOUT_BYTES.get(flag):
            return Member(name, kind, self.tell(), 0, 0)
        if b"size" in pax:
            size = _decimal(pax[b"size"], start)
        if flag == _SPARSE:
            regions, real = self._gnu_map(block, start), _number(block[483:495], start)
            return _sparse(name, self.tell(), size, real, regions)
        kind = "file" if flag in _FILE and not name.endswith(b"/") else "directory" if flag in _FILE else "other"
        sparse = {key.removeprefix(_PAX_SPARSE): value for key, value in pax.items() if key.startswith(_PAX_SPARSE)}
        if kind != "file" or not sparse:
            return Member(name, kind, self.tell(), size, size)
        real = _decimal(sparse.get(b"realsize") or sparse.get(b"size") or b"", start)
        name = sparse.get(b"name", name)
        if sparse.get(b"major") == b"1":
            before = self.tell()
            regions = self._map_in_data(size, start)
            return _sparse(name, self.tell(), size - (self.tell() - before), real, regions)
        if b"map" in sparse:
            numbers = [_decimal(number, start) for number in sparse[b"map"].split(b",") if number]
        else:  # each pair of keys once for every region
            numbers = [_decimal(value, start) for key, value in pairs if key in _REGION_KEYS]
        if len(numbers) % 2:
            raise DamagedShard(f"the header at byte {start:,} has half of a region")
        return _sparse(name, self.tell(), size, real, _pairs(numbers))

    def _gnu_map(self, block: bytes, start: int) -> Regions:
        """Return the regions of a sparse member of GNU's own format: 4 in its header, 21 in each block that follows."""
        fields, more = block[386:482], block[482]
        while more:
            block = self.read(BLOCK)
            if len(block) < BLOCK or len(fields) > RECORD_BYTES:
                raise DamagedShard(f"the tar ends inside of the header at byte {start:,}: copy it again")
            fields, more = fields + block[:504], block[504]
        entries = [fields[place : place + 24] for place in range(0, len(fields), 24)]
        used = [entry for entry in entries if entry.strip(b"\0 ")]
        return tuple((_number(entry[:12], start), _number(entry[12:], start)) for entry in used)

    def _map_in_data(self, size: int, start: int) -> Regions:
        """Return the regions of a sparse member of pax's version 1.0: lines with numbers before its bytes."""
        data, numbers = b"", list[bytes]()
        while not numbers or len(numbers) < 1 + 2 * _decimal(numbers[0], start):
            block = self.read(BLOCK)
            data += block
            if len(block) < BLOCK or len(data) > min(padded(size), RECORD_BYTES):
                raise DamagedShard(f"the map of the sparse member at byte {start:,} is damaged")
            numbers = data.split(b"\n")[:-1]
        count = _decimal(numbers[0], start)
        return _pairs([_decimal(number, start) for number in numbers[1 : 1 + 2 * count]])


_REGION_KEYS = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


def is_header(block: bytes) -> bool:
    """Return whether a block is a header, by its checksum."""
    found = _OCTAL.fullmatch(block[_CHECKSUM])
    if not found or not found[1]:
        return False
    rest, checksum = block[:148] + b" " * 8 + block[156:], int(found[1], 8)
    if checksum == sum(rest):
        return True
    return checksum == sum(rest) - 256 * sum(byte > 127 for byte in rest)  # some old programs added signed bytes


def _name(block: bytes) -> bytes:
    """Return the name in a header: that of ustar has a part in front, and star's has one of another length."""
    name = block[:100].partition(b"\0")[0]
    if block[257:263] != b"ustar\0":
        return name
    front = block[345 : 476 if block[508:512] == b"tar\0" else 500].partition(b"\0")[0]
    return b"/".join([front, name]) if front else name


def _number(digits: bytes, start: int) -> int:
    """Return the number in a field of a header: octal digits, or binary ones behind a byte of 128."""
    if digits[0] == 0x80:
        return _bounded(int.from_bytes(digits[1:], "big"), start)
    found = _OCTAL.fullmatch(digits)
    if not found:
        raise DamagedShard(
            f"the header at byte {start:,} has a number with other characters than digits: copy the tar again"
        )
    return _bounded(int(found[1] or b"0", 8), start)


def _decimal(digits: bytes, start: int) -> int:
    if not _DECIMAL.fullmatch(digits):
        raise DamagedShard(
            f"the header at byte {start:,} has a number with other characters than digits: copy the tar again"
        )
    return _bounded(int(digits), start)


def _bounded(number: int, start: int) -> int:
    if number > MAX_NUMBER:
        raise DamagedShard(
            f"the header at byte {start:,} has the number {number:,}, of too many bytes: copy the tar again"
        )
    return number


def _pax_pairs(data: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    r"""Yield (key, value) of the records of a pax header, each "LENGTH KEY=VALUE\n"."""
    at = 0
    while at < len(data) and data[at]:
        digits = data[at : at + 20].partition(b" ")[0]
        end = at + _decimal(digits, start)
        record = data[at:end]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if end > len(data) or not equals or record[-1:] != b"\n":
            raise DamagedShard(f"the header at byte {start:,} has a record that is damaged: copy the tar again")
        if key in _PAX_KEYS or key.startswith(_PAX_SPARSE):
            yield key, value
        at = end


def _pairs(numbers: list[int]) -> Regions:
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _sparse(name: bytes, offset: int, stored: int, size: int, regions: Regions) -> Member:
    """Return a sparse member; it has a fault if its regions overlap, or are not those that are stored."""
    ends = [0, *(place + length for place, length in regions)]
    in_order = all(place >= end for (place, _), end in zip(regions, ends, strict=False))
    fits = ends[-1] <= size and sum(length for _, length in regions) == stored
    fault = "" if in_order and fits else "the map of the sparse member is wrong"
    return Member(name, "file", offset, max(0, stored), size, regions, fault)
