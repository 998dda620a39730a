"""Files to read from, with a time limit on every call: no data for `timeout` seconds is an error.

A read that hangs in the operating system (a network mount that is gone, a named pipe without a writer) cannot be
interrupted from within the process. So each file is read in its own thread, and the caller can stop waiting for it. The
thread ends when the file is closed, or then reads the next small file; a thread that hangs ends when the operating system
lets go of it. It never keeps a process alive.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

from ..flags import READ_TIMEOUT
from . import beam_files
from .paths import is_local
from .retries import StoreError, check_bucket, error_text
from .versions import ListedFile, check_unchanged, open_listed
from .worker_thread import WorkerThread

SMALL_BYTES = 1 << 20  # of a file that is read by one call: each takes longer than reading its bytes

_T = TypeVar("_T")


def open_to_read(path: str, timeout: float = READ_TIMEOUT) -> IO[bytes]:
    """Open the file at `path`, without decompressing it; the caller closes it.

    Raises StoreError if a call, this one included, takes longer than `timeout` seconds.
    """
    return _TimeoutReader(path, timeout, lambda: _open(path))  # type: ignore[return-value]  # it has what IO[bytes] asks for


@contextmanager
def open_version(file: ListedFile, timeout: float = READ_TIMEOUT, compare: str = "version") -> Iterator[IO[bytes]]:
    """Open the version of a file that was listed, as open_to_read does, and close it at the end of the block.

    Raises FileChanged if the file is not that version, in what `compare` names: at the beginning, on reading, or at the end
    of a block without error.
    """
    if 0 < file.size <= SMALL_BYTES:  # a named pipe has no size
        yield _read_small(file, timeout, compare)
        return
    with _TimeoutReader(file.path, timeout, lambda: open_listed(file, compare)) as reader:
        yield reader  # type: ignore[misc]
        reader.check_unchanged(file, compare)


def _read_small(file: ListedFile, timeout: float, compare: str) -> IO[bytes]:
    """Return the content of a small file, which is read by one call in another thread."""

    def call() -> bytes:
        with open_listed(file, compare) as handle:
            content = handle.read(file.size)
            check_unchanged(file, handle, compare)
            return content

    return io.BytesIO(call_within(file.path, timeout, call))


# Threads that have made such calls, for the next ones: to start a thread takes longer than to read a small file.
_IDLE: list[WorkerThread] = []
os.register_at_fork(after_in_child=_IDLE.clear)


def call_within(path: str, timeout: float, call: Callable[[], _T]) -> _T:
    """Return the result of a short call that reads `path`, in another thread. Raises NoDataError if it takes too long."""
    [outcome] = calls_within([(path, call)], timeout)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def calls_within(calls: Sequence[tuple[str, Callable[[], _T]]], timeout: float) -> list[_T | Exception]:
    """Return the results or errors of short calls, one after another in one other thread: to change threads takes longer.

    Args:
        calls: The path that each reads, and the call.
        timeout: Seconds that one may take. One that takes longer, and those after it, have a NoDataError.
    """
    outcomes = list[_T | Exception]()

    def run() -> None:
        for path, call in calls:
            try:
                outcome: _T | Exception = call()
            except Exception as error:
                outcome = store_error(path, error)
            outcomes.append(outcome)

    try:
        thread = _IDLE.pop()
    except IndexError:
        thread = WorkerThread("read small files")
    future, done = thread.submit(run), -1
    try:
        while len(outcomes) > done:  # the last wait was long enough for one at least
            done = len(outcomes)
            with suppress(FutureTimeout):
                future.result(timeout)
                return outcomes
        return [*outcomes[:done], *(NoDataError(path, timeout) for path, _ in calls[done:])]
    finally:
        if future.done():
            _IDLE.append(thread)
        else:
            thread.end()


class NoDataError(StoreError):
    """Error of a call that takes longer than `timeout` seconds; its thread may hang."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__(
            f"{path} gave no data for {timeout:g} s: check that its file system or object store answers, or raise "
            f"--read_timeout"
        )


def store_error(path: str, error: Exception) -> Exception:
    """Return the error to raise for one of a read: a ValueError from an object store's client is not damage in a shard."""
    if is_local(path) or isinstance(error, StoreError):
        return error
    converted = StoreError(f"{path} cannot be read: {error_text(error)}")
    converted.__cause__ = error
    return converted


def _result(path: str, future: Future[_T], timeout: float) -> _T:
    """Return the result of a call that reads `path` in another thread. Raises StoreError if it takes too long."""
    try:
        return future.result(timeout)
    except FutureTimeout:
        if future.done():  # a TimeoutError that the call raised
            raise
        raise NoDataError(path, timeout) from None
    except Exception as error:
        raise store_error(path, error)  # noqa: B904 - it has its cause


class _TimeoutReader(io.RawIOBase):
    """A readable, seekable file whose calls run in its own thread."""

    def __init__(self, path: str, timeout: float, open_file: Callable[[], IO[bytes]]) -> None:
        super().__init__()
        self.path, self.timeout, self._stuck = path, timeout, False
        self._thread = WorkerThread(f"read {path}")
        self._handle: IO[bytes] | None = None
        try:
            self._handle = self._run(open_file)
        except BaseException:
            self._thread.end()
            raise

    def _run(self, call: Callable[[], _T]) -> _T:
        """Return the result of `call`, or raise StoreError if it takes too long."""
        if self._stuck or not self._thread.thread.is_alive():
            raise StoreError(f"{self.path} is closed")
        try:
            return _result(self.path, self._thread.submit(call), self.timeout)
        except NoDataError:
            self._stuck = True
            raise

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

    def check_unchanged(self, file: ListedFile, compare: str) -> None:
        """Raise FileChanged if this is not the version of the file that was listed."""
        handle = self._file()
        self._run(lambda: check_unchanged(file, handle, compare))

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
    if is_local(path):
        return open(path, "rb")
    check_bucket(path)
    handle: IO[bytes] = beam_files.FileSystems.open(path, compression_type="uncompressed")
    return handle
