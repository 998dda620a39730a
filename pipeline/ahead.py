"""A file whose pieces are looked at before somebody else reads them, and fetched once for both."""

from __future__ import annotations

import os
from typing import IO


class Ahead:
    """A file that gives out again what was read ahead of it, so that each chunk of a column is fetched once."""

    closed = False

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.at = handle, 0
        self.size = handle.seek(0, os.SEEK_END)
        self._ahead: dict[tuple[int, int], bytes] = {}

    def load(self, start: int, length: int) -> bytes:
        """The bytes there, kept until they are read or `forget` is called."""
        if start < 0 or length < 0 or start + length > self.size:
            raise ValueError(f"a column is said to be where the file has nothing, at {start:,}")
        self.handle.seek(start)
        data = self.handle.read(length)
        self._ahead[start, length] = data
        return data

    def forget(self) -> None:
        """Let go of what nobody came for."""
        self._ahead.clear()

    def read(self, size: int = -1) -> bytes:
        """As of any file."""
        size = max(0, self.size - self.at) if size < 0 else size
        data = self._ahead.pop((self.at, size), None)
        if data is None:
            self.handle.seek(self.at)
            data = self.handle.read(size)
        self.at += len(data)
        return data

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        self.at = to + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        """As of any file."""
        return self.at

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is not."""
        return False

    def close(self) -> None:
        """Whoever opened the file closes it."""
