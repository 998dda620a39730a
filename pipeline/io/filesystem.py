"""Operations on files wherever they lie: what fails on a store is tried again, and what fails for good is named.

On a local path these are plain file operations. On a store (gs://, s3://, ...) each is one whole operation that can be
done twice. The store's own client repeats its requests; what it gives up is repeated here, with exponential back-off
and jitter, until RETRY_SECONDS have gone.
"""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from typing import IO, TypeVar

from apache_beam.io.aws.clients.s3.messages import S3ClientError
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.utils.retry import FuzzedExponentialIntervals

from .object_store import SENDERS, s3_object

RETRY_SECONDS = 300

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, each cut by up to a half at random

PIECE = 8 << 20

_LOGGER = logging.getLogger(__name__)

_T = TypeVar("_T")


class StoreError(OSError):
    """A file system or store did not do what it was asked for; the text names the file and what was said."""


def is_local(path: str) -> bool:
    """Whether `path` is a path of this machine's file system."""
    return "://" not in path


def with_retries(path: str, done: str, operation: Callable[[], _T], *, also: tuple[int, ...] = ()) -> _T:
    """What `operation` gives, which can be done twice; on a store it is tried again where that may help.

    `done` is what is done to `path`, for the error: "read", "written"; `also` are more HTTP statuses to try again on.
    ValueErrors and a local file's errors come through as they are; StoreError for all others.
    """
    if is_local(path):
        return operation()
    check_bucket(path)
    return _tried(path, done, operation, also)


def _tried(path: str, done: str, operation: Callable[[], _T], also: tuple[int, ...]) -> _T:
    began = time.monotonic()
    for tries, wait in enumerate(FuzzedExponentialIntervals(FIRST_WAIT, 10_000, max_delay_secs=LONGEST_WAIT), 1):
        try:
            return operation()
        except (StoreError, ValueError):
            raise
        except Exception as error:
            spent = time.monotonic() - began
            if not is_transient(error, also) or spent >= RETRY_SECONDS:
                after = f" ({tries} tries in {spent:,.0f} s)" if tries > 1 else ""
                raise StoreError(f"{path} cannot be {done}: {error_text(error)}{after}") from error
            _LOGGER.warning("%s cannot be %s (%s): again in %.1f s", path, done, error_text(error), wait)
            time.sleep(wait)
    raise AssertionError("the intervals do not end before RETRY_SECONDS")


def is_transient(error: object, also: tuple[int, ...] = ()) -> bool:
    """Whether what was asked for may succeed later: not what a store refuses, nor what never was a request to one."""
    details = getattr(error, "exception_details", None)  # of Beam, an error or a status a file
    if details:
        return all(is_transient(detail, also) for detail in details.values())
    status = _status(error)
    if status is not None:
        return status in (408, 412, 429, *also) or status >= 500  # 412: a read that another's write came between
    if isinstance(error, S3ClientError) and error.code:  # one file's of many: a word instead of a status
        return error.code in ("InternalError", "ServiceUnavailable", "SlowDown")
    if isinstance(error, OSError) and error.errno is not None:
        return isinstance(error, ConnectionError | TimeoutError)
    return not isinstance(error, RuntimeError | TypeError | LookupError)


def _status(error: object) -> int | None:
    """HTTP status in the errors of Beam, google-cloud-storage and botocore; None where there was no answer."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for status in (error, getattr(error, "code", None), answer, getattr(answer, "status_code", None)):
        if isinstance(status, int):
            return int(status)
    return None


def error_text(error: object) -> str:
    """What an error of a store's client says, in one line."""
    details = getattr(error, "exception_details", None)
    if details:
        return "; ".join(dict.fromkeys(error_text(detail) for detail in details.values()))
    if isinstance(error, int):
        return f"HTTP status {error}"
    if isinstance(error, AttributeError):  # Beam's batches for gs:// look into an answer that never came
        return "the store did not answer"
    if isinstance(error, S3ClientError):
        error = error.message
    error = getattr(error, "cause", None) or error  # of google's RetryError: what it gave up on
    first = getattr(error, "args", None) or [error]
    text = " ".join(str(getattr(error, "strerror", None) or first[0]).split())[:500] or type(error).__name__
    status = _status(error)
    return text if status is None or str(status) in text else f"{text} (HTTP status {status})"


def match(pattern: str) -> list[FileMetadata]:
    """The files that a glob matches: `path`, `size_in_bytes`, `last_updated_in_seconds`."""
    return list(with_retries(pattern, "listed", lambda: FileSystems.match([pattern])[0].metadata_list))


def read(path: str) -> bytes | None:
    """The content of a small file, or None where there is none."""

    def once() -> bytes | None:
        if not FileSystems.exists(path):
            return None
        with FileSystems.open(path, compression_type="uncompressed") as handle:
            return bytes(handle.read())

    return with_retries(path, "read", once)


def upload(source: IO[bytes], path: str, mime_type: str = "application/octet-stream") -> None:
    """Make `path`, on a store, of all that `source` holds: it appears whole.

    On gs:// and s3:// by the clients' own uploads of files, which check what arrived. The handles that Beam writes with
    there try again when they are collected as garbage, and may then put what failed long ago in place of what is right.
    """

    def once() -> None:
        source.seek(0)
        send = SENDERS.get(path.partition("://")[0])
        if send:
            send(source, path, mime_type)
            return
        with FileSystems.create(path, mime_type, "uncompressed") as handle:
            shutil.copyfileobj(source, handle, PIECE)

    # 404 and 410: there is no such upload any more, as when it was finished and the answer was lost.
    with_retries(path, "written", once, also=(404, 410))


def remove(paths: Sequence[str]) -> None:
    """Delete files; one that is gone already is no error."""
    if paths:
        with_retries(paths[0], "removed", lambda: FileSystems.delete(list(paths)))


def remove_below(directory: str) -> None:
    """Delete a directory and all in it; on a store, all objects whose names begin with it and a slash."""
    if is_local(directory):
        FileSystems.delete([directory])
        return
    with_retries(directory, "removed", lambda: FileSystems.delete([f"{directory.rstrip('/')}/"]))
    left = match(FileSystems.join(directory, "**"))
    if left:  # Beam only logs what a store would not delete of gs://
        raise StoreError(f"{directory} cannot be removed: the store kept {len(left)} files, as {left[0].path}")


def check_bucket(path: str) -> None:
    """StoreError for an s3:// bucket that cannot be reached: Beam would try for minutes in silence, whatever is wrong."""
    if path.startswith("s3://"):
        _check_s3_bucket(path.split("/")[2])


@functools.cache
def _check_s3_bucket(bucket: str) -> None:
    from botocore.exceptions import ClientError, NoCredentialsError

    def once() -> None:
        client, _, _ = s3_object(f"s3://{bucket}/")
        try:
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        except NoCredentialsError:
            raise StoreError(
                f"s3://{bucket} cannot be reached without credentials: set AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY, or what else boto3 reads them from"
            ) from None
        except ClientError as error:
            if _status(error) == 404:
                raise StoreError(f"there is no bucket s3://{bucket}: check its name and the region") from None
            if is_transient(error):
                raise
            # Whoever may not list the bucket may still be allowed what is asked for.

    _tried(f"s3://{bucket}", "reached", once, ())
