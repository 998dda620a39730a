"""ByteRange: a part of an opened file as a file of its own."""

from __future__ import annotations

import io
import os
from typing import IO, Any


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
