"""Copies of a store's files on this machine, for what reads a path: one a machine, verified whenever it is asked for.

    <temporary directory>/audioclip-text-<user id>/<path on the store>/<size and version there>/<sha256>/<name>

A copy is written under another name, hashed on the way, and renamed when it is whole; processes that want the same file
wait for the one that fetches it. A new version takes the place of the one before.
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

from apache_beam.io.filesystems import FileSystems
from filelock import FileLock

from .filesystem import StoreError, is_local, with_retries
from .timeout_reader import open_to_read

PIECE = 1 << 20


@dataclass(frozen=True)
class Content:
    """What a file must hold: its size in bytes and its sha256."""

    bytes: int
    sha256: str


class ReplacedError(ValueError):
    """A file is not the one that the job was started with; the text says which and what to do."""


def local_copy(path: str, content: Content | None = None) -> str:
    """A path on this machine with what is at `path`: itself where it is local, else a copy made once a machine.

    Raises StoreError where it cannot be had, ReplacedError where it is not `content`, OSError where there is no room.
    """
    if is_local(path):
        return path
    size, version = with_retries(path, "found", lambda: _state(path))
    if content is not None and size != content.bytes:
        raise ReplacedError(f"{path} has {size:,} bytes, and had {content.bytes:,} {_AGAIN}")
    with _own(_key(path)) as folder:
        this = folder / _key(f"{size}\n{version}")
        copy = _verified(this) or _fetch(path, size, this)
    if content is not None and copy.parent.name != content.sha256:
        raise ReplacedError(f"{path} has sha256 {copy.parent.name}, and had {content.sha256} {_AGAIN}")
    return str(copy)


_AGAIN = "when the job was started: it was replaced since; start the job again"


def content_of(copy: str) -> Content:
    """What a path that `local_copy` gave, of a file on a store, holds."""
    return Content(os.path.getsize(copy), Path(copy).parent.name)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _state(path: str) -> tuple[int, str]:
    """(bytes, what changes with every new content) of a file on a store; StoreError where there is none."""
    system = FileSystems.get_filesystem(path)
    if not system.exists(path):
        raise StoreError(f"there is no file at {path}: check its name, and that these credentials may see it")
    metadata = system.metadata(path)
    return metadata.size_in_bytes, str(system.checksum(path))


@contextmanager
def _own(key: str) -> Iterator[Path]:
    """The folder for copies of a path, held against other processes of this machine."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # not by name: in a container users need not have one
    root = Path(tempfile.gettempdir(), f"audioclip-text-{user}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != user:
        raise StoreError(f"{root} belongs to somebody else: remove it, or set TMPDIR to a directory of your own")
    with FileLock(root / f"{key}.lock"):
        yield root / key


def _verified(folder: Path) -> Path | None:
    """The copy in `folder`, if it still holds what was fetched."""
    for copy in folder.glob("*/*"):
        if _sha256(copy) == copy.parent.name:
            return copy
    return None


def _fetch(path: str, size: int, folder: Path) -> Path:
    """Copy `path` of `size` bytes into `folder`, in place of what is there and of its other versions."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder.parent)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder.parent).free < size:
        raise StoreError(
            f"{folder.parents[1]} has no room for the {size:,} bytes of {path}: set TMPDIR to another directory"
        )
    digest, unfinished = hashlib.sha256(), folder / "unfinished"
    with open_to_read(path) as source, unfinished.open("wb") as target:
        while piece := source.read(PIECE):
            digest.update(piece)
            target.write(piece)
    if unfinished.stat().st_size != size:
        raise StoreError(f"{path} broke off after {unfinished.stat().st_size:,} of {size:,} bytes: run again")
    copy = folder / digest.hexdigest() / path.rpartition("/")[2]
    copy.parent.mkdir()
    os.replace(unfinished, copy)
    return copy


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while piece := handle.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
