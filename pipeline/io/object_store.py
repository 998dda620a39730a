"""The clients of gs:// and s3:// that Beam's file systems use, for what those file systems cannot do.

That is writing with a precondition, and sending a file so that nothing is left behind where it fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, TypeAlias

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

GCS_PIECE = 16 << 20  # else 100 MB of a file are held in memory


def gcs_object(path: str):  # type: ignore[no-untyped-def]  # google.cloud.storage.Bucket, where the extra gcp is
    """(bucket of the client that Beam uses with these options, name) of a path on gs://."""
    from apache_beam.io.gcp.gcsio import GcsIO

    _, _, bucket, name = path.split("/", 3)
    options = FileSystems.get_filesystem(path)._pipeline_options or PipelineOptions([])
    return GcsIO(pipeline_options=options).client.bucket(bucket), name


def s3_object(path: str):  # type: ignore[no-untyped-def]  # boto3's client, where the extra aws is
    """(client that Beam uses with these options, bucket, key) of a path on s3://."""
    from apache_beam.io.aws.s3io import S3IO

    _, _, bucket, key = path.split("/", 3)
    options = FileSystems.get_filesystem(path)._options or PipelineOptions([])
    return S3IO(options=options).client.client, bucket, key


def _send_gcs(source: IO[bytes], path: str, mime_type: str) -> None:
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, name = gcs_object(path)
    size = source.seek(0, os.SEEK_END)
    blob = bucket.blob(name, chunk_size=GCS_PIECE)
    blob.upload_from_file(source, rewind=True, size=size, content_type=mime_type, retry=DEFAULT_RETRY)


def _send_s3(source: IO[bytes], path: str, mime_type: str) -> None:
    client, bucket, key = s3_object(path)
    client.upload_fileobj(_Kept(source), bucket, key, {"ContentType": mime_type})


class _Kept:
    """A file that stays open when boto3 closes it, so that it can be sent again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def close(self) -> None:
        """Not here."""


# By scheme: makes an object of (all that a file holds, path, MIME type).
SENDERS: dict[str, Callable[[IO[bytes], str, str], None]] = {"gs": _send_gcs, "s3": _send_s3}


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
