"""What Beam's file systems for gs:// and s3:// cannot do, through the clients that they use.

That is: conditional writes (compare and swap), uploads that leave nothing behind if they fail, deletions by literal
names, and listings and reads of versions.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from . import beam_files
from .paths import scheme_of

LISTING_PAGE = 1000  # objects in one answer to a listing, the most that both services give

GCS_CHUNK = 16 << 20  # bytes; by default the client holds 100 MB of a file in memory


def gcs_object(path: str):  # type: ignore[no-untyped-def]  # google.cloud.storage.Bucket, with the extra gcp
    """Return (bucket of the client that Beam uses with its current options, object name) for a path on gs://."""
    _, _, bucket, name = path.split("/", 3)
    return _gcs_io(path).client.bucket(bucket), name


def _gcs_io(path: str):  # type: ignore[no-untyped-def]  # apache_beam's GcsIO, with the extra gcp
    from apache_beam.io.gcp.gcsio import GcsIO

    options = beam_files.FileSystems.get_filesystem(path)._pipeline_options
    return _cached("gs", options, lambda: GcsIO(pipeline_options=options or beam_files.PipelineOptions([])))


def s3_object(path: str):  # type: ignore[no-untyped-def]  # boto3's client, with the extra aws
    """Return (client that Beam uses with its current options, bucket, key) for a path on s3://."""
    from apache_beam.io.aws.s3io import S3IO

    _, _, bucket, key = path.split("/", 3)
    options = beam_files.FileSystems.get_filesystem(path)._options
    return (
        _cached("s3", options, lambda: S3IO(options=options or beam_files.PipelineOptions([])).client.client),
        bucket,
        key,
    )


# By scheme: (options, process, client). Small files would spend most of their time on new clients and connections.
_CLIENTS: dict[str, tuple[object, int, Any]] = {}

_LOCKS = [threading.Lock()]  # of many threads that begin at the same time, one makes the client
os.register_at_fork(after_in_child=lambda: _LOCKS.__setitem__(0, threading.Lock()))


def _cached(scheme: str, options: object, make: Callable[[], Any]) -> Any:
    """Return the client for these options of Beam, which is made once in each process."""
    with _LOCKS[0]:
        known = _CLIENTS.get(scheme)
        if known and options is not None and known[0] is options and known[1] == os.getpid():
            return known[2]
        client = make()
        _CLIENTS[scheme] = (options, os.getpid(), client)
        return client


def _upload_gcs(source: IO[bytes], path: str, mime_type: str) -> None:
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, name = gcs_object(path)
    size = source.seek(0, os.SEEK_END)
    blob = bucket.blob(name, chunk_size=GCS_CHUNK)
    blob.upload_from_file(source, rewind=True, size=size, content_type=mime_type, retry=DEFAULT_RETRY)


def _upload_s3(source: IO[bytes], path: str, mime_type: str) -> None:
    client, bucket, key = s3_object(path)
    client.upload_fileobj(_Unclosable(source), bucket, key, {"ContentType": mime_type})


