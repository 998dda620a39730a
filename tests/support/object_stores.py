"""Object stores on loopback, behind a proxy in which requests can go wrong.

gs:// is gcp-storage-emulator, and the proxy adds what it lacks: preconditions on an object's generation, and status 416
behind an object's end. s3:// is moto's server.
"""

from __future__ import annotations

import functools
import http.client
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from botocore.loaders import JSONFileLoader, Loader

from audioclip_beam.pipeline.io import retries
from audioclip_beam.pipeline.io.local_cache import local_copy


@dataclass(frozen=True)
class Request:
    """A client's request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    @property
    def what(self) -> str:
        """Return a key that is the same for a repeated request, also for the rest of a download, or in a new upload."""
        path = re.sub("upload_?id=[^&]*", "", self.path, flags=re.IGNORECASE)
        body = re.sub(rb"=+[0-9]+=+|invocation-id/[0-9a-f-]+", b"", self.body)  # a batch has new ones each time
        return f"{self.method} {path} {hash(body)}"


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


# The fault of a request: "503", refused with that status; "lost", done but not answered; "cut", the connection ends
# half-way through the answer; "hang", nothing follows that half. None: no fault.
Fault = Callable[[Request], str | None]


@dataclass
class Store:
    """A bucket: `url` is gs://... or s3://..., `env` the variables that clients need; `fault` is asked for each request."""

    url: str
    env: dict[str, str] = field(default_factory=dict)
    fault: Fault = lambda _: None
    seen: list[Request] = field(default_factory=list)

    def put(self, name: str, data: bytes) -> str:
        """Create an object; return its path."""
        with FileSystems.create(f"{self.url}/{name}", compression_type="uncompressed") as handle:
            handle.write(data)
        return f"{self.url}/{name}"

    def names(self, below: str = "") -> list[str]:
        """Return the objects whose names begin with `below`."""
        found = FileSystems.match([f"{self.url}/{below}**"])[0].metadata_list
        return sorted(file.path.removeprefix(f"{self.url}/") for file in found)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes: the second would wait for 40 ms
    store: Store
    upstream: str
    amend: Callable[[Request, Callable[[Request], Answer]], Answer]
    ending: threading.Event

    def _handle(self) -> None:
        request = Request(self.command, self.path, self.headers, self._body())  # type: ignore[arg-type]
        named = re.search(
            rb"corpus-[0-9a-f]{8}", self.path.encode() + request.body
        )  # a batch names it in its body only
        if named and named[0].decode() not in self.store.url:
            self._answer(Answer(404, [], b""))  # from a thread that an earlier test left, through this process's client
            return
        self.store.seen.append(request)
        fault = self.store.fault(request)
        if fault == "503":
            self._answer(Answer(503, [("Retry-After", "0")], b""))
            return
        answer = type(self).amend(request, self._forward)
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        headers = {name: value for name, value in request.headers.items() if name != "Transfer-Encoding"}
        headers |= {"Content-Length": str(len(request.body))} if request.method in ("POST", "PUT", "PATCH") else {}
        connection.request(request.method, request.path, request.body or None, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return Answer(answer.status, answer.getheaders(), body)

    def _answer(self, answer: Answer, fault: str | None = None) -> None:
        if fault and (len(answer.body) < 2 or self.command == "HEAD"):  # half of this would be all of it
            self.close_connection = True
            if fault == "hang":
                self.ending.wait(60)
            return
        self.send_response_only(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("content-length", "connection", "transfer-encoding", "keep-alive"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if fault else answer.body)
        self.close_connection = self.close_connection or fault is not None
        if fault == "hang":
            self.wfile.flush()
            self.ending.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close the connection."""


@contextmanager
def _proxy(store: Store, upstream: str, amend: Callable[..., Answer]) -> Iterator[str]:
    ending = threading.Event()
    names = {"store": store, "upstream": upstream, "amend": staticmethod(amend), "ending": ending}
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), names)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        ending.set()
        server.shutdown()


class _Generations:
    """The preconditions that the emulator does not implement."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, request: Request, forward: Callable[[Request], Answer]) -> Answer:
        expected = request.query.get("ifGenerationMatch")
        if expected is None:
            answer = forward(request)
            behind = answer.status == 206 and not answer.body
            return Answer(416, [], b"") if behind else answer
        bucket = request.path.split("/b/")[1].split("/")[0]
        name = unquote(urlsplit(request.path).path.partition("/o/")[2]) or _name_in(request.body)
        with self.lock:  # no other write comes between the look-up and the write
            found = forward(Request("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}", {}, b""))
            if request.method == "GET" and found.status == 404:
                return found
            generation = json.loads(found.body)["generation"] if found.status == 200 else "0"
            return (
                forward(request)
                if expected == [generation]
                else Answer(412, [], b'{"error": {"message": "precondition"}}')
            )


def _name_in(body: bytes) -> str:
    found = re.search(rb'"name": ?"([^"]+)"', body)
    assert found
    return found[1].decode()


@functools.cache
def _gcs_emulator() -> Any:
    """Start the emulator of Cloud Storage, once per process: each test has its own bucket and proxy."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True)
    server._api.daemon = True
    server.start()
    return server


@contextmanager
def gcs() -> Iterator[Store]:
    """Serve a new bucket on the emulator of Cloud Storage."""
    from gcp_storage_emulator.handlers import buckets

    store, server = Store(f"gs://corpus-{uuid.uuid4().hex[:8]}"), _gcs_emulator()
    buckets.create_bucket(store.url.removeprefix("gs://"), server._storage)
    with _proxy(store, f"127.0.0.1:{server._api._httpd.server_port}", _Generations()) as url:
        # No credentials are needed on loopback, but Google's client asks for a default project.
        store.env = {"STORAGE_EMULATOR_HOST": url, "GOOGLE_CLOUD_PROJECT": "test"}
        yield store


@functools.cache
def _s3_emulator() -> str:
    """Start moto's S3 server, once per process; return its host and port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    return "{}:{}".format(*server.get_host_and_port())


@contextmanager
def s3() -> Iterator[Store]:
    """Serve a new bucket on moto's S3 server."""
    store = Store(f"s3://corpus-{uuid.uuid4().hex[:8]}")
    connection = http.client.HTTPConnection(_s3_emulator(), timeout=30)
    connection.request("PUT", f"/{store.url.removeprefix('s3://')}")
    assert connection.getresponse().status == 200
    connection.close()
    with _proxy(store, _s3_emulator(), lambda request, forward: forward(request)) as url:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        store.env = {"AWS_ENDPOINT_URL": url, **keys}
        yield store


_load_file = functools.cache(JSONFileLoader().load_file)
_list_services = functools.cache(Loader().list_available_services)


@contextmanager
def connected(scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Serve a bucket of that scheme, which this process's clients find by their environment."""
    with gcs() if scheme == "gs" else s3() as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        # If the extra gcp is installed, its search for credentials, which loopback does not need, would take half a minute.
        monkeypatch.setattr("apache_beam.internal.gcp.auth._Credentials._credentials_init", True)
        # Beam creates a client for every file that it opens on s3://, and each parses the same megabytes of JSON.
        monkeypatch.setattr("botocore.loaders.JSONFileLoader.load_file", lambda _, path: _load_file(path))
        monkeypatch.setattr(
            "botocore.loaders.Loader.list_available_services", lambda _, type_name: _list_services(type_name)
        )
        monkeypatch.setattr("audioclip_beam.pipeline.remote.worker_reports.STORE_SECONDS", 0.1)
        FileSystems.set_options(PipelineOptions([]))
        yield made
        made.fault = lambda _: None
        for thread in threading.enumerate():
            if thread.name.startswith(f"worker-report {made.url}/"):
                thread.join(10)  # until then it makes requests, later to another test's store or with its environment
                assert not thread.is_alive(), thread.name


@pytest.fixture(params=["gs", "s3"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Serve a bucket of each scheme."""
    with connected(request.param, monkeypatch) as made:
        yield made


class Waits(SimpleNamespace):
    """A replacement for the module `time`: waits take no time, but advance the clock of their thread; `waited` lists all."""

    def __init__(self) -> None:
        others = {name: getattr(time, name) for name in dir(time) if name not in ("sleep", "monotonic")}
        super().__init__(**others, waited=[], thread=threading.local())

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.thread.passed = self._passed() + seconds

    def monotonic(self) -> float:
        return time.monotonic() + self._passed()

    def _passed(self) -> float:
        # Not of other threads: what they wait for does not use up the time of this one's attempts.
        return float(getattr(self.thread, "passed", 0.0))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Make retries wait no time: Google's client, Amazon's, Beam's and ours."""
    made = Waits()
    for module in (
        "google.api_core.retry.retry_unary",
        "google.api_core.retry.retry_base",
        "botocore.endpoint",
        "apache_beam.utils.retry",
    ):
        monkeypatch.setattr(f"{module}.time", made)
    monkeypatch.setattr(retries, "time", made)
    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients wait 0.2 s for an answer instead of a minute."""
    from botocore.config import Config
    from google.auth.transport.requests import AuthorizedSession

    for name in ("connect_timeout", "read_timeout"):
        monkeypatch.setitem(Config.OPTION_DEFAULTS, name, 0.2)
    patient = AuthorizedSession.request

    def request(self: object, *args: object, timeout: object = None, **options: object) -> object:
        return patient(self, *args, timeout=0.2, **options)

    monkeypatch.setattr(AuthorizedSession, "request", request)


def print_local_copy(path: str) -> None:
    """Print the path of the local copy of an object, in a process of its own."""
    FileSystems.set_options(PipelineOptions([]))
    print(local_copy(path), flush=True)
