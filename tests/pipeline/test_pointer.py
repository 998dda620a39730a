"""`current.json` is changed by one run at a time, on every kind of store."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem
from apache_beam.options.pipeline_options import PipelineOptions

from audioclip_text.pipeline import pointer
from audioclip_text.pipeline.pointer import SnapshotError, change, read_json, write_json
from audioclip_text.pipeline.run_dirs import start_run


class _Gcs(BaseHTTPRequestHandler):
    """As much of Cloud Storage's JSON interface as a pointer needs: an object's metadata, content and upload."""

    objects: dict[str, tuple[bytes, int]]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = unquote(url.path.rpartition("/o/")[2])
        if name not in self.objects:
            self._answer(404, b"{}")
            return
        data, generation = self.objects[name]
        about = {"name": name, "bucket": "b", "generation": str(generation), "size": str(len(data))}
        self._answer(200, data if "media" in parse_qs(url.query).get("alt", []) else json.dumps(about).encode())

    def do_POST(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = re.search(r'boundary="?([^"]+)"?', self.headers["Content-Type"])
        assert boundary
        _, about, content, _ = body.split(b"--" + boundary[1].encode().strip(b"'"))
        name = json.loads(about.split(b"\r\n\r\n", 1)[1])["name"]
        now = self.objects.get(name, (b"", 0))[1]
        if query["ifGenerationMatch"] != [str(now)]:
            self._answer(412, b'{"error": {"message": "precondition"}}')
            return
        self.objects[name] = content.split(b"\r\n\r\n", 1)[1][:-2], now + 1
        self._answer(200, json.dumps({"name": name, "bucket": "b", "generation": str(now + 1)}).encode())

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A path on a Cloud Storage server on loopback."""
    _Gcs.objects = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Gcs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        # No credentials on loopback, and no half minute of looking for them.
        monkeypatch.setattr("apache_beam.internal.gcp.auth._Credentials._credentials_init", True)
        FileSystems.set_options(PipelineOptions([], project="p"))
        yield "gs://b/out/current.json"
        server.shutdown()


@pytest.fixture
def s3() -> Iterator[str]:
    """A path on moto's S3 server on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="bucket")
    options = {"s3_access_key_id": "a", "s3_secret_access_key": "b", "s3_region_name": "us-east-1"}
    FileSystems.set_options(PipelineOptions([], s3_endpoint_url=url, **options))
    yield "s3://bucket/out/current.json"
    server.stop()


class _OtherFileSystem(LocalFileSystem):
    """A file system that is none of those we know the preconditions of: other://PATH."""

    @classmethod
    def scheme(cls) -> str:
        return "other"

    def _plain(self, path: str) -> str:
        return path.removeprefix("other://")

    def exists(self, path: str) -> bool:
        return bool(super().exists(self._plain(path)))

    def open(self, path: str, *args: object, **options: object) -> object:
        return super().open(self._plain(path), *args, **options)

    def create(self, path: str, *args: object, **options: object) -> object:
        return super().create(self._plain(path), *args, **options)

    def delete(self, paths: list[str]) -> None:
        super().delete([self._plain(path) for path in paths])


@pytest.fixture(params=["local", "gs", "s3", "other"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """current.json on each kind of store."""
    if request.param in ("gs", "s3"):
        return str(request.getfixturevalue(request.param))
    return f"{'other://' if request.param == 'other' else ''}{tmp_path}/current.json"


def test_a_change_sees_what_is_there_and_replaces_it(path: str) -> None:
    """From nothing to one, from one to two, and left alone where nothing is decided."""
    seen: list[object] = []
    for value in ({"snapshot": "one"}, {"snapshot": "two"}, None, {"snapshot": "thrée"}):
        change(path, lambda now, value=value: seen.append(now) or value)  # type: ignore[func-returns-value,misc]
    assert seen == [None, {"snapshot": "one"}, {"snapshot": "two"}, {"snapshot": "two"}]


def test_of_two_changes_at_once_one_fails(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decides on what is no longer there does not write."""

    def late(now: object) -> dict[str, object]:
        change(path, lambda _: {"snapshot": "first"})
        return {"snapshot": "second"}

    impatient = pointer.FileLock
    monkeypatch.setattr(pointer, "FileLock", lambda lock, timeout: impatient(lock, timeout=0.1))
    with pytest.raises(
        (SnapshotError, TimeoutError), match=r"in this moment|holds .*\.lock: run again|could not be acquired"
    ):
        change(path, late)
    seen: list[object] = []
    change(path, seen.append)
    assert seen in ([{"snapshot": "first"}], [None])


def test_a_lock_file_names_its_owner_and_ages(tmp_path: Path) -> None:
    """Where there are only lock files, a fresh one is respected and an old one is not."""
    path = f"other://{tmp_path}/current.json"
    write_json(f"{path}.lock", {"owner": "ann@host:7", "time": time.time() - 60})
    with pytest.raises(SnapshotError, match="ann@host:7 holds"):
        change(path, lambda _: {"snapshot": "mine"})
    assert read_json(path) is None
    write_json(f"{path}.lock", {"owner": "ann@host:7", "time": time.time() - 3600})
    change(path, lambda _: {"snapshot": "mine"})
    assert read_json(path) == {"snapshot": "mine"}
    assert not (tmp_path / "current.json.lock").exists()


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_damaged_pointer_is_a_clear_error(tmp_path: Path, content: str) -> None:
    """What is no JSON object is named, and never taken for an empty store."""
    (tmp_path / "current.json").write_text(content)
    with pytest.raises(SnapshotError, match=r"current\.json (is not JSON|holds no JSON object)"):
        read_json(str(tmp_path / "current.json"))


@pytest.mark.parametrize("store", ["gs", "s3"])
def test_two_runs_that_begin_in_one_second_get_directories_of_their_own(
    store: str, request: pytest.FixtureRequest
) -> None:
    """On a store without directories, a marker with a precondition makes a snapshot's name one run's alone."""
    output = str(request.getfixturevalue(store)).rpartition("/")[0]
    names = [start_run(output, "0123456789")[0] for _ in range(3)]
    assert len(set(names)) == 3
