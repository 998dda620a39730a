"""Calls in threads: map_in_order, whose results come in order, with a bound on what waits; and what one call reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .paths import is_local

CALL_BYTES = (
    256 << 10
)  # of local files that one call reads: to hand a small one to a thread takes longer than to read it

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
        size = size_of(item) if is_local(path_of(item)) else CALL_BYTES
        if group and total + size > CALL_BYTES:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


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
