"""Files for reading, in which no call takes for ever: what gives nothing for `timeout` seconds is an error.

A read that hangs in the operating system (a dead network mount, a named pipe that nobody writes) cannot be interrupted
from within the process. So a file is read by a thread of its own, and whoever waits for it may stop waiting. The thread
ends with the file, and a stuck one as soon as the operating system lets go of it; it never keeps a process alive.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from typing import IO, Any, TypeVar

from apache_beam.io.filesystems import FileSystems

from .filesystem import StoreError, check_bucket, error_text, is_local
from .worker_thread import WorkerThread

# Stores' clients have timeouts of their own and repeat what they can: gs:// for two minutes, s3:// for about eight.
READ_TIMEOUT = 600

_T = TypeVar("_T")


def open_to_read(path: str, timeout: float = READ_TIMEOUT) -> IO[bytes]:
    """The file at `path` as it lies there, to be closed by the caller; StoreError where a call takes over `timeout` s."""
    return _Limited(path, timeout)  # type: ignore[return-value]  # a RawIOBase does all that IO[bytes] asks for


class _Limited(io.RawIOBase):
    """A readable, seekable file whose calls run in a thread of its own."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self.path, self.timeout, self._stuck = path, timeout, False
        self._calls = WorkerThread(f"read {path}")
        self._handle: IO[bytes] | None = None
        try:
            self._handle = self._within(lambda: _open(path))
        except BaseException:
            self._calls.end()
            raise

    def _within(self, call: Callable[[], _T]) -> _T:
        if self._stuck or not self._calls.thread.is_alive():
            raise StoreError(f"{self.path} is closed")
        future = self._calls.submit(call)
        try:
            return future.result(self.timeout)
        except NotInTime:
            if future.done():  # the file system's own
                raise
            self._stuck = True
            raise StoreError(
                f"{self.path} gave nothing for {self.timeout:g} s while it was read: see whether its file system or "
                f"store answers, or give it longer with --read_timeout"
            ) from None
        except Exception as error:
            if is_local(self.path) or isinstance(error, StoreError):
                raise  # any other would be taken for damage in the shard, if it is a ValueError
            raise StoreError(f"{self.path} cannot be read: {error_text(error)}") from error

    def _file(self) -> IO[bytes]:
        if self.closed or self._handle is None:
            raise ValueError(f"{self.path} is closed")
        return self._handle

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, as many as come at once; all of them where it is negative."""
        file, size = self._file(), -1 if size is None else size
        return self._within(lambda: file.read(size))

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer`, as far as bytes come; gives their number."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place in the file; gives it."""
        file = self._file()
        if whence == 0 and offset < 0:
            raise ValueError(f"{self.path} has no place {offset}")
        return self._within(lambda: file.seek(offset, whence))

    def tell(self) -> int:
        """The place in the file."""
        file = self._file()
        return self._within(file.tell)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the file and end its thread, or leave both to the thread where it is stuck."""
        if self.closed:
            return
        super().close()
        handle, self._handle = self._handle, None
        if handle is not None:
            self._calls.submit(handle.close)
        self._calls.end()
        if not self._stuck and self._calls.thread is not threading.current_thread():
            self._calls.thread.join(self.timeout)


def _open(path: str) -> IO[bytes]:
    check_bucket(path)
    handle: IO[bytes] = FileSystems.open(path, compression_type="uncompressed")
    return handle
