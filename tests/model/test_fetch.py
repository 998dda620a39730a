"""fetch from a local server: downloads resume, are verified, and get their name only then."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from audioclip_beam.model import fetch as fetch_module
from audioclip_beam.model.fetch import FetchError, Released, fetch, fetch_missing
from tests.support.http_server import serving

BODY = bytes(range(256)) * 4000


class _Server(BaseHTTPRequestHandler):
    """A server of BODY under any name; `faults` is what it does to the next requests instead."""

    faults: list[str]
    requests: list[str | None]

    def do_GET(self) -> None:
        self.requests.append(self.headers["Range"])
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdecimal():
            self.send_error(int(fault))
            return
        if fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault[3:])
            self.end_headers()
            return
        start = 0
        if self.headers["Range"] and fault != "no range":
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        body = BODY[::-1] if fault == "other" else BODY + b"more" if fault == "longer" else BODY
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + 300_000] if fault in ("break", "stall") else body[start:])
        if fault == "stall":
            self.wfile.flush()
            self.rfile.read(1)  # until the client is gone

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str], list[str | None]]]:
    """(base URL, faults of the next requests, Range headers received); the released files are small files of BODY."""
    released = {
        what: Released(f"{what}.bin", len(BODY), hashlib.sha256(BODY).hexdigest()) for what in ("full", "vocabulary")
    }
    monkeypatch.setattr(fetch_module, "FILES", released)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    _Server.faults, _Server.requests = [], []
    with serving(_Server) as port:
        yield f"http://127.0.0.1:{port}", _Server.faults, _Server.requests


Server = tuple[str, list[str], list[str | None]]


def test_checkpoint_and_vocabulary_are_fetched_once(server: Server, tmp_path: Path) -> None:
    """Both files are fetched and verified; a correct file is not fetched again."""
    url, _, requests = server
    paths = fetch("full", tmp_path, url)
    assert [path.name for path in paths] == ["full.bin", "vocabulary.bin"]
    assert all(path.read_bytes() == BODY for path in paths)
    fetch("full", tmp_path, url)
    assert len(requests) == 2
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_download_resumes(server: Server, tmp_path: Path) -> None:
    """The second request asks for the bytes after those received."""
    url, faults, requests = server
    faults += ["break", "break"]
    assert fetch("vocabulary", tmp_path, url)[0].read_bytes() == BODY
    starts = [int((header or "bytes=0-").removeprefix("bytes=").rstrip("-")) for header in requests]
    assert starts[0] == 0
    assert 200_000 < starts[1] < starts[2] - 200_000


@pytest.mark.parametrize(
    "faults", [["503", "429"], ["break", "no range"], ["break", "416"], ["other"], ["longer"], ["break", "503"]]
)
def test_transient_failures_are_tried_again(server: Server, tmp_path: Path, faults: list[str]) -> None:
    """Busy servers, ignored ranges and wrong content still lead to the right file."""
    server[1].extend(faults)
    assert fetch("full", tmp_path, server[0])[0].read_bytes() == BODY


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["404"], "the server answered 404"),
        (["503"] * 9, "the server answered 503"),
        (["other"] * 9, "the received file is not the released one: its sha256 is"),
        (["longer"] * 9, "the received file is not the released one: it has"),
        (["to ftp://127.0.0.1/x"], "ftp://127.0.0.1/x is not https: refused"),
        (["to http://example.org/x"], "http://example.org/x is not https: refused"),
        (["to /again"] * 10, "redirects more than 10 times"),
    ],
)
def test_a_failed_download_is_a_clear_error_and_leaves_no_file(
    server: Server, tmp_path: Path, faults: list[str], message: str
) -> None:
    """A file that was not verified never gets the final name."""
    server[1].extend(faults)
    with pytest.raises(FetchError, match=message):
        fetch("full", tmp_path, server[0])
    assert not (tmp_path / "full.bin").exists()


def test_a_wrong_file_is_downloaded_twice_at_most(server: Server, tmp_path: Path) -> None:
    """The retry is for an unfinished download of another file; half a gigabyte is not downloaded a third time."""
    server[1].extend(["other"] * 9)
    with pytest.raises(FetchError):
        fetch("full", tmp_path, server[0])
    assert server[2] == [None, None]


def test_a_part_that_the_server_cannot_resume_is_deleted(server: Server, tmp_path: Path) -> None:
    """After 416 the next request asks for the whole file."""
    server[1].extend(["break", "416"])
    fetch("full", tmp_path, server[0])
    assert [bool(header) for header in server[2][:3]] == [False, True, False]


def test_a_killed_fetch_is_resumed_by_the_next(server: Server, tmp_path: Path) -> None:
    """SIGKILL during a download leaves only NAME.part, and no lock for which another fetch would wait."""
    server[1].append("stall")
    child = multiprocessing.get_context("fork").Process(target=fetch, args=("vocabulary", tmp_path, server[0]))
    child.start()
    part, deadline = tmp_path / "vocabulary.bin.part", time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
        pass
    child.kill()
    child.join()
    assert {path.name for path in tmp_path.iterdir()} == {".fetch.lock", part.name}
    assert fetch("vocabulary", tmp_path, server[0])[0].read_bytes() == BODY
    assert server[2][1] is not None


def test_two_fetches_at_once_download_once(server: Server, tmp_path: Path) -> None:
    """The second waits for the first and finds the file."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: fetch("full", tmp_path, server[0]), range(2)))
    assert both[0] == both[1]
    assert len(server[2]) == 2