class _Unclosable:
    """A file that stays open when boto3 closes it, so that its content can be sent again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def close(self) -> None:
        """Leave the file open."""


# By scheme: creates an object from (open file, path, MIME type).
UPLOADERS: dict[str, Callable[[IO[bytes], str, str], None]] = {"gs": _upload_gcs, "s3": _upload_s3}


def _same_content_gcs(source: str, target: str) -> bool:
    blobs = [bucket.get_blob(name) for bucket, name in map(gcs_object, (source, target))]
    return all(blobs) and blobs[0].crc32c is not None and blobs[0].crc32c == blobs[1].crc32c


def _same_content_s3(source: str, target: str) -> bool:
    heads = []
    for client, bucket, key in map(s3_object, (source, target)):
        heads.append(client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
    if heads[0]["ContentLength"] != heads[1]["ContentLength"]:
        return False
    # The ETag of an object that was uploaded in parts is not a digest of its content, and that of its copy is another one.
    checksums = [head.get("ChecksumCRC64NVME") for head in heads]
    tags = [head["ETag"] for head in heads]
    return checksums[0] == checksums[1] is not None or (tags[0] == tags[1] and "-" not in tags[0])


# By scheme: whether the checksums of an object store show that two objects have the same content.
SAME_CONTENT: dict[str, Callable[[str, str], bool]] = {"gs": _same_content_gcs, "s3": _same_content_s3}


def delete_objects(paths: list[str]) -> None:
    """Delete objects of one object store; one that does not exist is not an error.

    Names are taken literally, while Beam's file system for gs:// takes them for patterns. Raises beam_files.BeamIOError.
    """
    if not paths[0].startswith("gs://"):
        beam_files.FileSystems.delete(paths)
        return
    errors = {path: status for path, status in _gcs_io(paths[0]).delete_batch(paths) if status is not None}
    if errors:
        raise beam_files.BeamIOError("Delete operation failed", errors)


def _read_gcs(path: str) -> tuple[bytes | None, object]:
    """Return (content, generation) of an object; (None, 0) if it does not exist."""
    bucket, name = gcs_object(path)
    blob = bucket.get_blob(name)
    if blob is None:
        return None, 0
    generation = int(blob.generation)  # before the download, which overwrites it with the answer's headers
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
    """Return (content, entity tag) of an object; (None, None) if it does not exist."""
    from botocore.exceptions import ClientError

    client, bucket, key = s3_object(path)
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:  # the only detail if the answer's body broke off
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


class ConditionalAccess(NamedTuple):
    """Compare and swap on an object: `read(path)` and `write(path, data, version)`.

    `read` returns (content, version), with None as the content of an object that does not exist. `write` returns False,
    and writes nothing, if the object no longer has that version.
    """

    read: Callable[[str], tuple[bytes | None, object]]
    write: Callable[[str, bytes, object], bool]


_CONDITIONAL_ACCESS = {"gs": ConditionalAccess(_read_gcs, _write_gcs), "s3": ConditionalAccess(_read_s3, _write_s3)}


def conditional_access(path: str) -> ConditionalAccess | None:
    """Return how the object at `path` is read and replaced; None for local files and stores without preconditions."""
    return _CONDITIONAL_ACCESS.get(scheme_of(path))


def _list_gcs(path: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    bucket, _ = gcs_object(path)
    fields = "items(name,size,generation),nextPageToken"
    for blob in bucket.client.list_blobs(bucket, prefix=prefix, fields=fields, page_size=LISTING_PAGE):
        yield blob.name, blob.size, str(blob.generation)


def _folders_gcs(path: str, prefix: str) -> list[str]:
    bucket, _ = gcs_object(path)
    pages = bucket.client.list_blobs(bucket, prefix=prefix, delimiter="/", fields="prefixes,nextPageToken")
    list(pages)  # only then are all prefixes known
    return sorted(pages.prefixes)


def _read_gcs_version(path: str, generation: str, start: int, end: int) -> bytes:
    bucket, name = gcs_object(path)
    data: bytes = bucket.blob(name).download_as_bytes(
        start=start,
        end=end - 1,
        raw_download=True,
        checksum=None,
        if_generation_match=int(generation) if generation else None,
    )
    return data


def _list_s3(path: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    client, bucket, _ = s3_object(path)
    pages = client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": LISTING_PAGE}):
        for item in page.get("Contents", []):
            yield item["Key"], item["Size"], item["ETag"]


def _folders_s3(path: str, prefix: str) -> list[str]:
    client, bucket, _ = s3_object(path)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    return [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", [])]


def _read_s3_version(path: str, tag: str, start: int, end: int) -> bytes:
    client, bucket, key = s3_object(path)
    condition = {"IfMatch": tag} if tag else {}
    data: bytes = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **condition)[
        "Body"
    ].read()
    return data


class VersionedAccess(NamedTuple):
    """Versions of objects.

    Attributes:
        list: `list(path, prefix)` yields (name, size in bytes, version) of objects in the bucket of `path`, by name.
        read: `read(path, version, start, end)` returns the bytes from `start` to before `end`; its error has HTTP status
            412 if the object has another version; version "" is any.
    """

    list: Callable[[str, str], Iterator[tuple[str, int, str]]]
    read: Callable[[str, str, int, int], bytes]


# By scheme.
VERSIONED_ACCESS = {
    "gs": VersionedAccess(_list_gcs, _read_gcs_version),
    "s3": VersionedAccess(_list_s3, _read_s3_version),
}

# By scheme: from (path, prefix) the beginnings of names in the bucket of `path` up to the next slash after the prefix.
FOLDERS: dict[str, Callable[[str, str], list[str]]] = {"gs": _folders_gcs, "s3": _folders_s3}
