"""Streams: threads that each compute whole micro-batches on one core, instead of sharing out every operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_streams(compute: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield compute(item) for each item, in order, with all of torch's threads of the calling thread.

    Threads that share out one operation wait for each other at its end, some thousand times per second. Streams wait for
    nothing, so one core that is busy with other work delays one micro-batch, not all of them. Items that cannot be shared
    out evenly are computed one after the other, each with all threads. An item's result does not depend on which it is.
    """
    threads = torch.get_num_threads()
    streamed = len(items) // threads * threads if threads > 1 else 0
    if streamed:
        # A thread that sets its number of threads sets that of every thread that starts later, too: set it back.
        pool = ThreadPoolExecutor(threads, "model-stream", initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(compute, items[:streamed])
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    yield from map(compute, items[streamed:])
