"""File operations on local paths and object stores.

On a local path these are plain file operations. On an object store each is one whole operation that can be repeated, and
is, after transient errors.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import escape
from typing import IO, Any, NamedTuple

from ...model.files import NO_LOCKS
from ...model.messages import plural
from ..errors import convert_write_errors
from . import beam_files
from .object_store import FOLDERS, SAME_CONTENT, UPLOADERS, conditional_access, delete_objects
from .paths import is_local, scheme_of
from .retries import StoreError, with_retries

COPY_BYTES, DIGEST_BYTES = 8 << 20, 1 << 20  # at a time

_PLAIN = "uncompressed"  # whatever the name ends with

# Not the process id: of two containers that write to one mount each may be PID 1.
_PROCESS = uuid.uuid4().hex[:16]


class FileEntry(NamedTuple):
    """A file of a directory: its size in bytes, and when it last changed, in seconds since 1970."""

    path: str
    size: int
    changed: float


def match(pattern: str) -> list[FileEntry]:
    """Return the files that a glob matches."""
    found = with_retries(pattern, "listed", lambda: beam_files.FileSystems.match([pattern])[0].metadata_list)
    return [FileEntry(file.path, file.size_in_bytes, file.last_updated_in_seconds or 0.0) for file in found]


def list_directory(directory: str, *, recursive: bool = False) -> list[FileEntry]:
    """Return the files in a directory, with `recursive` also those below it; none if it does not exist.

    Its name is taken literally: brackets and stars are characters in it, not a pattern as for `match`. On an object
    store these are the objects whose names begin with the directory and a slash.
    """
    if is_local(directory):
        return list(_scan(directory, recursive))
    prefix = f"{directory.rstrip('/')}/"

    def attempt() -> list[Any]:  # Beam's FileMetadata
        return list(beam_files.FileSystems.get_filesystem(directory)._list(prefix))

    files = with_retries(directory, "listed", attempt)
    names = [file.path[len(prefix) :] for file in files]
    return [
        FileEntry(file.path, file.size_in_bytes, file.last_updated_in_seconds or 0.0)
        for file, name in zip(files, names, strict=True)
        if name and (recursive or "/" not in name)
    ]


def list_folders(directory: str) -> list[str]:
    """Return the names of the directories in a directory; no name if it does not exist, or is on another object store."""
    if is_local(directory):
        with suppress(FileNotFoundError), os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
        return []
    list_prefixes, prefix = FOLDERS.get(scheme_of(directory)), f"{directory.rstrip('/')}/"
    start = "/".join(prefix.split("/")[3:])  # after the bucket
    if list_prefixes is None:
        return []
    folders = with_retries(directory, "listed", lambda: list_prefixes(prefix, start))
    return [folder[len(start) : -1] for folder in folders]


def _scan(directory: str, recursive: bool) -> Iterator[FileEntry]:
    """Yield the files in a local directory; those that disappear meanwhile are left out."""
    with suppress(FileNotFoundError):
        for entry in os.scandir(directory):
            if entry.is_dir():
                if recursive and not entry.is_symlink():
                    yield from _scan(entry.path, recursive)
                continue
            with suppress(FileNotFoundError):
                status = entry.stat()
                yield FileEntry(entry.path, status.st_size, status.st_mtime)


def read(path: str) -> bytes | None:
    """Return the content of a small file, or None if it does not exist."""
    if is_local(path):
        try:
            with open(path, "rb") as handle:
                return handle.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    access = conditional_access(path)

    def attempt() -> bytes | None:
        if access is not None:  # with the process's client: Beam makes a new one for each file
            return access.read(path)[0]
        if not beam_files.FileSystems.exists(path):
            return None
        with beam_files.FileSystems.open(path, compression_type=_PLAIN) as handle:
            return bytes(handle.read())

    return with_retries(path, "read", attempt)


def is_locked(path: str) -> bool | None:
    """Return whether a process holds the lock of a local file, or None if its file system has no locks.

    It is not written: that may not be allowed.
    """
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # FileLock holds an flock
            return False
        except (BlockingIOError, PermissionError):  # another process holds it; which error, the file system decides
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None


def sha256_of(file: IO[bytes]) -> str:
    """Return the sha256, in hex, of everything from here to the end of an open file."""
    digest = hashlib.sha256()
    while piece := file.read(DIGEST_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def temporary_name(path: str) -> str:
    """Return a local name beside `path` that no other call returns, of this or of another thread, process or host."""
    return f"{path}.{_PROCESS}-{uuid.uuid4().hex[:8]}.tmp"


def temporary_names(directory: str) -> list[str]:
    """Return globs of the names in a directory that `temporary_name` has returned in this process."""
    return [os.path.join(escape(directory), f"{dot}*.{_PROCESS}-*.tmp") for dot in ("", ".")]


class AtomicFile:
    """A local file that is written under a temporary name, and gets its name when it is whole."""

    def __init__(self, temporary: str) -> None:
        self.temporary = temporary
        self.handle: IO[bytes] = open(temporary, "wb")  # noqa: SIM115 - closed by commit and discard

    def commit(self, path: str, *, sync: bool = False) -> None:
        """Close the file and rename it to `path`; with `sync`, only after its content is on the disk."""
        self.handle.flush()
        if sync:
            os.fsync(self.handle.fileno())
        self.handle.close()
        os.replace(self.temporary, path)

    def discard(self) -> None:
        """Close and remove the file."""
        with suppress(OSError):
            self.handle.close()
        with suppress(OSError):
            os.unlink(self.temporary)


def write_atomically(path: str, data: bytes, mime_type: str, *, sync: bool = False) -> None:
    """Write a file, whole or not at all.

    Args:
        path: Its path.
        data: What it contains.
        mime_type: Its media type on an object store.
        sync: Whether a local file is on the disk before it gets its name.
    """
    if not is_local(path):  # an object appears when its upload is complete
        upload(io.BytesIO(data), path, mime_type)
        return
    with convert_write_errors(path):
        file = AtomicFile(temporary_name(path))
        try:
            file.handle.write(data)
            file.commit(path, sync=sync)
        except BaseException:
            file.discard()
            raise


def upload(source: IO[bytes], path: str, mime_type: str = "application/octet-stream") -> None:
    """Write the whole content of `source` to `path` on an object store; the object appears when it is complete.

    On gs:// and s3:// this uses the clients' uploads of files, which verify what arrived. The handles that Beam writes
    with there retry when they are garbage-collected, and may then replace a correct object by one that failed earlier.
    """

    def attempt() -> None:
        source.seek(0)
        send = UPLOADERS.get(scheme_of(path))
        if send:
            send(source, path, mime_type)
            return
        with beam_files.FileSystems.create(path, mime_type, "uncompressed") as handle:
            shutil.copyfileobj(source, handle, COPY_BYTES)

    # 404 and 410: the upload does not exist any more, for instance because it was finished and the answer was lost.
    with_retries(path, "written", attempt, also=(404, 410))


def copy_file(source: str, target: str, size: int, sha256: str) -> None:
    """Make `target` a finished file with the content of `source`, of that size in bytes and that sha256.

    On a local disk it is a hard link where the disk has those, on an object store a copy that is made there. If the service
    does not confirm that both have the same content, the copy is read. A `target` that exists with that content is left as
    it is, so that a call can be repeated.

    Raises:
        OSError: `source` does not exist or cannot be copied, or has another content.
    """
    if is_local(target):
        _link_or_copy(source, target, size, sha256)
        return
    scheme = scheme_of(target)

    def attempt() -> None:
        beam_files.FileSystems.copy([source], [target])

    with_retries(source, "copied", attempt)
    same = SAME_CONTENT.get(scheme)
    if not (same and with_retries(target, "compared", lambda: same(source, target))):
        _check_content(target, size, sha256)


def _link_or_copy(source: str, target: str, size: int, sha256: str) -> None:
    if os.path.exists(target):  # of an earlier call
        if os.path.exists(source) and os.path.samefile(source, target) and os.path.getsize(target) == size:
            return
        _check_content(target, size, sha256)
        return
    if os.path.getsize(source) != size:
        raise OSError(errno.EIO, f"{source} has {os.path.getsize(source):,} bytes instead of {size:,}")
    try:
        os.link(source, target)
        return
    except FileExistsError:  # another attempt was faster
        _link_or_copy(source, target, size, sha256)
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
            raise
    file = AtomicFile(temporary_name(target))
    try:
        with open(source, "rb") as handle:
            shutil.copyfileobj(handle, file.handle, COPY_BYTES)
        file.handle.flush()
        _check_content(file.temporary, size, sha256)
        file.commit(target, sync=True)
    except BaseException:
        file.discard()
        raise


def _check_content(path: str, size: int, sha256: str) -> None:
    def attempt() -> tuple[int, str]:
        with (
            open(path, "rb") if is_local(path) else beam_files.FileSystems.open(path, compression_type=_PLAIN) as handle
        ):
            digest = sha256_of(handle)
            return handle.tell(), digest

    if with_retries(path, "read", attempt) != (size, sha256):
        raise OSError(errno.EIO, f"{path} has another content than the list of files says")


def remove(paths: Sequence[str]) -> None:
    """Delete files of one file system, named literally; one that does not exist is not an error."""
    if paths and not is_local(paths[0]):
        with_retries(paths[0], "removed", lambda: delete_objects(list(paths)))
        return
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _ignore_missing(function: object, path: str, error: Any) -> None:
    """Raise an error of `shutil.rmtree`, unless a file is missing; before Python 3.12 it is what `sys.exc_info` returns."""
    error = error if isinstance(error, BaseException) else error[1]
    if not isinstance(error, FileNotFoundError):
        raise error


def remove_below(directory: str) -> None:
    """Delete a directory with its content; on an object store, all objects whose names begin with it and a slash.

    One that does not exist is not an error, nor is a process that deletes the same at the same time. A new directory of
    that name stays.
    """
    if is_local(directory):
        if sys.version_info >= (3, 12):
            shutil.rmtree(directory, onexc=_ignore_missing)
        else:
            shutil.rmtree(directory, onerror=_ignore_missing)
        return
    with_retries(directory, "removed", lambda: beam_files.FileSystems.delete([f"{directory.rstrip('/')}/"]))
    left = list_directory(directory, recursive=True)
    if left:  # on gs:// Beam only logs what could not be deleted
        raise StoreError(
            f"{directory} cannot be removed: {plural(len(left), 'file is', 'files are')} left, for example "
            f"{left[0].path}; check the permission to delete"
        )