def test_a_wrong_file_is_replaced(server: Server, tmp_path: Path) -> None:
    """A file of the right name and the wrong content is downloaded again."""
    (tmp_path / "full.bin").write_bytes(b"x" * len(BODY))
    assert fetch("full", tmp_path, server[0])[0].read_bytes() == BODY


@pytest.mark.parametrize("size", [1000, len(BODY), len(BODY) + 1])
def test_a_part_of_another_file_is_deleted(server: Server, tmp_path: Path, size: int) -> None:
    """The sha256 finds the wrong start of a resumed download, which then starts again."""
    (tmp_path / "full.bin.part").write_bytes(b"x" * size)
    assert fetch("full", tmp_path, server[0])[0].read_bytes() == BODY


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("full", {".cache/AudioCLIP-Full-Training.pt"}),
        ("models/AudioCLIP-Full-Training.pt", {"models/AudioCLIP-Full-Training.pt"}),
        ("models/Partial.pt", {"models/Partial.pt"}),
        ("models/mine.pt", set()),
        ("models/partial.safetensors", set()),
        ("gs://bucket/AudioCLIP-Full-Training.pt", set()),
    ],
)
def test_a_missing_checkpoint_is_fetched_to_its_path(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str, expected: set[str]
) -> None:
    """The name of a missing .pt decides which released file it gets; other files are the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(fetch_module.FILES, "partial", fetch_module.FILES["full"])
    paths = fetch_missing(checkpoint, "voc/v.gz", server[0])
    files = {str(path) for path in Path().rglob("*") if path.is_file() and path.name != ".fetch.lock"}
    assert files == {str(path) for path in paths} == expected | {"voc/v.gz"}
    assert all(Path(path).read_bytes() == BODY for path in files)
    fetch_missing(checkpoint, "voc/v.gz", server[0])
    assert len(server[2]) == len(files)


def test_an_existing_checkpoint_is_left_as_it_is(server: Server, tmp_path: Path) -> None:
    """A path that exists may be a file of the user under the released name."""
    path = tmp_path / "AudioCLIP-Full-Training.pt"
    path.write_bytes(b"my own")
    assert fetch_missing(str(path), str(path), server[0]) == []
    assert path.read_bytes() == b"my own"


def test_only_https_or_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http to another host is refused before a request, and https never leads to http, not even on this machine."""
    with pytest.raises(FetchError, match=r"http://example\.org/AudioCLIP-Full-Training\.pt is not https: refused"):
        fetch("full", tmp_path, "http://example.org")
    redirect = Mock(is_redirect=True, headers={"location": "http://127.0.0.1/x"})
    monkeypatch.setattr("requests.get", Mock(return_value=redirect))
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1/x is not https: refused"):
        fetch("full", tmp_path, "https://example.org")
    with pytest.raises(ValueError, match="'everything' is not one of the released files: full, partial, vocabulary"):
        fetch("everything", tmp_path)


@pytest.fixture
def offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Base URL of a host that does not exist; waiting for it fails the test; pip reads the test's folder, not PyPI."""
    monkeypatch.setattr(
        fetch_module, "time", SimpleNamespace(sleep=lambda _: pytest.fail("waited for a host that does not exist"))
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return "http://127.0.0.1:9"


def _wheel(folder: Path, member: str, content: bytes) -> None:
    """An open_clip_torch wheel of one file."""
    info = "open_clip_torch-1.0.dist-info"
    with zipfile.ZipFile(folder / "open_clip_torch-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: open_clip_torch\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_the_vocabulary_has_a_second_source(offline: str, tmp_path: Path) -> None:
    """If the release cannot be reached, the vocabulary is extracted from a wheel, without waiting."""
    _wheel(tmp_path, fetch_module.WHEEL_MEMBER, BODY)
    assert fetch("vocabulary", tmp_path / "cache", offline)[0].read_bytes() == BODY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "message"),
    [
        (fetch_module.WHEEL_MEMBER, "could not be fetched: .* whose file is not the released one: its sha256 is"),
        ("open_clip/other", "nor could it be .*There is no item named 'open_clip/bpe_simple"),
        (None, "from open_clip_torch on PyPI: ERROR: No matching distribution found for open_clip_torch"),
    ],
)
def test_the_second_source_is_verified_too(offline: str, tmp_path: Path, member: str | None, message: str) -> None:
    """A wheel without the file, or with another file, is an error that names both sources, and leaves no file."""
    if member:
        _wheel(tmp_path, member, BODY[::-1])
    with pytest.raises(FetchError, match=message):
        fetch("vocabulary", tmp_path / "cache", offline)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {".fetch.lock"}
