"""Small local files are read by one thread at a time, unless their storage is slow."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from audioclip_beam.pipeline.io.in_order import SLOW_SECONDS, _Turns


@pytest.mark.parametrize("seconds", [0.0, 20 * SLOW_SECONDS])
def test_slow_files_are_read_at_the_same_time(seconds: float) -> None:
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
            step("read", seconds)
            return number

        def use(content: int) -> int:
            step("use", 0.001)
            return content

        return turns.run(1, read, use)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(80))) == list(range(80))
    assert most["use"] == 1
    assert (most["read"] > 1) == bool(seconds)


def test_an_error_gives_the_turn_back() -> None:
    turns = _Turns()
    with pytest.raises(ZeroDivisionError):
        turns.run(1, lambda: 0, lambda content: 1 // content)
    assert turns.run(1, lambda: 1, lambda content: 1 // content) == 1
