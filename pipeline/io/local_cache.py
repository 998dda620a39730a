"""Local copies of files on object stores, for code that needs a path: one per machine, verified at each use.

    <temporary directory>/audioclip-beam-<user id>/<hash of the path>/<hash of its size and version>/<sha256>/<name>

A copy is written under another name, hashed while it is written, and renamed when it is whole. Processes that need the
same file wait for the one that downloads it. A new version replaces the one before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...model.files import locked
from ...model.messages import OneLineError
from . import beam_files
from .filesystem import AtomicFile, sha256_of
from .paths import is_local
from .retries import StoreError, with_retries
from .timeout_reader import open_to_read

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """Expected content of a file: size in bytes and sha256."""

    bytes: int
    sha256: str


class ReplacedError(OneLineError, ValueError):
    """Error of a file that was replaced since the job was started."""


def local_copy(path: str, content: Content | None = None) -> str:
    """Return the path of a file on this machine with the content of `path`: `path` itself if it is local, else a copy.

    Raises:
        StoreError: if the file cannot be downloaded, or does not fit on this machine's disk.
        ReplacedError: if its content is not `content`.
    """
    if is_local(path):
        return path
    size, version = with_retries(path, "found", lambda: _size_and_version(path))
    if content is not None and size != content.bytes:
        raise ReplacedError(f"{path} has {size:,} bytes, and had {content.bytes:,} {_REPLACED}")
    with _locked_folder(_short_hash(path)) as folder:
        version_folder = folder / _short_hash(f"{size}\n{version}")
        copy = _verified_copy(version_folder) or _download(path, size, version_folder)
    if content is not None and copy.parent.name != content.sha256:
        raise ReplacedError(f"{path} has sha256 {copy.parent.name}, and had {content.sha256} {_REPLACED}")
    return str(copy)


_REPLACED = "when the job was started: it was replaced since; start the job again"


def content_of(copy: str) -> Content:
    """Return the content of a file on an object store, given the path that `local_copy` returned for it."""
    return Content(os.path.getsize(copy), Path(copy).parent.name)


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _size_and_version(path: str) -> tuple[int, str]:
    """Return (bytes, a version that changes with the content) of an object. Raise StoreError if it does not exist."""
    system = beam_files.FileSystems.get_filesystem(path)
    if not system.exists(path):
        raise StoreError(f"{path} does not exist: check its name, and that these credentials may read it")
    metadata = system.metadata(path)
    return metadata.size_in_bytes, str(system.checksum(path))


@contextmanager
def _locked_folder(key: str) -> Iterator[Path]:
    """Yield the folder for copies of one path, locked against other processes on this machine."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # not the name: a user id in a container may have none
    root = Path(tempfile.gettempdir(), f"audioclip-beam-{user}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != user:
        raise StoreError(f"{root} belongs to another user: remove it, or set TMPDIR to a directory of your own")
    with locked(root / f"{key}.lock"):
        yield root / key


def _verified_copy(folder: Path) -> Path | None:
    """Return the copy in `folder` if its content is unchanged since the download."""
    for copy in folder.glob("*/*"):
        with copy.open("rb") as file:
            if sha256_of(file) == copy.parent.name:
                return copy
    return None


def _download(path: str, size: int, folder: Path) -> Path:
    """Copy a file, and remove its earlier copies.

    Args:
        path: The file.
        size: Its bytes.
        folder: Where the copy goes.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(folder.parent)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder.parent).free < size:
        raise StoreError(
            f"{folder.parents[1]} has no space for the {size:,} bytes of {path}: set TMPDIR to another directory"
        )
    digest, target = hashlib.sha256(), AtomicFile(str(folder / "unfinished"))
    try:
        with open_to_read(path) as source:
            while piece := source.read(PIECE_BYTES):
                digest.update(piece)
                target.handle.write(piece)
        if target.handle.tell() != size:
            raise StoreError(f"{path} ended after {target.handle.tell():,} of {size:,} bytes: run again")
        copy = folder / digest.hexdigest() / path.rpartition("/")[2]
        copy.parent.mkdir()
        target.commit(str(copy))
    except BaseException:
        target.discard()
        raise
    return copy
