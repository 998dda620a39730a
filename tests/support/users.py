"""Another user than root, who may write everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

UNPRIVILEGED = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block without root's right to write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(UNPRIVILEGED)
    try:
        yield
    finally:
        os.seteuid(0)
