"""locate: the size and version of a file that an element or an entry of a list names."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

from ...model.head import BadRow
from .paths import is_local
from .retries import StoreError, http_status
from .timeout_reader import NoDataError, call_within
from .versions import ListedFile, list_remote, version_of

_T = TypeVar("_T")

# What the operating system answers if a path is wrong; any other answer is a fault of the disk or the network.
_WRONG_PATH = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
)


def locate(path: str, timeout: float) -> ListedFile:
    """Return a file as its file system lists it.

    Raises:
        BadRow: The file does not exist, must not be read, or is not a regular one.
        OSError: The file system gives no answer within `timeout` seconds, or an error that is not about the path.
    """
    if is_local(path):
        return answer_within(path, timeout, lambda: _locate_local(path))
    try:
        listed = list_remote(path, path)
    except ValueError as error:
        raise BadRow("missing file", str(error)) from error
    except StoreError as error:
        if http_status(error.__cause__) in (403, 404) or "does not exist" in str(error):  # the latter is of a bucket
            raise BadRow("missing file", str(error)) from error
        raise
    if path not in listed.paths:
        raise BadRow("missing file", "the object store has no such file")
    place = listed.paths.index(path)
    return ListedFile(path, listed.sizes[place], listed.versions[place])


def answer_within(path: str, timeout: float, call: Callable[[], _T]) -> _T:
    """Return what `call`, which reads `path`, returns, or raise what it raises; StoreError if it takes too long."""
    try:
        return call_within(path, timeout, call)
    except NoDataError:
        raise StoreError(f"its file system gave no answer for {timeout:g} s") from None


def _locate_local(path: str) -> ListedFile:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null character
        if isinstance(error, OSError) and error.errno not in _WRONG_PATH:
            raise
        raise BadRow("missing file", getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadRow("missing file", "it is not a regular file")
    if not os.access(path, os.R_OK):
        raise BadRow("missing file", os.strerror(errno.EACCES))
    return ListedFile(path, status.st_size, version_of(status))
