"""File operations on local paths and object stores: transient errors are retried, others name the file.

On a local path these are plain file operations. On an object store (gs://, s3://, ...) each is one whole operation that
can be repeated. The client retries its requests; an operation that it gives up is repeated here, with
exponential back-off and jitter, for up to RETRY_SECONDS.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, NamedTuple, TypeVar

from . import beam_files
from .object_store import SAME_CONTENT, UPLOADERS, conditional_access, delete_objects, s3_object

RETRY_SECONDS = 300

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, each reduced by up to a half at random

COPY_BYTES = 8 << 20

_PLAIN = "uncompressed"  # whatever the name ends with

HASH_BYTES = 1 << 20

_LOGGER = logging.getLogger(__name__)

_T = TypeVar("_T")


class FileEntry(NamedTuple):
    """A file of a directory: its size in bytes, and when it last changed, in seconds since 1970."""

    path: str
    size: int
    changed: float


class StoreError(OSError):
    """Error of a file system or object store; the message names the file and contains the answer."""


def is_local(path: str) -> bool:
    """Return whether `path` is on this machine's file system."""
    return "://" not in path


def absolute_path(path: str) -> str:
    """Return a path or glob that means the same from any current directory; links are not followed, a URL stays as it is."""
    return os.path.abspath(path) if is_local(path) else path


def join(directory: str, *names: str) -> str:
    """Return the path of a file below a directory, local or on an object store."""
    if is_local(directory):
        return os.path.join(directory, *names)
    return "/".join([directory.rstrip("/"), *names])


def base_name(path: str) -> str:
    """Return the last component of a path."""
    return path.rpartition("/")[2]


def with_retries(path: str, action: str, operation: Callable[[], _T], *, also: tuple[int, ...] = ()) -> _T:
    """Return the result of `operation`, which can be repeated; on an object store, retry it after transient errors.

    `action` says in the error what was to be done with `path`: "read", "written". `also` are HTTP statuses to retry
    after in addition to those of `is_transient`.

    Raises:
        ValueError: as `operation` raised it.
        OSError: as `operation` raised it, if `path` is local.
        StoreError: for every other error.
    """
    if is_local(path):
        return operation()
    check_bucket(path)
    return _retry(path, action, operation, also)


def _retry(path: str, action: str, operation: Callable[[], _T], also: tuple[int, ...]) -> _T:
    start = time.monotonic()
    for attempt, wait in enumerate(
        beam_files.FuzzedExponentialIntervals(FIRST_WAIT, 10_000, max_delay_secs=LONGEST_WAIT), 1
    ):
        try:
            return operation()
        except (StoreError, ValueError):
            raise
        except Exception as error:
            seconds = time.monotonic() - start
            if not is_transient(error, also) or seconds >= RETRY_SECONDS:
                attempts = f" ({attempt} attempts in {seconds:,.0f} s)" if attempt > 1 else ""
                raise StoreError(f"{path} cannot be {action}: {error_text(error)}{attempts}") from error
            _LOGGER.warning("%s cannot be %s (%s): next attempt in %.1f s", path, action, error_text(error), wait)
            time.sleep(wait)
    raise AssertionError("the intervals do not end before RETRY_SECONDS")


def is_transient(error: object, also: tuple[int, ...] = ()) -> bool:
    """Return whether a retry may succeed: not if the request was refused, nor if none was sent.

    `also` are HTTP statuses that count as transient for this operation.
    """
    details = getattr(error, "exception_details", None)  # of Beam: an error or HTTP status per file
    if details:
        return all(is_transient(detail, also) for detail in details.values())
    status = http_status(error)
    if status is not None:
        return status in (408, 412, 429, *also) or status >= 500  # 412: the object was written while it was read
    if isinstance(error, beam_files.S3ClientError) and error.code:  # of one file in a batch: a word instead of a status
        return error.code in ("InternalError", "ServiceUnavailable", "SlowDown")
    if isinstance(error, OSError) and error.errno is not None:
        return isinstance(error, ConnectionError | TimeoutError)
    return not isinstance(error, RuntimeError | TypeError | LookupError)


