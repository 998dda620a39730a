"""Reads of many byte ranges of listed files at the same time, for contents that are small files or parts of large ones."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from .file_io import FileIO
from .paths import is_local
from .timeout_reader import NoDataError, store_error
from .versions import REQUEST_BYTES, FileChanged, ListedFile, read_range

THREADS = 8  # the clients of gs:// and s3:// keep ten connections
BUFFER_BYTES = 256 << 20


class RangeRequest(NamedTuple):
    """`size` bytes from `offset` of the version of a file that was listed."""

    file: ListedFile
    offset: int
    size: int


class RangeResult(NamedTuple):
    """The answer to the request at `place`, counted from 0: its bytes, or the error that kept them from being read."""

    place: int
    data: bytes
    error: OSError | None


_Result: TypeAlias = tuple[int, bytes, Exception | None]


def read_ranges(
    requests: Iterable[RangeRequest], *, file_io: FileIO, threads: int = THREADS, buffer_bytes: int = BUFFER_BYTES
) -> Iterator[RangeResult]:
    """Read byte ranges in parallel, and yield each result when it is complete, in any order.

    A failed request does not end the others. Its error is FileChanged if the file is not the version that was listed,
    FileNotFoundError if it does not exist any more, and another OSError, mostly StoreError, if it cannot be read, also
    after all repetitions, or gives no data within the time limit of `file_io`. A range of no bytes needs no request.

    Args:
        requests: What to read, local or on object stores. They are taken one after another, in the caller's thread.
        file_io: The time limit, options of object stores, and what tells that a local file changed.
        threads: Requests at a time.
        buffer_bytes: The bytes of all ranges that are being read or wait for the caller, the one that it has included. A
            larger range is read alone. One of over 16 MiB on an object store counts twice, because its pieces are joined.

    Raises:
        ValueError: A range is not inside its file, or no file system has the scheme of its path.
    """
    pool = _Pool(file_io, threads)
    buffered: dict[int, int] = {}  # the bytes of each request that is not finished, by place
    total = 0
    source = enumerate(requests)
    following = next(source, None)
    try:
        while following or buffered:
            while following and (not buffered or total + _cost(following[1]) <= buffer_bytes):
                place, request = following
                _check(request)
                buffered[place] = _cost(request)
                total += buffered[place]
                pool.submit(place, request)
                following = next(source, None)
            place, data, error = pool.result()
            if error is not None and not isinstance(error, OSError):
                raise error
            yield RangeResult(place, data, error)
            del data
            total -= buffered.pop(place)
    finally:
        pool.end()


def _check(request: RangeRequest) -> None:
    file, offset, size = request
    if offset < 0 or size < 0 or offset + size > file.size:
        raise ValueError(
            f"{size:,} bytes from {offset:,} are not inside {file.path}, which has {file.size:,}: list the file again"
        )


def _cost(request: RangeRequest) -> int:
    return request.size * (1 if is_local(request.file.path) or request.size <= REQUEST_BYTES else 2)


class _Pool:
    """Daemon threads that read ranges; one that hangs is left behind after the time limit, and another takes its place."""

    def __init__(self, file_io: FileIO, threads: int) -> None:
        self.file_io = file_io
        self._requests: queue.SimpleQueue[tuple[int, RangeRequest] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._reading: dict[int, tuple[RangeRequest, float]] = {}  # by place: what is being read, and since when
        self._lock, self._ended = threading.Lock(), False
        for _ in range(threads):
            self._start()

    def _start(self) -> None:
        threading.Thread(target=self._run, name="read ranges", daemon=True).start()

    def submit(self, place: int, request: RangeRequest) -> None:
        """Queue a request."""
        self._requests.put((place, request))

    def result(self) -> _Result:
        """Return the next result: (place, bytes, error)."""
        limit = self.file_io.read_timeout
        while True:
            with self._lock:
                began = min((since for _, since in self._reading.values()), default=time.monotonic())
            with suppress(queue.Empty):
                return self._results.get(timeout=max(0.0, began + limit - time.monotonic()))
            self._give_up(limit)

    def end(self) -> None:
        """Let each thread end when it has finished its request; the others are not read."""
        self._ended = True
        self._requests.put(None)

    def _run(self) -> None:
        """Read what is queued, until the pool has ended or this thread has been replaced."""
        while (item := self._requests.get()) is not None and not self._ended:
            place, request = item
            with self._lock:
                self._reading[place] = request, time.monotonic()
            data, error = self._read(request)
            with self._lock:
                if self._reading.pop(place, None) is None:  # it was given up
                    return
            self._results.put((place, data, error))
            del item, request, data, error  # else they would stay in memory until the next request
        self._requests.put(None)  # for the next thread

    def _read(self, request: RangeRequest) -> tuple[bytes, Exception | None]:
        file, offset, size = request
        try:
            self.file_io.set_options(file.path)
            return read_range(file, offset, size, self.file_io.compare), None
        except FileChanged as error:
            if error.missing:
                return b"", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.path)
            return b"", error
        except Exception as error:
            return b"", store_error(file.path, error)

    def _give_up(self, limit: float) -> None:
        """Replace the threads whose requests take too long, and put errors among the results."""
        with self._lock:
            now = time.monotonic()
            late = [(place, request) for place, (request, since) in self._reading.items() if now - since >= limit]
            for place, _ in late:
                del self._reading[place]
        for place, request in late:
            self._start()
            self._results.put((place, b"", NoDataError(request.file.path, limit)))
