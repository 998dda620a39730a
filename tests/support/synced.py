"""Which files were synced to the disk with all their bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def is_synced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], bool]:
    """Return whether a file was synced since the test began, under its name or an earlier one, when it had its size."""
    synced, fsync = set[tuple[int, int]](), os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced.add((status.st_ino, status.st_size))

    monkeypatch.setattr(os, "fsync", record)
    return lambda path: (path.stat().st_ino, path.stat().st_size) in synced
