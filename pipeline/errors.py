"""Errors that more than one package raises, and their messages."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ..model.messages import OneLineError


class SnapshotError(OneLineError, RuntimeError):
    """Error of a snapshot that cannot be read, written or published; the message says why and gives a remedy."""


def message_of(error: object) -> str:
    """Return an error's message; of one of the operating system, the file and what is wrong with it, without a number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


WRITE_REMEDY = "free disk space or give write permission, then run again"
TEMPORARY_REMEDY = "free disk space there, or set TMPDIR to another directory, then run again"


@contextmanager
def convert_write_errors(path: str, remedy: str = f"{WRITE_REMEDY}; finished files are reused") -> Iterator[None]:
    """Raise the OSErrors of the block, which writes to `path` or into it, as SnapshotErrors that name `path`."""
    try:
        yield
    except OSError as error:
        for inner in getattr(error, "exception_details", {}).values():  # Beam wraps the file system's errors
            error = inner
        reason = getattr(error, "strerror", None) or error
        if "://" in path and getattr(error, "errno", None):  # of the local file that is uploaded when it is complete
            reason, remedy = f"{reason} in {tempfile.gettempdir()}", TEMPORARY_REMEDY
        raise SnapshotError(f"{path} cannot be written: {reason}: {remedy}") from error


@contextmanager
def convert_temporary_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Raise errors of these kinds of the block, which writes temporary files, as SnapshotErrors with their directory."""
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or error
        raise SnapshotError(
            f"temporary files cannot be written into {tempfile.gettempdir()}: {reason}: {TEMPORARY_REMEDY}"
        ) from error
