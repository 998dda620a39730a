"""Calls in threads: map_in_order, whose results come in order, with a bound on what waits; and what one call reads."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from .paths import is_local

# Of local files that one call reads: to hand a small one to a thread takes longer than to read it.
CALL_BYTES = 256 << 10
SLOW_SECONDS = 0.0003  # for reading a small file: it is not in the memory of the operating system
LONG_SECONDS = 0.001  # of a processor, for what is done with one: it is decoded, without Python's lock
TURN_SECONDS = 1.0  # that a thread waits for its turn

_T = TypeVar("_T")
_R = TypeVar("_R")


def group_calls(items: Iterable[_T], path_of: Callable[[_T], str], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Yield the items in order, in lists of those that one call reads: small local files together, any other one alone.

    Args:
        items: The items.
        path_of: Returns the file of an item.
        size_of: Returns how much memory an item takes.
    """
    group, total = list[_T](), 0
    for item in items:
        size = size_of(item) if is_local(path_of(item)) else CALL_BYTES + 1  # not even with files of 0 bytes
        if group and total + size > CALL_BYTES:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


class _Turns:
    """Small local files are read by one thread of the process at a time, unless their storage is slow.

    Their reading is short calls between which threads would wait for Python's lock: two take longer than one. Threads that
    wait for slow storage, or whose decoders work for long, do so at the same time.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the threads of the process that this one is a fork of."""
        self._lock, self._is_slow, self._is_long = threading.Lock(), False, False

    def run(self, count: int, read: Callable[[], _T], use: Callable[[_T], _R]) -> _R:
        """Return use(read()); `read` reads so many files."""
        if self._is_slow:
            contents = self._read(count, read)
        else:
            with self._turn():
                contents = self._read(count, read)
                if not self._is_long:
                    return self._use(count, use, contents)
        with nullcontext() if self._is_long else self._turn():
            return self._use(count, use, contents)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other thread has a turn, but not for long: that one may wait for storage that hangs."""
        lock = self._lock
        has_turn = lock.acquire(timeout=TURN_SECONDS)
        try:
            yield
        finally:
            if has_turn:
                lock.release()

    def _read(self, count: int, read: Callable[[], _T]) -> _T:
        start = time.perf_counter()
        contents = read()
        self._is_slow = time.perf_counter() - start > count * SLOW_SECONDS
        return contents

    def _use(self, count: int, use: Callable[[_T], _R], contents: _T) -> _R:
        start = time.thread_time()
        result = use(contents)
        self._is_long = time.thread_time() - start > count * LONG_SECONDS
        return result


TURNS = _Turns()
os.register_at_fork(after_in_child=TURNS.clear)


def map_in_order(
    call: Callable[[_T], _R], items: Iterable[_T], threads: int, size_of: Callable[[_T], int], max_bytes: int
) -> Iterator[_R]:
    """Yield the result of each call, in the order of the items, or raise its error.

    Args:
        call: What is called with each item, in a thread.
        items: The items; an iterator is read as it is needed.
        threads: How many calls there are at the same time.
        size_of: Returns how much memory a call and its result take.
        max_bytes: How much those that were started may take together, if it is more than one.
    """
    with ThreadPoolExecutor(threads, "map-in-order") as pool:
        waiting, size_waiting = deque[tuple[Future[_R], int]](), 0
        try:
            for item in items:
                size = size_of(item)
                while waiting and (size_waiting + size > max_bytes or len(waiting) >= 2 * threads):
                    future, done = waiting.popleft()
                    yield future.result()
                    del future
                    size_waiting -= done
                waiting.append((pool.submit(call, item), size))
                size_waiting += size
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
