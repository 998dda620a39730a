"""File systems without locks: flock fails with a chosen error, in this process or in one that is started."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

_SOURCE = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""


def fail_locks(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Let every lock of this process fail."""

    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)


def preload(folder: Path, error: int) -> dict[str, str]:
    """Return the environment in which every lock of a program fails."""
    (folder / "flock.c").write_text(_SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "flock.so", folder / "flock.c"], check=True)
    return {"LD_PRELOAD": str(folder / "flock.so"), "FLOCK_ERRNO": str(error)}
