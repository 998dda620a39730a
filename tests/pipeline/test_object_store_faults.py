"""Failures of object stores: after one nothing is lost or duplicated, after a permanent one nothing is published."""

from __future__ import annotations

import errno
import gc
import http.client
import io
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import botocore.exceptions
import google.api_core.exceptions
import google.auth.exceptions
import pyarrow.parquet as pq
import pytest
import requests
import urllib3
from apache_beam.io.aws.clients.s3.messages import S3ClientError
from apache_beam.io.filesystem import BeamIOError

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io import filesystem, object_store, retries
from audioclip_beam.pipeline.io import json_file as pointer
from audioclip_beam.pipeline.io.json_file import read_json, update_json
from audioclip_beam.pipeline.io.retries import StoreError, is_transient, with_retries
from audioclip_beam.pipeline.layout import CARRIED, DROPPED, EARLIER, INPUTS, is_copy
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.listing import read_file_list
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from tests.support import object_stores
from tests.support.object_stores import Request, Store, Waits
from tests.support.stub import StubHead

store, waits, impatient = object_stores.store, object_stores.waits, object_stores.impatient

ROWS = [{"id": f"r{n}", "text": f"text number {n}"} for n in range(3000)]


def fill(store: Store) -> None:
    """Create two shards, of which one is read in many requests."""
    store.put("texts/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in ROWS[:2000]))
    store.put("texts/b.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in ROWS[2000:]))


def embed(store: Store) -> Manifest:
    """Run over the shards of `fill` with a stub model; return the manifest."""
    options = EmbedOptions(
        input=[f"{store.url}/texts/*.jsonl"], output=f"{store.url}/out", id_field="id", max_file_rows=1000
    )
    corpus = EmbedCorpus(options, StubHead())
    try:
        run(corpus, options)
    finally:
        corpus.close()
    manifest = read_manifest(f"{store.url}/out", str(corpus.snapshot))
    assert manifest
    return manifest


def ids(store: Store, manifest: Manifest) -> list[str]:
    """Return the ids in the files of a snapshot."""
    all_ids = []
    for file in read_file_list(f"{store.url}/out", manifest):
        data = filesystem.read(f"{store.url}/out/snapshots/{manifest['snapshot']}/{file.name}")
        all_ids += pq.read_table(io.BytesIO(data or b""))["id"].to_pylist()
    return sorted(all_ids)


class FirstTime:
    """A fault of each request when it is sent for the first time; `kinds` counts them by method."""

    def __init__(self, fault: str) -> None:
        self.fault, self.sent, self.kinds = fault, set[str](), Counter[str]()

    def __call__(self, request: Request) -> str | None:
        if request.what in self.sent:
            return None
        self.sent.add(request.what)
        self.kinds[request.method] += 1
        return self.fault


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that runs leave no temporary files on this machine, however they end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "lost", "cut", "hang"])
def test_every_request_may_fail_once(store: Store, fault: str, waits: Waits, request: pytest.FixtureRequest) -> None:
    """Each request, once: answered with 503, done but not answered, cut off half-way, or left hanging."""
    fill(store)
    if fault == "hang":
        request.getfixturevalue("impatient")
    store.fault = first_time = FirstTime(fault)
    manifest = embed(store)
    store.fault = lambda _: None
    assert manifest["counts"]["read"] == manifest["counts"]["embedded"] == 3000
    assert ids(store, manifest) == sorted(str(row["id"]) for row in ROWS)
    assert current_name(f"{store.url}/out") == manifest["snapshot"]
    names = {name.split("/")[3] for name in store.names("out/snapshots/")}
    files = {file.name for file in read_file_list(f"{store.url}/out", manifest)}
    listings = {INPUTS, EARLIER, CARRIED, DROPPED, manifest["files"]["name"], manifest["shards"]["name"]}
    assert names == {"manifest.json", "report.html", *listings, *files}
    assert first_time.kinds["GET"] >= 5
    assert first_time.kinds["POST"] + first_time.kinds["PUT"] >= 6
    assert waits.waited


