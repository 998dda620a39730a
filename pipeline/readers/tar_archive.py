"""Archive: a tar, member by member, until its end blocks and the end of the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, Protocol, cast

from ..io.byte_ranges import ByteRange, read_exactly
from .compression import DamagedShard, pieces
from .notes import Notice, ShardNotes
from .recognize import HEAD_BYTES, find_other_format
from .shard import Shard
from .tar_headers import BLOCK, HeaderReader, Member, is_header

BUFFER_BYTES = 1 << 20  # that are read at a time

_END = bytes(BLOCK)


class Archive:
    """A tar, compressed or not, that is read in order.

    Python's tarfile ends silently at a header that is damaged, and at the end blocks of the first of several tars that are
    concatenated. Here a tar ends with a zero block, behind which there are only zeros.

    Args:
        handle: The file.
        shard: The shard.
        notes: Gets a notice if members follow a zero block.
    """

    def __init__(self, handle: IO[bytes], shard: Shard, notes: ShardNotes) -> None:
        self.shard, self.notes = shard, notes
        whole = ByteRange(handle, 0, shard.bytes)  # which leaves the file open
        file = cast(IO[bytes], io.BufferedReader(whole, BUFFER_BYTES))
        self._bytes: _Bytes = _Plain(file, shard.bytes) if shard.compression is None else _Unpacked(file, shard)

    @property
    def position(self) -> int:
        """How many bytes of the tar were read or passed over."""
        return self._bytes.position

    def members(self) -> Iterator[Member]:
        """Yield the members, each before its bytes are read. Raise DamagedShard if the tar ends too early or is damaged."""
        source, ended = self._bytes, False
        headers = HeaderReader(source.read, lambda: source.position)
        while block := source.read(BLOCK):
            if not block.strip(b"\0"):
                ended = True
                continue
            if source.position == len(block) and not is_header(block):
                raise DamagedShard(self._other_content(block))
            if len(block) < BLOCK:
                raise DamagedShard(f"the tar ends inside of the header at byte {source.position - len(block):,}")
            member = headers.read_member(block)
            if ended:
                ended = False
                self.notes.add(Notice.CONCATENATED)
            source.require(member.offset, member.offset + member.stored)
            yield member
            source.move_to(member.end)
        if not ended:
            raise DamagedShard("the tar ends without its end blocks, as if it were cut off: copy it again")

    def open(self, member: Member) -> BinaryIO:
        """Return the content of the member that was yielded last: seekable if it can be read by itself, else in order."""
        if self.is_readable_alone(member):
            return cast(BinaryIO, self._bytes.range(member.offset, member.size))
        return cast(BinaryIO, _Content(self._bytes, member))

    def is_readable_alone(self, member: Member) -> bool:
        """Return whether the content of a member is a range of the file."""
        return self.shard.compression is None and member.regions is None

    def _other_content(self, block: bytes) -> str:
        head = block + self._bytes.read(HEAD_BYTES - BLOCK)
        other = find_other_format(head, self.shard)
        return other or "the content is not a tar: its first block is not the header of a member"


class _Bytes(Protocol):
    position: int

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end."""

    def move_to(self, position: int) -> None:
        """Pass over the bytes before a position."""

    def require(self, start: int, end: int) -> None:
        """Raise DamagedShard if the bytes of a member cannot be there."""

    def range(self, offset: int, size: int) -> ByteRange:
        """Return a part as a file."""


class _Plain:
    """The bytes of a tar that is not compressed."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size, self.position = file, size, 0

    def read(self, size: int) -> bytes:
        self._file.seek(self.position)
        data = read_exactly(self._file, size)
        self.position += len(data)
        return data

    def move_to(self, position: int) -> None:
        self.position = position

    def require(self, start: int, end: int) -> None:
        if end > self._size:
            raise DamagedShard(f"the tar ends at byte {self._size:,}, and the member at byte {start:,} at {end:,}")

    def range(self, offset: int, size: int) -> ByteRange:
        return ByteRange(self._file, offset, size)


class _Unpacked:
    """The bytes of a compressed tar."""

    def __init__(self, file: IO[bytes], shard: Shard) -> None:
        self._pieces, self._piece, self._at, self.position = pieces(file, shard), b"", 0, 0

    def read(self, size: int) -> bytes:
        found = list[bytes]()
        while size:
            if self._at == len(self._piece):
                self._piece, self._at = next(self._pieces, b""), 0
                if not self._piece:
                    break
            data = self._piece[self._at : self._at + size]
            found.append(data)
            self._at += len(data)
            self.position += len(data)
            size -= len(data)
        return b"".join(found)

    def move_to(self, position: int) -> None:
        while self.position < position:
            if not self.read(min(position - self.position, BUFFER_BYTES)):
                raise DamagedShard(f"the tar ends at byte {self.position:,}, inside of a member: copy it again")

    def require(self, start: int, end: int) -> None:
        """Do nothing: its end is not known."""

    def range(self, offset: int, size: int) -> ByteRange:
        raise NotImplementedError


class _Content(io.RawIOBase):
    """The content of a member that is read in order, with zeros for what a sparse one does not store."""

    def __init__(self, source: _Bytes, member: Member) -> None:
        super().__init__()
        regions = member.regions if member.regions is not None else ((0, member.size),)
        self._source, self._regions, self._end = source, iter([*regions, (member.size, 0)]), member.size
        self._position, (self._start, self._left) = 0, next(self._regions)

    def readinto(self, buffer: Any, /) -> int:
        """Read into `buffer`, and return the number of bytes. Raise DamagedShard if the tar ends."""
        while not self._left and self._position >= self._start and self._position < self._end:
            self._start, self._left = next(self._regions)
        holes = self._start - self._position
        size = min(len(buffer), self._end - self._position, holes or self._left)
        data = bytes(size) if holes else self._source.read(size)
        if len(data) < size:
            raise DamagedShard(f"the tar ends at byte {self._source.position:,}, inside of a member: copy it again")
        self._left -= 0 if holes else size
        self._start += 0 if holes else size
        self._position += size
        buffer[:size] = data
        return size

    def readable(self) -> bool:
        """Return True."""
        return True
