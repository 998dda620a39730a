"""Files to read from, with a time limit on every call: no data for `timeout` seconds is an error.

A read that hangs in the operating system (a network mount that is gone, a named pipe without a writer) cannot be
interrupted from within the process. So each file is read in its own thread, and the caller can stop waiting for it. The
thread ends when the file is closed; a thread that hangs ends when the operating system lets go of it. It never keeps a
process alive.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import IO, Any, TypeVar

from apache_beam.io.filesystems import FileSystems

from .filesystem import StoreError, check_bucket, error_text, is_local
from .worker_thread import WorkerThread

# Seconds. The stores' clients have their own time limits and retries: gs:// two minutes, s3:// about eight.
READ_TIMEOUT = 600

_T = TypeVar("_T")


def open_to_read(path: str, timeout: float = READ_TIMEOUT) -> IO[bytes]:
    """Open the file at `path`, without decompressing it; the caller closes it.

    Raises StoreError if a call, this one included, takes longer than `timeout` seconds.
    """
    return _TimeoutReader(path, timeout)  # type: ignore[return-value]  # a RawIOBase has what IO[bytes] asks for


class _TimeoutReader(io.RawIOBase):
    """A readable, seekable file whose calls run in its own thread."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self.path, self.timeout, self._stuck = path, timeout, False
        self._thread = WorkerThread(f"read {path}")
        self._handle: IO[bytes] | None = None
        try:
            self._handle = self._run(lambda: _open(path))
        except BaseException:
            self._thread.end()
            raise

    def _run(self, call: Callable[[], _T]) -> _T:
        """Return the result of `call`, or raise StoreError if it takes too long."""
        if self._stuck or not self._thread.thread.is_alive():
            raise StoreError(f"{self.path} is closed")
        future = self._thread.submit(call)
        try:
            return future.result(self.timeout)
        except FutureTimeout:
            if future.done():  # a TimeoutError that `call` raised
                raise
            self._stuck = True
            raise StoreError(
                f"{self.path} gave no data for {self.timeout:g} s: check that its file system or object store answers, "
                f"or raise --read_timeout"
            ) from None
        except Exception as error:
            if is_local(self.path) or isinstance(error, StoreError):
                raise
            # A ValueError from an object store's client must not be taken for damage in the shard.
            raise StoreError(f"{self.path} cannot be read: {error_text(error)}") from error

    def _file(self) -> IO[bytes]:
        if self.closed or self._handle is None:
            raise ValueError(f"{self.path} is closed")
        return self._handle

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, or everything to the end of the file if `size` is negative."""
        file, size = self._file(), -1 if size is None else size
        return self._run(lambda: file.read(size))

    def readinto(self, buffer: Any, /) -> int:
        """Read into `buffer`, and return the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position in the file, and return it."""
        file = self._file()
        if whence == 0 and offset < 0:
            raise ValueError(f"{self.path} has no position {offset}")
        return self._run(lambda: file.seek(offset, whence))

    def tell(self) -> int:
        """Return the position in the file."""
        file = self._file()
        return self._run(file.tell)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file and end its thread; if the thread hangs, leave both to it."""
        if self.closed:
            return
        super().close()
        handle, self._handle = self._handle, None
        if handle is not None:
            self._thread.submit(handle.close)
        self._thread.end()
        if not self._stuck and self._thread.thread is not threading.current_thread():
            self._thread.thread.join(self.timeout)


def _open(path: str) -> IO[bytes]:
    check_bucket(path)
    handle: IO[bytes] = FileSystems.open(path, compression_type="uncompressed")
    return handle