@pytest.mark.slow
def test_carrying_over_survives_any_request_whose_answer_is_lost(store: Store, waits: Waits) -> None:
    """Each request of a night with a new shard, once: files are copied by the object store, and no other shard is read."""
    fill(store)
    before = embed(store)
    store.put("texts/c.jsonl", b'{"id": "new", "text": "new"}\n')
    store.fault = first_time = FirstTime("lost")
    manifest = embed(store)
    store.fault = lambda _: None
    assert manifest["counts"]["read"] == 1
    assert manifest["totals"]["vectors"] == 3001
    assert ids(store, manifest) == sorted([*(str(row["id"]) for row in ROWS), "new"])
    carried = {file.name for file in read_file_list(f"{store.url}/out", before)}
    assert carried < {file.name for file in read_file_list(f"{store.url}/out", manifest)}
    directory = f"out/snapshots/{manifest['snapshot']}/"
    assert carried <= {name.removeprefix(directory) for name in store.names(directory)}
    assert not [
        what for what in first_time.sent if what.startswith("GET") and "texts/a.jsonl" in what and "?" not in what
    ]
    assert first_time.kinds["POST"] + first_time.kinds["PUT"] >= 6
    assert waits.waited


@pytest.mark.slow
def test_copying_rows_survives_any_request_that_is_cut_off(store: Store, waits: Waits) -> None:
    """Each request of a night with a changed shard, once: rows of the other one are copied from files with rows of both."""
    fill(store)
    embed(store)
    store.put("texts/b.jsonl", b'{"id": "new", "text": "new"}\n')
    store.fault = FirstTime("cut")
    manifest = embed(store)
    store.fault = lambda _: None
    assert (manifest["counts"]["read"], manifest["totals"]["vectors"]) == (1, 2001)
    assert ids(store, manifest) == sorted([*(str(row["id"]) for row in ROWS[:2000]), "new"])
    assert any(is_copy(file.name) for file in read_file_list(f"{store.url}/out", manifest))
    assert waits.waited


@pytest.mark.slow
def test_a_permanent_failure_fails_the_run(store: Store, waits: Waits) -> None:
    """The error names the file and contains the response; the earlier snapshot stays, and the next run succeeds."""
    fill(store)
    before = embed(store)
    store.put("texts/b.jsonl", b'{"id": "new", "text": "new"}\n')
    for what, done in (("texts", "listed"), ("manifest.json", "written"), ("current.json", "written")):

        def fault(request: Request, what: str = what, reads: bool = done == "listed") -> str | None:
            named = what in request.path or what.encode() in request.body
            return "503" if named and reads == (request.method in ("GET", "HEAD")) else None

        store.fault, began = fault, sum(waits.waited)
        with pytest.raises((RuntimeError, ValueError), match=rf"{what}.* cannot be {done}: .*503") as caught:
            embed(store)
        assert "Traceback" not in str(caught.value)
        assert sum(waits.waited) - began > 100
        store.fault = lambda _: None
        assert current_name(f"{store.url}/out") == before["snapshot"]
        assert read_manifest(f"{store.url}/out", before["snapshot"]) == before
    after = embed(store)
    assert after["counts"]["read"] == after["counts"]["reused"] + after["counts"]["embedded"] == 1  # type: ignore[operator]
    assert after["totals"]["read"] == 2001


@pytest.mark.slow
@pytest.mark.usefixtures("waits")
def test_finished_files_of_a_failed_run_are_reused(store: Store) -> None:
    """If the third part file cannot be written, the next run embeds only its rows, and removes the failed run."""
    fill(store)
    parts = list[str]()

    def fault(request: Request) -> str | None:
        match = re.search(rb"part-\w+\.parquet", request.path.encode() + request.body)
        if match and match[0].decode() not in parts:
            parts.append(match[0].decode())
        return "503" if match and parts.index(match[0].decode()) == 2 else None

    store.fault = fault
    with pytest.raises(RuntimeError, match=r"part-\w+\.parquet cannot be written: .*503"):
        embed(store)
    store.fault = lambda _: None
    assert current_name(f"{store.url}/out") is None
    after = embed(store)
    assert (after["counts"]["reused"], after["counts"]["embedded"]) == (2000, 1000)
    assert ids(store, after) == sorted(str(row["id"]) for row in ROWS)
    assert {name.split("/")[2] for name in store.names("out/snapshots/")} == {after["snapshot"]}


