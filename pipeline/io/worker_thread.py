"""A thread of its own for calls that must not be made in the caller's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

_T = TypeVar("_T")


_Calls: TypeAlias = "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"


class WorkerThread:
    """Makes the calls that it is given, one after another, in a thread that never keeps a process alive."""

    def __init__(self, name: str) -> None:
        self._calls: _Calls = queue.SimpleQueue()
        self.thread = threading.Thread(target=_serve, args=(self._calls,), name=name, daemon=True)
        self.thread.start()

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """What `call` will have given or raised, once it was its turn."""
        future: Future[_T] = Future()
        self._calls.put((future, call))
        return future

    def end(self) -> None:
        """Let the thread end after the calls that it was given. One that raises SystemExit ends it too, unanswered."""
        self._calls.put(None)


def _serve(calls: _Calls) -> None:
    """Do what is asked for, until the end is."""
    while (asked := calls.get()) is not None:
        future, call = asked
        try:
            future.set_result(call())
        except SystemExit:
            return
        except BaseException as error:
            future.set_exception(error)
        del asked, future, call  # else what was read would stay in memory until the next call
