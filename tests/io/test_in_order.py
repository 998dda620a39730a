"""Small local files are read by one thread at a time, unless their storage is slow, and several by one call."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from audioclip_beam.pipeline.io.in_order import (
    CALL_BYTES,
    LONG_SECONDS,
    SLOW_SECONDS,
    TURN_SECONDS,
    _Turns,
    group_calls,
)


@pytest.mark.parametrize("count", [10_000, 1])
def test_slow_files_are_read_at_the_same_time(count: int) -> None:
    """So many files by one call of 20 * SLOW_SECONDS: on a busy machine, a call that does nothing takes long too."""
    turns, lock, now, most = _Turns(), threading.Lock(), {"read": 0, "use": 0}, {"read": 0, "use": 0}

    def step(name: str, seconds: float) -> None:
        with lock:
            now[name] += 1
            most[name] = max(most[name], now[name])
        time.sleep(seconds)
        with lock:
            now[name] -= 1

    def call(number: int) -> int:
        def read() -> int:
            step("read", 20 * SLOW_SECONDS)
            return number

        def use(content: int) -> int:
            step("use", 0.001)
            return content

        return turns.run(count, read, use)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(80))) == list(range(80))
    assert most["use"] == 1
    assert (most["read"] > 1) == (count == 1)


def test_an_error_gives_the_turn_back() -> None:
    turns = _Turns()
    with pytest.raises(ZeroDivisionError):
        turns.run(1, lambda: 0, lambda content: 1 // content)
    assert turns.run(1, lambda: 1, lambda content: 1 // content) == 1


def test_threads_do_not_hang_in_turn() -> None:
    """If storage hangs, all threads know after about the time of one."""
    turns, start = _Turns(), time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: turns.run(1, lambda: time.sleep(1.5), lambda content: content), range(8)))
    assert time.monotonic() - start < 8


def test_contents_that_take_long_are_decoded_at_the_same_time() -> None:
    turns, both = _Turns(), threading.Barrier(2)

    def work(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    turns.run(1, lambda: 2 * LONG_SECONDS, work)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: turns.run(1, lambda: 0, lambda content: both.wait(0.9 * TURN_SECONDS)), range(2)))


def test_a_file_on_an_object_store_is_read_alone() -> None:
    """Even beside files of 0 bytes: only small local files are read by one call."""
    items = [("a", 0), ("gs://b/c", 9), ("d", 0), ("gs://b/e", 0), ("f", 1), ("g", CALL_BYTES - 1), ("h", 1)]
    groups = group_calls(items, lambda item: item[0], lambda item: item[1])
    assert ["".join(path[-1] for path, _ in group) for group in groups] == ["a", "c", "d", "e", "fg", "h"]
