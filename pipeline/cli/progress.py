"""The progress of a run on stderr: a bar on a terminal, else a line every PLAIN_LINE_SECONDS."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tqdm import tqdm

from ...model.head import Head
from ..content import extent_in
from ..metrics import TALLY
from ..terminal import print_note

PLAIN_LINE_SECONDS = 30


class Estimate:
    """The time left of a run, from the bytes read and the rows finished so far.

    Until all rows that were read are finished too, the total of rows is the rows read so far, in proportion to the bytes
    read. Before the first row is finished, as in a run that shuffles, the estimate is that of reading alone.
    """

    def __init__(self, total_bytes: int, head: Head) -> None:
        self.total_bytes, self.head, self.canary_items = total_bytes, head, len(head.canary())
        self.started = time.monotonic()
        self.first_row: float | None = None
        self.update(0.0)

    def update(self, elapsed: float) -> None:
        """Read the tally of this process, `elapsed` seconds after the start."""
        self.elapsed = elapsed
        self.content = self.head.describe_extent(extent_in(TALLY))
        self.read, self.rejected = TALLY["rows_read"], TALLY["rows_rejected"]
        # Contents are counted long before the rows of their batch; those of the canary are among them.
        embedded = max(TALLY["rows_embedded"], TALLY["items_embedded"] - self.canary_items)
        self.rows = min(self.read, embedded + TALLY["rows_reused"] + self.rejected)
        self.share_read = min(1.0, TALLY["bytes_read"] / self.total_bytes) if self.total_bytes else 1.0
        self.total_rows = round(self.read / self.share_read) if self.share_read else 0
        if self.first_row is None and self.rows > self.rejected:
            self.first_row = elapsed

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends, or None while nothing has been read, or all has and no row is finished."""
        if not self.share_read:
            return None
        reading = self.elapsed * (1 - self.share_read) / self.share_read
        if self.first_row is None or self.rows == 0 or self.elapsed <= self.first_row:
            return reading or None
        return (self.elapsed - self.first_row) * (self.total_rows - self.rows) / self.rows

    def __str__(self) -> str:
        left = self.seconds_left
        known = f", {tqdm.format_interval(left)} left" if left is not None else ""
        return f"{self.share_read:.0%} of the input read{known}"


@contextmanager
def show_progress(*, total_bytes: int, head: Head) -> Iterator[None]:
    """Show rows, rows per second, rejected rows and the time left of a run over shards of `total_bytes` bytes.

    Of a head of sounds or pictures also show how many were read, and their hours or pixels.
    """
    TALLY.clear()
    finished, terminal = threading.Event(), sys.stderr.isatty()
    bar = tqdm(total=None, unit=" rows", unit_scale=True, disable=not terminal, dynamic_ncols=True, leave=False)
    estimate, started = Estimate(total_bytes, head), time.monotonic()

    def watch() -> None:
        printed = 0.0
        while not finished.wait(min(0.5, PLAIN_LINE_SECONDS)):  # so that the first row's time is known
            estimate.update(time.monotonic() - started)
            if not terminal and estimate.elapsed - printed < PLAIN_LINE_SECONDS:
                continue
            printed = estimate.elapsed
            if not terminal and not estimate.read:  # or the workers are other processes, whose counts are not known
                print_note(f"running for {estimate.elapsed:.0f} s")
                continue
            if not terminal:
                rate = estimate.rows / estimate.elapsed
                content = f" ({estimate.content})" if estimate.content else ""
                done = f"done {estimate.rows:,} ({rate:,.0f}/s), rejected {estimate.rejected:,}"
                print_note(f"read {estimate.read:,}{content}, {done}; {estimate}")
                continue
            with suppress(OSError):  # a terminal that is gone
                bar.total = max(estimate.total_rows, estimate.rows) or None
                content = f"{estimate.content}, " if estimate.content else ""
                bar.set_postfix_str(f"{content}{estimate.rejected:,} rejected, {estimate}", refresh=False)
                bar.update(estimate.rows - bar.n)
                bar.refresh()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        with suppress(OSError):
            bar.close()
