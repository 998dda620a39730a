"""WorkerThread: runs calls one after another in a thread that is not the caller's; read_ahead does so with an iterator."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

_T = TypeVar("_T")

_Calls: TypeAlias = "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"


class WorkerThread:
    """A daemon thread with a queue of calls; it never keeps a process alive."""

    def __init__(self, name: str) -> None:
        self._calls: _Calls = queue.SimpleQueue()
        self.thread = threading.Thread(target=_run_calls, args=(self._calls,), name=name, daemon=True)
        self.thread.start()

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """Queue `call`, and return the future of its result or exception."""
        future: Future[_T] = Future()
        self._calls.put((future, call))
        return future

    def end(self) -> None:
        """Let the thread end after the queued calls. A call that raises SystemExit ends it too, and gets no result."""
        self._calls.put(None)

    def end_and_wait(self) -> None:
        """End the thread, and wait until it has run the queued calls."""
        self.end()
        self.thread.join()


def read_ahead(items: Generator[_T, None, None]) -> Iterator[_T]:
    """Yield the items, each of which is made in a thread while the caller works with the one before; raise their errors."""
    thread, end = WorkerThread("read-ahead"), object()
    following: Future[_T | object] = thread.submit(lambda: next(items, end))
    try:
        while (item := following.result()) is not end:
            following = thread.submit(lambda: next(items, end))
            yield item  # type: ignore[misc]
            del item
    finally:
        with suppress(Exception):
            following.result()  # an item that no one takes
        thread.end()
        items.close()


def _run_calls(calls: _Calls) -> None:
    """Run queued calls until the queue gives None."""
    while (item := calls.get()) is not None:
        future, call = item
        try:
            future.set_result(call())
        except SystemExit:
            return
        except BaseException as error:
            future.set_exception(error)
        del item, future, call  # else the result would stay in memory until the next call
