"""WorkerThread: runs calls one after another in a thread that is not the caller's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
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
