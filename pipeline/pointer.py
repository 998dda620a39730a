"""`current.json`: read, and changed by one run at a time, in the way that the store it lies on has for that.

A local directory: under a lock, by an atomic rename. gs:// and s3://: a write with a precondition on what was read. Any
other file system: under a lock file that names its owner and its time, and holds for LOCK_SECONDS.
"""

from __future__ import annotations

import getpass
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from apache_beam.io.filesystems import FileSystems
from filelock import FileLock, Timeout

from .clients import gcs_object, s3_object
from .stores import is_local, read, retried, upload

__all__ = ["Json", "SnapshotError", "change", "is_local", "owner", "read_json", "write_json"]

LOCK_SECONDS = 600
LOCAL_LOCK_SECONDS = 60  # nobody holds it for longer than it takes to write a line

Json: TypeAlias = "dict[str, object]"


class SnapshotError(RuntimeError):
    """A snapshot cannot be read, made or published; the text says why and what to do."""


@contextmanager
def writing(path: str) -> Iterator[None]:
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


def read_json(path: str) -> Json | None:
    """The JSON object in a file, or None where there is no file; SnapshotError where it holds something else."""
    data = read(path)
    return None if data is None else _parsed(path, data)


def _parsed(path: str, data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise SnapshotError(f"{path} is not JSON ({error}): restore it, or remove it and run again") from None
    if not isinstance(value, dict):
        raise SnapshotError(f"{path} holds no JSON object: restore it, or remove it and run again")
    return value


def write_json(path: str, value: object) -> None:
    """Write `path` whole or not at all."""
    data = _dumped(value)
    if not is_local(path):  # an object appears when its upload is complete
        upload(io.BytesIO(data), path, "application/json")
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    with writing(path):
        try:
            with open(temporary, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def _dumped(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def change(path: str, decide: Callable[[Json | None], Json | None]) -> None:
    """Replace the object in `path` by what `decide` makes of the one that is there, if nobody else does so meanwhile.

    `decide` gives None to leave it as it is, and may raise. SnapshotError where somebody else was quicker.
    """
    scheme = path.partition("://")[0] if not is_local(path) else ""
    if scheme in _PRECONDITIONED:
        read_version, write = _PRECONDITIONED[scheme]
        data, version = retried(path, "read", lambda: read_version(path))
        value = decide(None if data is None else _parsed(path, data))
        if value is None:
            return
        new = _dumped(value)
        # A write that is refused may have been done before: by us, when its answer was lost on the way and it was sent
        # again. What is written here names its run, so nobody else's can be equal.
        if not retried(path, "written", lambda: write(path, new, version)) and read(path) != new:
            raise SnapshotError(f"another run changed {path} in this moment: nothing of it was touched; run again")
        return
    with _local_lock(path) if is_local(path) else _lock_file(path):
        value = decide(read_json(path))
        if value is not None:
            write_json(path, value)


def owner() -> Json:
    """Who this process is, and when it said so."""
    return {"owner": f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}", "time": time.time()}


@contextmanager
def _local_lock(path: str) -> Iterator[None]:
    lock = FileLock(os.path.join(os.path.dirname(path), "publish.lock"), timeout=LOCAL_LOCK_SECONDS)
    with writing(path):
        try:
            lock.acquire()
        except Timeout:
            raise SnapshotError(f"another run holds {lock.lock_file}: run again once it is done") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _lock_file(path: str) -> Iterator[None]:
    lock = f"{path}.lock"
    mine = owner()
    held = read_json(lock)
    # A time far ahead of ours is that of a clock that was set back since: such a lock must not hold until then.
    if held and abs(time.time() - float(str(held["time"]))) < LOCK_SECONDS:
        raise SnapshotError(f"{held['owner']} holds {lock}: run again once it is done, or in {LOCK_SECONDS} s")
    write_json(lock, mine)
    try:
        if read_json(lock) != mine:
            raise SnapshotError(f"another run took {lock} in this moment: run again once it is done")
        yield
    finally:
        with suppress(Exception):
            FileSystems.delete([lock])


def _read_gcs(path: str) -> tuple[bytes | None, object]:
    """(content, generation) of an object; (None, 0) where there is none."""
    bucket, name = gcs_object(path)
    blob = bucket.get_blob(name)
    if blob is None:
        return None, 0
    generation = int(blob.generation)  # taken first: a download writes what the answer's headers say over it
    return blob.download_as_bytes(if_generation_match=generation), generation


def _write_gcs(path: str, data: bytes, generation: object) -> bool:
    from google.api_core.exceptions import PreconditionFailed

    bucket, name = gcs_object(path)
    blob = bucket.blob(name)
    try:
        blob.upload_from_string(data, content_type="application/json", if_generation_match=generation)
    except PreconditionFailed:
        return False
    return True


def _read_s3(path: str) -> tuple[bytes | None, object]:
    """(content, entity tag) of an object; (None, None) where there is none."""
    from botocore.exceptions import ClientError

    client, bucket, key = s3_object(path)
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:  # an answer that broke off says no more than that
            return None, None
        raise
    return answer["Body"].read(), answer["ETag"]


def _write_s3(path: str, data: bytes, tag: object) -> bool:
    from botocore.exceptions import ClientError

    client, bucket, key = s3_object(path)
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    try:
        client.put_object(Bucket=bucket, Key=key, Body=data, ContentType="application/json", **condition)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
            return False
        raise
    return True


_Read: TypeAlias = "Callable[[str], tuple[bytes | None, object]]"
_Write: TypeAlias = "Callable[[str, bytes, object], bool]"
_PRECONDITIONED: dict[str, tuple[_Read, _Write]] = {"gs": (_read_gcs, _write_gcs), "s3": (_read_s3, _write_s3)}
