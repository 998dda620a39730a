"""Errors that more than one package raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SnapshotError(RuntimeError):
    """A snapshot cannot be read, made or published; the text says why and what to do."""


@contextmanager
def convert_write_errors(path: str) -> Iterator[None]:
    """What the file system says against writing `path` or something in it, as a SnapshotError."""
    try:
        yield
    except OSError as error:
        for inner in getattr(error, "exception_details", {}).values():  # Beam's errors hold the file system's own
            error = inner
        why = getattr(error, "strerror", None) or error
        raise SnapshotError(
            f"{path} cannot be written: {why}; nothing was published: make room or give the right to write there, and "
            f"run again, and what is finished is reused"
        ) from error
