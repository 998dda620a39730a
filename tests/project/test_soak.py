"""A short soak test; `python -m tests.support.soak` is the long one."""

from __future__ import annotations

import gc
import re
import threading
from pathlib import Path

import psutil
import pytest

from tests.support.corpus import embed, write_jsonl
from tests.support.soak import soak


@pytest.mark.slow
def test_a_short_soak() -> None:
    """20,000 rows over two nights with kills: counts are exact, every row is correct, nothing is left behind.

    It is too short to distinguish growth of memory from start-up; the long soak test does.
    """
    *nights, whole = soak(20_000, nights=2, kills=1, seconds=0.8, seed=1)
    assert len(nights) == 2
    assert all("; 20,000 rows, 19,980 with vectors, 20 rejected; " in line for line in nights), nights
    assert re.search(r" [1-9]\d* killed, 0 rows lost", whole), whole


@pytest.mark.slow
def test_runs_in_one_process_leave_no_threads_and_files_open(tmp_path: Path) -> None:
    """Threads and open files do not grow in a service that runs a job every night."""
    write_jsonl(tmp_path / "a.jsonl", [{"id": f"r{n}", "text": f"text {n}"} for n in range(200)])
    process, samples = psutil.Process(), []
    for _ in range(6):
        embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", max_file_rows=20)
        gc.collect()
        samples.append((threading.active_count(), process.num_fds()))
    for threads_or_files in zip(*samples, strict=True):
        assert threads_or_files[-1] <= threads_or_files[1], samples
