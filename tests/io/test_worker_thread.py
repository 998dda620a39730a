"""read_ahead: an iterator whose items are made in a thread."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from audioclip_beam.pipeline.io.worker_thread import read_ahead


def test_each_item_is_made_while_the_one_before_is_used() -> None:
    """One ahead, not more, in the same order."""
    made = [threading.Event() for _ in range(3)]

    def items() -> Generator[int, None, None]:
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in read_ahead(items()):
        if number < 2:
            assert made[number + 1].wait(30)
        if number == 0:
            assert not made[2].wait(0.05)
    assert list(read_ahead(items())) == [0, 1, 2]


def test_an_error_is_raised_after_the_items_before_it() -> None:
    """And none before its turn."""

    def items() -> Generator[int, None, None]:
        yield 1
        raise OSError("the disk is gone")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_a_caller_that_stops_closes_the_iterator_and_ends_the_thread() -> None:
    """As a bundle that fails does."""
    closed, threads = threading.Event(), set[threading.Thread]()

    def items() -> Generator[int, None, None]:
        threads.add(threading.current_thread())
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = read_ahead(items())
    next(ahead)
    ahead.close()
    assert closed.is_set()
    (thread,) = threads
    thread.join(30)
    assert not thread.is_alive()