def test_waits_grow_and_all_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off doubles up to half a minute, with jitter down to half of that, for five minutes in all."""
    waits = Waits()
    monkeypatch.setattr(retries, "time", waits)

    def busy() -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(
        StoreError, match=r"gs://b/a cannot be read: Connection reset by peer \(\d+ attempts in 3\d\d s\)"
    ):
        with_retries("gs://b/a", "read", busy)
    for wait, whole in zip(waits.waited, [1, 2, 4, 8, 16, *[30] * 100], strict=False):
        assert whole / 2 <= wait <= whole
    assert len(set(waits.waited)) == len(waits.waited) > 10
    assert retries.RETRY_SECONDS <= sum(waits.waited) < retries.RETRY_SECONDS + 30


def test_a_refused_request_is_not_retried(store: Store, waits: Waits) -> None:
    """After status 403 there is no second attempt, and the error contains the response."""

    class Refused(Exception):
        code = 403

    assert not is_transient(Refused())
    attempts = []

    def refused() -> None:
        attempts.append(1)
        raise Refused("the account has no access")

    with pytest.raises(StoreError, match=r"x cannot be read: the account has no access \(HTTP status 403\)$"):
        with_retries(f"{store.url}/x", "read", refused)
    assert (len(attempts), waits.waited) == (1, [])


def raised_by_beam(error: Exception) -> Exception:
    """Return what Beam's client for s3:// makes of an error of botocore without an HTTP status."""
    try:
        try:
            raise error
        except Exception:
            raise S3ClientError(str(error), None)  # noqa: B904 - as Beam does
    except S3ClientError as raised:
        return raised


ENDPOINT = {"endpoint_url": "http://127.0.0.1:9"}

TRANSIENT = [
    google.api_core.exceptions.InternalServerError("Backend Error"),
    google.api_core.exceptions.PreconditionFailed("the object was replaced"),
    BeamIOError("Delete operation failed", {"gs://b/a": 503, "gs://b/b": 429}),
    S3ClientError("Reduce your request rate.", "SlowDown"),
    TimeoutError("timed out"),
    OSError("3 of 5 bytes arrived"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    AttributeError("'NoneType' object has no attribute 'status_code'"),
    http.client.IncompleteRead(b""),
    botocore.exceptions.EndpointConnectionError(**ENDPOINT),
    botocore.exceptions.ConnectTimeoutError(**ENDPOINT),
    botocore.exceptions.ReadTimeoutError(**ENDPOINT),
    botocore.exceptions.ConnectionClosedError(**ENDPOINT),
    botocore.exceptions.IncompleteReadError(actual_bytes=3, expected_bytes=5),
    raised_by_beam(botocore.exceptions.EndpointConnectionError(**ENDPOINT)),
    requests.exceptions.ConnectionError("Connection aborted."),
    requests.exceptions.ReadTimeout("Read timed out."),
    requests.exceptions.ChunkedEncodingError("Connection broken"),
    urllib3.exceptions.ProtocolError("Connection broken"),
    google.auth.exceptions.TransportError(requests.exceptions.ConnectionError("Connection aborted.")),
    google.auth.exceptions.RefreshError("internal_failure", retryable=True),
    google.api_core.exceptions.RetryError("Timeout of 120.0s exceeded", requests.exceptions.ConnectionError()),
]

PERMANENT = [
    google.api_core.exceptions.NotFound("no such object"),
    BeamIOError("Delete operation failed", {"gs://b/a": 503, "gs://b/b": 403}),
    S3ClientError("Access Denied", "AccessDenied"),
    ImportError("No module named 'boto3'"),
    PermissionError(errno.EACCES, "Permission denied"),
    botocore.exceptions.ProfileNotFound(profile="nosuch"),
    botocore.exceptions.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    botocore.exceptions.NoRegionError(),
    botocore.exceptions.UnauthorizedSSOTokenError(),
    botocore.exceptions.ParamValidationError(report="Invalid bucket name"),
    raised_by_beam(botocore.exceptions.ParamValidationError(report="Invalid bucket name")),
    google.auth.exceptions.DefaultCredentialsError("File key.json was not found."),
    google.auth.exceptions.RefreshError("invalid_grant: Token has been expired or revoked."),
    requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"),
]


@pytest.mark.parametrize(
    ("error", "retried"), [(error, True) for error in TRANSIENT] + [(error, False) for error in PERMANENT]
)
def test_errors_of_the_connection_are_retried_and_no_others(error: Exception, retried: bool, waits: Waits) -> None:
    """What the client finds wrong with credentials or settings is reported at once."""
    errors = [error]

    def attempt() -> str:
        if errors:
            raise errors.pop()
        return "done"

    if retried:
        assert with_retries("gs://b/x", "read", attempt) == "done"
    else:
        with pytest.raises(StoreError, match="gs://b/x cannot be read: "):
            with_retries("gs://b/x", "read", attempt)
    assert len(waits.waited) == retried


def test_a_value_error_is_passed_on(waits: Waits) -> None:
    """What was asked for is wrong, and not the object store."""
    error = ValueError("no such scheme")

    def attempt() -> None:
        raise error

    with pytest.raises(ValueError, match="no such scheme") as caught:
        with_retries("gs://b/x", "read", attempt)
    assert caught.value is error
    assert waits.waited == []


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_does_not_exist_any_more_begins_again(
    status: int, monkeypatch: pytest.MonkeyPatch, waits: Waits
) -> None:
    """Its whole content is sent, not only the rest."""
    sent: list[bytes] = []

    def send(source: IO[bytes], *_: object) -> None:
        sent.append(source.read())
        if len(sent) == 1:
            raise google.api_core.exceptions.from_http_status(status, "the upload is unknown")

    monkeypatch.setitem(object_store.UPLOADERS, "gs", send)
    filesystem.upload(io.BytesIO(b"rows"), "gs://b/x")
    assert sent == [b"rows", b"rows"]
    assert len(waits.waited) == 1


def test_a_profile_that_does_not_exist_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, waits: Waits) -> None:
    """No request can be made with it."""
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with (
        object_stores.connected("s3", monkeypatch) as store,
        pytest.raises(StoreError, match=r"cannot be reached: The config profile \(nosuch\) could not be found$"),
    ):
        read_json(f"{store.url}/out/current.json")
    assert waits.waited == []


