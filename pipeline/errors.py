"""Errors that more than one package raises, and their messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SnapshotError(RuntimeError):
    """Error of a snapshot that cannot be read, written or published; the message says why and gives a remedy."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def convert_write_errors(path: str) -> Iterator[None]:
    """Raise the OSErrors of the block, which writes to `path` or into it, as SnapshotErrors that name `path`."""
    try:
        yield
    except OSError as error:
        for inner in getattr(error, "exception_details", {}).values():  # Beam wraps the file system's errors
            error = inner
        reason = getattr(error, "strerror", None) or error
        raise SnapshotError(
            f"{path} cannot be written: {reason}: free disk space or give write permission, then run again; finished "
            f"files are reused"
        ) from error