def http_status(error: object) -> int | None:
    """Return the HTTP status in an error of Beam, google-cloud-storage or botocore; None without an answer."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for status in (error, getattr(error, "code", None), response, getattr(response, "status_code", None)):
        if isinstance(status, int):
            return int(status)
    return None


def error_text(error: object) -> str:
    """Return the message in an error of an object store's client, on one line."""
    details = getattr(error, "exception_details", None)
    if details:
        return "; ".join(dict.fromkeys(error_text(detail) for detail in details.values()))
    if isinstance(error, int):
        return f"HTTP status {error}"
    if isinstance(error, AttributeError):  # Beam's batches for gs:// read the answer without a check that one came
        return "the object store did not answer"
    if isinstance(error, beam_files.S3ClientError):
        error = error.message
    error = getattr(error, "cause", None) or error  # of google's RetryError: the last error
    first = getattr(error, "args", None) or [error]
    text = " ".join(str(getattr(error, "strerror", None) or first[0]).split())[:500] or type(error).__name__
    status = http_status(error)
    return text if status is None or str(status) in text else f"{text} (HTTP status {status})"


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
    system = beam_files.FileSystems.get_filesystem(directory)
    files = with_retries(directory, "listed", lambda: list(system._list(prefix)))
    names = [file.path[len(prefix) :] for file in files]
    return [
        FileEntry(file.path, file.size_in_bytes, file.last_updated_in_seconds or 0.0)
        for file, name in zip(files, names, strict=True)
        if name and (recursive or "/" not in name)
    ]


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


def sha256_of(file: IO[bytes]) -> str:
    """Return the sha256, in hex, of everything from here to the end of an open file."""
    digest = hashlib.sha256()
    while piece := file.read(HASH_BYTES):
        digest.update(piece)
    return digest.hexdigest()


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
    """Write `data` to `path`, whole or not at all; with `sync`, a local file is on the disk before it gets its name."""
    if not is_local(path):  # an object appears when its upload is complete
        upload(io.BytesIO(data), path, mime_type)
        return
    file = AtomicFile(f"{path}.{os.getpid()}.tmp")
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
        send = UPLOADERS.get(path.partition("://")[0])
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
    scheme = target.partition("://")[0]

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
    file = AtomicFile(f"{target}.{os.getpid()}.tmp")
    try:
        with open(source, "rb") as handle:
            shutil.copyfileobj(handle, file.handle, COPY_BYTES)
        file.handle.flush()
        _check_content(file.temporary, size, sha256)
        file.commit(target)
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


def remove_below(directory: str) -> None:
    """Delete a directory with its content; on an object store, all objects whose names begin with it and a slash."""
    if is_local(directory):
        shutil.rmtree(directory)
        return
    with_retries(directory, "removed", lambda: beam_files.FileSystems.delete([f"{directory.rstrip('/')}/"]))
    left = list_directory(directory, recursive=True)
    if left:  # on gs:// Beam only logs what could not be deleted
        raise StoreError(f"{directory} cannot be removed: {len(left)} files are left, for example {left[0].path}")


def check_bucket(path: str) -> None:
    """Raise StoreError if `path` is in an s3:// bucket that cannot be reached; Beam would retry silently for minutes."""
    if path.startswith("s3://"):
        _check_s3_bucket(path.split("/")[2])


@functools.cache
def _check_s3_bucket(bucket: str) -> None:
    from botocore.exceptions import ClientError, NoCredentialsError

    def attempt() -> None:
        client, _, _ = s3_object(f"s3://{bucket}/")
        try:
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        except NoCredentialsError:
            raise StoreError(
                f"s3://{bucket} cannot be reached without credentials: set AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY, or another source of credentials that boto3 reads"
            ) from None
        except ClientError as error:
            if http_status(error) == 404:
                raise StoreError(f"the bucket s3://{bucket} does not exist: check its name and the region") from None
            if is_transient(error):
                raise
            # Credentials that may not list the bucket may still be allowed to do what follows.

    _retry(f"s3://{bucket}", "reached", attempt, ())
