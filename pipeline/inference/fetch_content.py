"""Fetch contents that elements name: whole files through Beam's file systems, many at once, in groups of bounded size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...model.head import BadRow, ContentError
from ...model.paths import given_path
from ..io.file_io import FileIO
from ..io.locate import answer_within, locate
from ..io.paths import is_local
from ..io.timeout_reader import SMALL_BYTES
from ..io.versions import ListedFile
from ..io.worker_thread import read_ahead

REQUESTS = 16  # files that are opened and read at the same time: most of the time is spent waiting for an object store
GROUP_BYTES = 64 << 20  # of contents that go to the model together, while as many are read


@dataclass(frozen=True)
class Fetcher:
    """How contents are read of which an element has the path or URI.

    Attributes:
        max_bytes: Larger files are not read.
        flag: The setting with that limit, as messages name it.
        io: How files are opened.
    """

    max_bytes: int
    flag: str
    io: FileIO = field(default_factory=FileIO)

    def groups(self, contents: Sequence[Any]) -> Iterator[list[Any]]:
        """Yield all contents in order, in groups: bytes in the place of a path, and a ContentError if it cannot be read.

        The next group is read while the caller works with one.
        """
        yield from read_ahead(self._groups(contents))

    def _groups(self, contents: Sequence[Any]) -> Generator[list[Any], None, None]:
        with ThreadPoolExecutor(REQUESTS, "fetch") as pool:
            found = list(pool.map(self._find, contents))
            start, size = 0, 0
            for place, each in enumerate(found):
                weight = each.size if isinstance(each, ListedFile) else content_bytes(each)
                if place > start and size + weight > GROUP_BYTES:
                    yield list(pool.map(self._read, found[start:place]))
                    start, size = place, 0
                size += weight
            yield list(pool.map(self._read, found[start:]))

    def _find(self, content: Any) -> Any:
        """Return the file that a path names, why it cannot be read, or any other content as it is."""
        if not isinstance(content, str | os.PathLike):
            return content
        try:
            path = given_path(os.fsdecode(content))
        except ValueError as error:
            return ContentError("wrong type", str(error))
        try:
            file = locate(path, self.io.read_timeout)
        except BadRow as error:
            return ContentError(error.reason, error.detail)
        except OSError as error:
            return ContentError("missing file", getattr(error, "strerror", None) or str(error))
        if not file.size:
            return ContentError("empty file", "it has 0 bytes")
        if file.size > self.max_bytes:
            return ContentError("too large", f"{file.size:,} bytes, over {self.max_bytes:,} ({self.flag})")
        return file

    def _read(self, found: Any) -> Any:
        """Return the bytes of a file, why they cannot be read, or any other content as it is."""
        if not isinstance(found, ListedFile):
            return found
        try:
            small = is_local(found.path) and found.size <= SMALL_BYTES
            data = (
                answer_within(found.path, self.io.read_timeout, Path(found.path).read_bytes)
                if small
                else self._read_pieces(found)
            )
        except OSError as error:  # StoreError is one
            return ContentError("missing file", getattr(error, "strerror", None) or str(error))
        if len(data) != found.size:
            return ContentError(
                "missing file", f"{len(data):,} of {found.size:,} bytes were read: it changed meanwhile"
            )
        return data

    def _read_pieces(self, file: ListedFile) -> bytes:
        with self.io.open_version(file) as opened:
            data = bytearray()
            while len(data) < file.size and (piece := opened.read(file.size - len(data))):
                data += piece
        return bytes(data)


def content_bytes(content: object) -> int:
    """Return the bytes that a content takes in memory; 0 if it only names a file."""
    if isinstance(content, bytes | bytearray):
        return len(content)
    array = getattr(content, "samples", content)
    return int(getattr(array, "nbytes", 0))


def content_name(content: object) -> str:
    """Return what messages and rejected elements call a content: its path, or what it is, never its bytes."""
    if isinstance(content, str | os.PathLike):
        return str(content)
    if isinstance(content, bytes | bytearray | memoryview):
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return f"{memoryview(content).nbytes:,} bytes (content hash {digest})"
    kind, array = type(content).__name__, getattr(content, "samples", content)
    if hasattr(array, "dtype") and hasattr(array, "shape"):
        return f"{kind} of {array.dtype} {list(array.shape)}"
    return f"{' '.join(repr(content).split()):.80} ({kind})"
