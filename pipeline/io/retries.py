"""Operations on object stores are repeated after transient errors; every other error names the file.

The client of an object store retries its requests; an operation that it gives up is repeated here, with exponential
back-off and jitter, for up to RETRY_SECONDS.
"""

from __future__ import annotations

import functools
import logging
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from ...model.messages import OneLineError
from . import beam_files
from .object_store import s3_object
from .paths import is_local

RETRY_SECONDS = 300
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, each reduced by up to a half at random

_LOGGER = logging.getLogger(__name__)

_T = TypeVar("_T")

# Errors of the clients' libraries that say that no whole answer came. By name: no library is imported for this.
_NO_ANSWER = frozenset(
    {
        "azure.core.exceptions.ServiceRequestError",
        "azure.core.exceptions.ServiceResponseError",
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.FlexibleChecksumError",
        "botocore.exceptions.HTTPClientError",
        "botocore.exceptions.IncompleteReadError",
        "google.api_core.exceptions.RetryError",
        "google.auth.exceptions.TransportError",
        "http.client.BadStatusLine",
        "http.client.IncompleteRead",
        "requests.exceptions.ChunkedEncodingError",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.Timeout",
        "urllib3.exceptions.NewConnectionError",
        "urllib3.exceptions.PoolError",
        "urllib3.exceptions.ProtocolError",
        "urllib3.exceptions.TimeoutError",
    }
)


class StoreError(OneLineError, OSError):
    """Error of a file system or object store; the message names the file and contains the answer."""


def with_retries(path: str, action: str, operation: Callable[[], _T], *, also: tuple[int, ...] = ()) -> _T:
    """Return the result of `operation`, which can be repeated; on an object store, retry it after transient errors.

    Args:
        path: What it reads or writes.
        action: What was to be done with it, as errors report it: "read", "written".
        operation: What is repeated.
        also: HTTP statuses to retry after in addition to those of `is_transient`.

    Raises:
        ValueError: As `operation` raised it.
        OSError: As `operation` raised it, if `path` is local.
        StoreError: For every other error.
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
    """Return whether a retry may succeed: if the service is busy or failed, or if no whole answer came.

    Every other error is not transient: a refused request, and what the client finds wrong before it sends one, such as
    credentials and settings. `also` are HTTP statuses that count as transient for this operation.
    """
    details = getattr(error, "exception_details", None)  # of Beam: an error or HTTP status per file
    if details:
        return all(is_transient(detail, also) for detail in details.values())
    status = http_status(error)
    if status is not None:
        return status in (408, 412, 429, *also) or status >= 500  # 412: the object was written while it was read
    if isinstance(error, beam_files.S3ClientError):
        if error.code:  # of one file in a batch: a word instead of a status
            return error.code in ("InternalError", "ServiceUnavailable", "SlowDown")
        return is_transient(error.__context__, also)  # Beam raises it while it handles an error of botocore
    if isinstance(error, AttributeError):  # Beam read an answer that did not come: see error_text
        return True
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    if type(error) is OSError and error.errno is None:  # of this package: fewer bytes arrived than were asked for
        return True
    return isinstance(error, BaseException) and _no_answer_came(error)


def _no_answer_came(error: BaseException) -> bool:
    """Return whether a client's error, or one that it was raised from, is of the connection or calls itself retryable."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):  # a connection error too
        return False
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if names & _NO_ANSWER or getattr(error, "retryable", False) is True:  # google.auth's errors have `retryable`
        return True
    return error.__cause__ is not None and _no_answer_came(error.__cause__)


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
    message = " ".join(str(getattr(error, "strerror", None) or first[0]).split())[:500] or type(error).__name__
    status = http_status(error)
    return message if status is None or str(status) in message else f"{message} (HTTP status {status})"


def check_bucket(path: str) -> None:
    """Raise StoreError if `path` is in an s3:// bucket that cannot be reached; Beam would retry silently for minutes."""
    beam_files.use_default_options()
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
