"""Counters of a job: Beam metrics in one namespace, and a tally of this process for the progress line.

The manifest of a snapshot does not use them: its counts are added up from what was written, while a bundle that runs
twice counts twice here.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

NAMESPACE = "audioclip_beam"

# Times in the manifest, under `seconds`, summed over all workers.
SECONDS = ("read_seconds", "prepare_seconds", "model_seconds", "write_seconds")

OUTCOMES = ("read", "embedded", "reused", "rejected")

MAX_SPANS = 60

# What this process has counted so far. The progress line reads it, because a runner's metrics come only at the end.
TALLY: Counter[str] = Counter()


def count_embedded_items(items: int) -> None:
    """Add to what the model has embedded, for the progress line: the rows of a whole batch are counted minutes later."""
    TALLY["items_embedded"] += items


def count(name: str, amount: int) -> None:
    """Add `amount` to the counter `name`, in Beam's metrics and in this process's tally."""
    if amount:
        from apache_beam.metrics import Metrics  # the manifest's types are in this module, and need no Beam

        Metrics.counter(NAMESPACE, name).inc(amount)
        TALLY[name] += amount


class BytesRead:
    """Counter of the bytes read of one shard, of `size` bytes, for the progress line."""

    def __init__(self, size: int) -> None:
        self.size, self.counted = size, 0

    def reach(self, position: int) -> None:
        """Count the bytes up to `position` in the file, each once."""
        if self.counted < position <= self.size:
            TALLY["bytes_read"] += position - self.counted
            self.counted = position


class Pace(TypedDict):
    """Rows finished in each time span of a run: one number per span for each of OUTCOMES; a span lasts `seconds`."""

    seconds: int
    rows: dict[str, list[int]]


def rows_by_second(rows: int, duration: float = 0.0) -> Counter[int]:
    """Return the number of rows finished in each second, if `rows` were finished evenly in the last `duration` seconds.

    Keys are seconds since the epoch.
    """
    now = time.time()

    def finished(moment: float) -> int:
        return rows if moment >= now else int(rows * max(0.0, moment - now + duration) / duration) if duration else 0

    return Counter(
        {second: finished(second + 1) - finished(second) for second in range(int(now - duration), int(now) + 1)}
    )


def pace_by_span(seconds_of: Mapping[str, Mapping[int, int]], started: float, total: float) -> Pace:
    """Return the sums of `rows_by_second`, by outcome, as at most MAX_SPANS spans of a run of `total` seconds.

    A worker whose clock is wrong moves rows to another span, but no row is lost.
    """
    seconds = max(1, math.ceil(total / MAX_SPANS))
    spans = max(1, math.ceil(total / seconds))
    rows = {outcome: [0] * spans for outcome in OUTCOMES}
    for outcome, by_second in seconds_of.items():
        for second, amount in by_second.items():
            rows[outcome][min(max(int((second - int(started)) // seconds), 0), spans - 1)] += amount
    return {"seconds": seconds, "rows": rows}
