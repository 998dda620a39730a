"""Versions of files: a listing contains them, and a read fails if its file has another one.

A version is the generation of an object on gs://, its ETag on s3://, and on a local disk the file's inode, size and times
of last change in nanoseconds. Beam's listings have none of these, so gs:// and s3:// are listed and read with the clients
that Beam uses. On any other file system it is the time of last change.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
from collections.abc import Callable
from typing import IO, NamedTuple

from . import beam_files
from .byte_ranges import read_exactly
from .filesystem import match
from .object_store import VERSIONED_ACCESS
from .paths import is_local, scheme_of
from .retries import StoreError, error_text, http_status, with_retries

REQUEST_BYTES = 16 << 20  # of one download


class ListedFile(NamedTuple):
    """A file as it was listed; `size` is in bytes, and version "" is that of a file which is written once."""

    path: str
    size: int
    version: str


class FileChanged(StoreError):
    """A file that is not the version that was listed; `missing` says whether it does not exist any more."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class ListedFiles(NamedTuple):
    """Files as they were listed, by column: a listing may have millions."""

    paths: list[str]
    sizes: list[int]
    versions: list[str]


def version_of(status: os.stat_result) -> str:
    """Return the version of a file on a local disk with that status."""
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


# A regular expression of what version_of returns, and what to replace it by so that size and time of change remain.
ANY_LOCAL_VERSION, SIZE_AND_MTIME = r"^\d+-(\d+--?\d+)--?\d+$", r"\1"


def same_version(version: str, other: str, compare: str = "version") -> bool:
    """Return whether two versions of a file are equal in what --compare names."""
    if compare == "size_mtime":
        version, other = (re.sub(ANY_LOCAL_VERSION, SIZE_AND_MTIME, each, flags=re.ASCII) for each in (version, other))
    return version == other


def local_version(path: str) -> str:
    """Return the version of a file on a local disk, or "" if the file does not exist."""
    try:
        return version_of(os.stat(path))
    except OSError:
        return ""


def list_remote(pattern: str, prefix: str) -> ListedFiles:
    """Return files that `pattern` may match, by path; on gs:// and s3:// all objects whose names begin with `prefix`.

    Args:
        pattern: A glob.
        prefix: Its beginning before the first wildcard.

    Raises:
        StoreError: The object store gives no listing.
        ValueError: No file system has that scheme.
    """
    scheme, _, place = prefix.partition("://")
    if scheme not in VERSIONED_ACCESS:
        found = match(pattern)
        return ListedFiles(
            [file.path for file in found], [file.size for file in found], [str(file.changed) for file in found]
        )
    beam_files.FileSystems.get_filesystem(prefix)  # raises ValueError if its extra is not installed
    bucket, _, start = place.partition("/")
    whole = prefix == pattern  # one object: the first of those whose names begin with its name

    def attempt() -> ListedFiles:
        files, root = ListedFiles([], [], []), f"{scheme}://{bucket}/"
        for name, size, version in itertools.islice(VERSIONED_ACCESS[scheme].list(root, start), 1 if whole else None):
            files.paths.append(root + name)
            files.sizes.append(size)
            files.versions.append(version)
        return files

    return with_retries(prefix, "listed", attempt)


def open_listed(file: ListedFile, compare: str = "version") -> IO[bytes]:
    """Open a file, without decompressing it.

    Raises FileChanged, also later, if it is not the version that was listed, in what `compare` names.
    """
    scheme = scheme_of(file.path)
    if scheme in VERSIONED_ACCESS:
        stream = beam_files.DownloaderStream(_VersionDownloader(file, VERSIONED_ACCESS[scheme].read))
        return io.BufferedReader(stream, max(1, min(REQUEST_BYTES, file.size)))
    handle: IO[bytes]
    try:
        if is_local(file.path):
            handle = open(file.path, "rb")  # noqa: SIM115 - the caller closes it
        else:
            handle = beam_files.FileSystems.open(file.path, compression_type="uncompressed")
    except FileNotFoundError as error:
        raise _gone(file, error) from error
    try:
        check_unchanged(file, handle, compare)
    except BaseException:
        handle.close()
        raise
    return handle


def check_unchanged(file: ListedFile, handle: IO[bytes], compare: str = "version") -> None:
    """Raise FileChanged if the open file is not the version that was listed; on gs:// and s3:// each request checks it."""
    if not file.version or scheme_of(file.path) in VERSIONED_ACCESS:
        return
    if is_local(file.path):
        status = os.fstat(handle.fileno())
        if stat.S_ISFIFO(status.st_mode):  # the times of a named pipe change with every byte
            return
        size, version = status.st_size, version_of(status)
    else:
        system = beam_files.FileSystems.get_filesystem(file.path)
        found = with_retries(file.path, "found", lambda: system.metadata(file.path))
        size, version = found.size_in_bytes, str(found.last_updated_in_seconds or 0.0)
    if size != file.size or not same_version(version, file.version, compare):
        sizes = f" from {file.size:,} bytes to {size:,}" if size != file.size else ""
        raise FileChanged(f"{file.path} changed{sizes}")


def read_range(file: ListedFile, offset: int, size: int, compare: str = "version") -> bytes:
    """Return `size` bytes from `offset` of the version of a file that was listed; the range is inside it.

    Raises FileChanged if the file is not that version, in what `compare` names.
    """
    access = VERSIONED_ACCESS.get(scheme_of(file.path))
    if access is not None:
        downloader, end = _VersionDownloader(file, access.read), offset + size
        starts = range(offset, end, REQUEST_BYTES)
        pieces = [downloader.get_range(start, min(start + REQUEST_BYTES, end)) for start in starts]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    with open_listed(file, compare) as handle:
        handle.seek(offset)
        data = read_exactly(handle, size)
        check_unchanged(file, handle, compare)
        return data


def _gone(file: ListedFile, error: Exception) -> FileChanged:
    return FileChanged(
        f"{file.path} existed when it was listed and cannot be read now ({error_text(error)})", missing=True
    )


class _VersionDownloader:
    """A Downloader of Beam for one version of an object: `read(path, version, start, end)` makes the requests."""

    def __init__(self, file: ListedFile, read: Callable[[str, str, int, int], bytes]) -> None:
        self.file, self.read = file, read

    @property
    def size(self) -> int:
        """Size of the object in bytes."""
        return self.file.size

    def get_range(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""

        def attempt() -> bytes:
            try:
                data = self.read(self.file.path, self.file.version, start, end)
            except Exception as error:
                status = http_status(error)
                if status == 404:
                    raise _gone(self.file, error) from error
                if status in (412, 416):  # another version; a shorter one
                    raise FileChanged(f"{self.file.path} changed") from error
                raise
            if len(data) != end - start:
                raise OSError(f"{len(data):,} of {end - start:,} bytes arrived")
            return data

        return with_retries(self.file.path, "read", attempt)
