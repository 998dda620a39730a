"""The page of `browse` in a real Chromium: query, play, pictures, files that are dropped, and files that are gone."""

from __future__ import annotations

import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from audioclip_beam.pipeline.browse.app import make_app
from audioclip_beam.pipeline.browse.contents import Content, Contents
from audioclip_beam.pipeline.browse.server import _server
from tests.support.browser import CHROMIUM, contrast
from tests.support.browsing import TOKEN, library_of, make_snapshots, picture, use_stub_models
from tests.support.devtools import Browser
from tests.support.program import start_program
from tests.support.snapshots import write_snapshot
from tests.support.stub_media import embed_media

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

HOURS, RATE = 24, 8000
IDLE = "!document.querySelector('[aria-busy]')"


def write_long_wav(path: Path) -> None:
    """Write a WAV of 24 hours, a sparse file, with a tone of one second at each half hour."""
    size = HOURS * 3600 * RATE * 2
    header = (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    )
    tone = (np.sin(np.arange(RATE) * 0.3) * 8000).astype("<i2").tobytes()
    with path.open("wb") as file:
        file.write(header + b"data" + struct.pack("<I", size))
        for half_hour in range(2 * HOURS):
            file.seek(44 + half_hour * 1800 * RATE * 2)
            file.write(tone)
        file.truncate(44 + size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots of sounds, pictures and texts, of windows of a sound of 24 hours, and without rows."""
    folder = tmp_path_factory.mktemp("page")
    make_snapshots(folder)
    write_long_wav(folder / "night.wav")
    (folder / "night.jsonl").write_text(f'{{"audio": "night.wav", "at": {23 * 3600}, "for": 2}}\n')
    fields = {"media_field": ["audio"], "offset_field": "at", "duration_field": "for"}
    embed_media(folder / "night.jsonl", folder / "out/night", **fields)
    write_snapshot(folder / "out/empty", [], 8)
    return folder


SENT: list[int] = []  # the sizes of the pieces that the server has read


def read_and_count(contents: Contents, content: Content, start: int, end: int) -> Iterator[bytes]:
    for piece in READ(contents, content, start, end):
        SENT.append(len(piece))
        yield piece


READ = Contents.read


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The address of a server of these snapshots, whose models are stubs."""
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        use_stub_models(patch)
        patch.setattr(Contents, "read", read_and_count)
        outputs = [folder / "out" / name for name in ("sounds", "pictures", "texts", "night", "empty")]
        server = _server(make_app(library_of(outputs), TOKEN, {"localhost"}))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/?token={TOKEN}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests: it takes seconds to start."""
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, address: str) -> Iterator[Browser]:
    """A browser that shows the page, which asks no other server for anything."""
    chromium.open("about:blank")
    chromium.errors, chromium.requests = [], []
    chromium.show(1280)
    chromium.open(address)
    chromium.wait("document.querySelectorAll('.hit').length == 15")
    yield chromium
    server = address.partition("/?")[0]
    assert [url for url in chromium.requests if not url.startswith((server, "blob:", "data:", "about:"))] == []


def snapshot(number: int) -> str:
    return f".snapshot:nth-child({number}) "


def test_a_query_by_text_with_keys_alone(browser: Browser) -> None:
    """A text is searched for, rows are walked through, and `m` and the back button lead on and back."""
    browser.type("rain")
    browser.key("Enter")
    browser.wait(
        "document.querySelector('#query').textContent == 'Nearest to rain' && !document.querySelector('[aria-busy]')"
    )
    assert browser.run(f"document.querySelector('{snapshot(3)}.hit .text').textContent") == "rain"
    assert browser.run(f"document.querySelector('{snapshot(3)}.hit .score').textContent") == "1.0001"  # score and rank
    assert browser.run("document.querySelector('#status').textContent").startswith("15 rows of 5 snapshots in ")
    assert browser.run(f"document.querySelector('{snapshot(5)}').textContent").endswith("No row is found.")
    assert browser.run("document.title") == "audioclip browse"
    assert browser.run("document.querySelectorAll('#results script, #results b:not(.score b)').length") == 0
    browser.key("ArrowDown")
    browser.key("ArrowDown")
    assert browser.run("document.activeElement === document.querySelectorAll('.hit')[1]")
    name = browser.run("document.activeElement.querySelector('h3').textContent")
    browser.key("m")
    browser.wait(f"document.querySelector('#query b')?.textContent == {name!r}")
    browser.wait(f"document.querySelector('{snapshot(1)}.hit h3').textContent == {name!r}")
    browser.run("history.back()")
    browser.wait("document.querySelector('#query').textContent == 'Nearest to rain'")
    assert browser.run("document.querySelector('#text').value") == "rain"
    assert browser.errors == []


def test_a_sound_is_played_and_a_picture_is_shown(browser: Browser) -> None:
    """Of a window the part from its start is played, to its end; another player stops."""
    browser.wait("document.querySelectorAll('audio').length >= 6")
    assert browser.wait(f"document.querySelector('{snapshot(2)}img')?.naturalWidth") == 60
    hit = "[...document.querySelectorAll('.hit')].find(e => e.querySelector('h3').textContent == 'long.wav#t=1,2')"
    browser.run(f"window.row = {hit}; row.focus()")
    browser.key(" ")
    browser.wait("row.querySelector('audio').currentTime > 1.05")
    assert browser.run("row.querySelector('audio').currentTime") < 2
    browser.wait("row.querySelector('audio').paused && Math.abs(row.querySelector('audio').currentTime - 1) < 0.01")
    for kind in ("flac", "ogg"):
        browser.run(f"window.audio = document.querySelector('audio[aria-label$=\".{kind}\"]'); audio.play()")
        browser.wait("audio.currentTime > 0.1")
    assert browser.errors == []


def test_hour_23_of_a_file_of_24_hours(browser: Browser) -> None:
    """It is played by ranges: the server reads a small part of 1.4 GB."""
    browser.run(f"window.audio = document.querySelector('{snapshot(4)}.hit'); audio.scrollIntoView()")
    browser.wait(f"!!document.querySelector('{snapshot(4)}audio')")
    assert "23:00:00 to 23:00:02 of 24:00:00" in browser.run("audio.textContent")
    SENT.clear()
    browser.run(f"window.audio = document.querySelector('{snapshot(4)}audio'); audio.play()")
    browser.wait("audio.currentTime > 82800.2")
    assert browser.run("audio.duration") == HOURS * 3600
    browser.wait("audio.paused && audio.currentTime == 82800")
    assert sum(SENT) < 100 << 20
    assert browser.errors == []


def test_files_are_dropped_and_chosen(browser: Browser, folder: Path) -> None:
    """Each finds itself in its snapshot; another file is an error on the page."""
    browser.drop(folder / "pictures/2.png")
    browser.wait(f"document.querySelector('#query img')?.naturalWidth == 60 && {IDLE}")
    assert browser.run(f"document.querySelector('{snapshot(2)}.hit h3').textContent") == "2.png"
    assert browser.run("document.querySelector('#drop').hidden")
    browser.choose("#file", folder / "sounds/bark.wav")
    browser.wait(f"document.querySelector('#query audio') && {IDLE}")
    assert browser.run(f"document.querySelector('{snapshot(1)}.hit h3').textContent") == "bark.wav"
    browser.drop(folder / "night.jsonl")
    browser.wait("document.querySelector('#status').className == 'error'")
    assert "neither a sound nor a picture" in browser.run("document.querySelector('#status').textContent")
    assert browser.run("document.querySelectorAll('.hit').length") == 0
    browser.drop(folder / "night.wav")
    browser.wait("document.querySelector('#status').textContent.includes('give a shorter one')")
    browser.errors = [error for error in browser.errors if "400" not in error]
    assert browser.errors == []


def test_a_file_that_is_gone_or_cannot_be_shown(browser: Browser, folder: Path, address: str) -> None:
    """The row says what is wrong with it; a file that disappears before it is played, too."""
    files = {name: folder / name for name in ("sounds/rain.flac", "sounds/bark.wav", "pictures/0.png")}
    contents = {name: path.read_bytes() for name, path in files.items()}
    row = "[...document.querySelectorAll('.hit')].find(e => e.querySelector('h3').textContent == '{}').textContent"
    try:
        browser.run(
            "[...document.querySelectorAll('.hit')].find(e => e.textContent.includes('bark.wav')).scrollIntoView()"
        )
        browser.wait("!!document.querySelector('audio[aria-label=\"Play bark.wav\"]')")
        files["sounds/bark.wav"].unlink()
        browser.run("document.querySelector('audio[aria-label=\"Play bark.wav\"]').play().catch(() => 0)")
        missing = "Not available: its file is missing: No such file or directory"
        browser.wait(f"{row.format('bark.wav')}.includes({missing!r})")
        files["sounds/rain.flac"].unlink()
        files["pictures/0.png"].write_bytes(picture(0)[:-1] + b"x")
        browser.open(address)
        browser.wait("document.querySelectorAll('.hit').length == 15")
        browser.wait(f"{row.format('rain.flac')}.includes({missing!r})")
        browser.wait(f"{row.format('0.png')}.includes('Not available: its file changed since it was embedded')")
    finally:
        for name, path in files.items():
            path.write_bytes(contents[name])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_can_be_read(browser: Browser, width: int, dark: bool) -> None:
    """Nothing is wider than the window, and every word has contrast; on a phone buttons are large enough for a finger."""
    browser.show(width, dark=dark)
    browser.wait("document.querySelectorAll('audio').length >= 2")
    assert browser.run("document.documentElement.scrollWidth") <= width
    colors = browser.run(
        "[...document.querySelectorAll('body *')].filter(e => e.offsetParent && [...e.childNodes].some(n => n.data?.trim()))"
        ".map(e => { let b = e, c = getComputedStyle(e).color; "
        "while (b && getComputedStyle(b).backgroundColor == 'rgba(0, 0, 0, 0)') b = b.parentElement; "
        "return [c, getComputedStyle(b).backgroundColor, e.tagName + e.className] })"
    )
    weak = {(name, color, page) for color, page, name in colors if contrast(color, page) < 4.5}
    assert weak == set()
    heights = browser.run(
        "[...document.querySelectorAll('form :not([hidden])')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) >= 44
    lights = contrast(browser.run("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)")
    assert (lights > 10) == dark
    assert browser.errors == []


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_and_its_end(folder: Path, tmp_path: Path, sent: signal.Signals, status: int) -> None:
    """It prints its address; Ctrl-C ends it with status 0, also while an answer is being sent, SIGTERM with 143."""
    outputs = [folder / "out" / name for name in ("sounds", "night")]
    process = start_program("browse", *outputs, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "stdout").read_text().endswith("\n"):
        assert time.monotonic() < deadline, (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    printed = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=([\w-]{32})\n", (tmp_path / "stdout").read_text())
    assert printed
    address, token = printed.groups()
    assert httpx2.get(address).status_code == 403
    assert len(httpx2.get(f"{address}/snapshots?token={token}").json()["snapshots"]) == 2
    with httpx2.stream("GET", f"{address}/content/1/0?token={token}") as answer:
        assert answer.headers["content-length"] == str(44 + HOURS * 3600 * RATE * 2)
        process.send_signal(sent)
        assert process.wait(30) == status
    errors = (tmp_path / "stderr").read_text()
    assert "Traceback" not in errors
    assert ("interrupted by SIGTERM" in errors) == (status == 143)