def test_a_local_file_is_not_retried(tmp_path: Path) -> None:
    """An error of a local disk is raised at once and unchanged."""
    with pytest.raises(FileNotFoundError):
        with_retries(str(tmp_path / "none"), "read", (tmp_path / "none").read_bytes)


@pytest.mark.slow
@pytest.mark.usefixtures("waits")
def test_a_change_whose_answer_is_lost_was_made_once(store: Store) -> None:
    """The client repeats the request and is refused because of its own write, which is not taken for another run's."""
    path = f"{store.url}/out/current.json"
    update_json(path, lambda _: {"snapshot": "one"})
    store.fault = first_time = FirstTime("lost")
    update_json(path, lambda now: {"snapshot": "two", "after": now})
    store.fault = lambda _: None
    assert read_json(path) == {"snapshot": "two", "after": {"snapshot": "one"}}
    assert first_time.kinds["POST"] + first_time.kinds["PUT"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("waits")
def test_a_change_by_another_run_is_detected(store: Store) -> None:
    """With every answer lost once, a decision about replaced content is still not written."""
    path = f"{store.url}/out/current.json"
    store.fault = FirstTime("lost")

    def late(_: pointer.Json | None) -> pointer.Json:
        update_json(path, lambda _: {"snapshot": "first"})
        return {"snapshot": "second"}

    with pytest.raises(SnapshotError, match="another run changed"):
        update_json(path, late)
    store.fault = lambda _: None
    assert read_json(path) == {"snapshot": "first"}


@pytest.mark.slow
@pytest.mark.usefixtures("waits")
def test_a_failed_upload_is_not_completed_later(store: Store) -> None:
    """Once its objects are garbage-collected and the object store answers again, nothing is written."""
    store.fault = lambda request: "503" if request.method in ("POST", "PUT") else None
    with pytest.raises(StoreError, match=r"out/late cannot be written: .*503"):
        filesystem.upload(io.BytesIO(b"x" * 100), f"{store.url}/out/late")
    store.fault = lambda _: None
    gc.collect()
    assert store.names() == []
