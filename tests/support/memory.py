"""The memory of a process, for tests that bound it."""

from __future__ import annotations

import re
from pathlib import Path


def peak() -> int:
    """Return the most memory that this process has had since it was started, in KiB.

    `ru_maxrss` would begin with the memory of the process that started it, which may be larger than what is measured.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])
