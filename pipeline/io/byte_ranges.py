"""Parts of files as files: ByteRange of an opened one, and BlockFile, which reads no more of a file than is needed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import IO, Any

BLOCK_BYTES = 64 << 10  # of a header, most of which have less


class ByteRange(io.RawIOBase):
    """The `size` bytes of a seekable file from `offset` on, as a file; closing it leaves the whole file open."""

    def __init__(self, whole: IO[bytes], offset: int, size: int) -> None:
        super().__init__()
        self._whole, self._offset, self._size, self._position = whole, offset, size, 0

    def readinto(self, buffer: Any, /) -> int:
        """Read into `buffer`, and return the number of bytes."""
        n = max(0, min(len(buffer), self._size - self._position))
        if not n:
            return 0
        self._whole.seek(self._offset + self._position)
        data = self._whole.read(n)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position, and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"there is no position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


class BlockFile(io.RawIOBase):
    """A file of `size` bytes of which blocks are read when they are needed, each once; `read_range(offset, size)` reads."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size, self._read_range, self._position = size, read_range, 0
        self._blocks: dict[int, bytes] = {}

    def readinto(self, buffer: Any, /) -> int:
        """Read into `buffer`, and return the number of bytes."""
        n = max(0, min(len(buffer), self._size - self._position))
        if n > BLOCK_BYTES:
            buffer[:n] = self._read_range(self._position, n)
        elif n:
            start = self._position - self._position % BLOCK_BYTES
            blocks = (self._block(offset) for offset in range(start, self._position + n, BLOCK_BYTES))
            buffer[:n] = b"".join(blocks)[self._position - start :][:n]
        self._position += n
        return n

    def _block(self, offset: int) -> bytes:
        if offset not in self._blocks:
            self._blocks[offset] = self._read_range(offset, min(BLOCK_BYTES, self._size - offset))
        return self._blocks[offset]

    def readall(self) -> bytes:
        """Return all bytes from the position on."""
        return self.read(self._size - self._position) or b""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position, and return it."""
        self._position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence] + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """Return the next `size` bytes of a file, or fewer at its end."""
    data = file.read(size)
    if len(data) == size or not data:
        return data
    pieces, missing = [data], size - len(data)
    while missing and (piece := file.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
