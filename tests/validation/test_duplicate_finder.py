"""DuplicateFinder agrees with a plain count, within bounded memory, and leaves no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.validation.check_rows import DuplicateFinder


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(st.sampled_from([b"", b"a", b"a\0", b"a\0b", b"A", "ä".encode(), b"1", b"01"]))))
def test_duplicates_are_those_of_a_count(batches: list[list[bytes]]) -> None:
    """Values are compared as bytes, over all batches, and returned in sorted order."""
    finder = DuplicateFinder()
    for batch in batches:
        finder.add(batch)
    counted = Counter(value for batch in batches for value in batch)
    expected = sorted(value for value, times in counted.items() if times > 1)
    assert finder.duplicates(3) == (len(expected), expected[:3])
    finder.close()


FILL = """
import os, signal
from audioclip_beam.pipeline.validation.check_rows import DuplicateFinder
from tests.support.memory import peak
finder = DuplicateFinder()
finder.add([b"first"])
before = peak()
for start in range(0, 500_000, 10_000):
    finder.add(b"%0200d" % number for number in range(start, start + 10_000))
print(peak() - before, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
def test_memory_is_bounded_and_no_file_is_left_after_a_signal(tmp_path: Path) -> None:
    """100 MB of values use less than 64 MB of memory, and a process that SIGTERM ends leaves nothing on the disk."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert int(done.stdout) * 1024 < 64 << 20
    assert list(tmp_path.iterdir()) == []
