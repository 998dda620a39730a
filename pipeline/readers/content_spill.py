"""ContentSpill: copies of contents that cannot be read by themselves, in files of the run."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections import deque
from contextlib import suppress
from typing import IO

import pyarrow as pa

from ..content import Source
from ..errors import WRITE_REMEDY, SnapshotError, convert_write_errors
from ..io.byte_ranges import ByteRange
from ..io.filesystem import upload
from ..io.paths import is_local, join
from ..layout import CONTENT_SPILL
from .shard import Batches

FILE_BYTES = 256 << 20  # after which another file is begun
FILE_CONTENTS = 1 << 16  # the same: rows wait in memory until the file that they refer to is complete

COPIED_BYTES = 1 << 20  # at a time


class ContentSpill:
    """The spill files of one part that is read.

    Such contents are members of compressed tars, sparse members, and values of Parquet columns. A file is complete when
    another one is begun, or when the part was read; on an object store it is uploaded then.

    Args:
        directory: Where the files are; None if contents are only counted: only the last one that `copy` got can be read.

    Attributes:
        bytes: The bytes of all contents.
    """

    def __init__(self, directory: str | None) -> None:
        self.directory, self.bytes = directory, 0
        self._begun = self._complete = self._contents = self._size = 0
        self._path = ""
        self._handle: IO[bytes] | None = None

    def add(self, data: bytes) -> Source:
        """Copy a content."""
        if self.directory is None:
            return self._end_content(len(data))
        self._begin_content()
        self._write(data)
        return self._end_content(len(data))

    def copy(self, file: IO[bytes], size: int) -> Source:
        """Copy a content: the next `size` bytes of a file, or those up to its end."""
        self._begin_content()
        left = size
        while left and (data := file.read(min(left, COPIED_BYTES))):
            self._write(data)
            left -= len(data)
        return self._end_content(size - left)

    def open(self, source: Source) -> ByteRange:
        """Return the content that was copied last, to be read before the next one is."""
        assert self._handle is not None
        with convert_write_errors(self._local):
            self._handle.flush()
        return ByteRange(self._handle, source.offset, source.size)

    def hold(self, batches: Batches) -> Batches:
        """Yield the batches of the part in order, each when all files that it may refer to are complete."""
        waiting = deque[tuple[int, tuple[pa.RecordBatch, pa.RecordBatch]]]()
        try:
            for each in batches:
                waiting.append((self._begun, each))
                while waiting and waiting[0][0] <= self._complete:
                    yield waiting.popleft()[1]
            self._end_file()
            while waiting:
                yield waiting.popleft()[1]
        finally:
            self._discard()

    @property
    def _local(self) -> str:
        """The local directory that is written to."""
        return self.directory if self.directory and is_local(self.directory) else tempfile.gettempdir()

    def _begin_content(self) -> None:
        """Go to the end of the file, or of another one."""
        if self.directory is None:
            self._discard()
            self._size = 0
        elif self._size >= FILE_BYTES or self._contents >= FILE_CONTENTS:
            self._end_file()
        with convert_write_errors(self._local):
            if self._handle is None:
                self._handle = self._begin_file()
            self._handle.seek(self._size)

    def _write(self, data: bytes) -> None:
        """Write a part of a content. Raise SnapshotError if the disk is full."""
        assert self._handle is not None
        with convert_write_errors(self._local):
            free = shutil.disk_usage(self._local).free  # now: what a header says of the size may be wrong
            if free < len(data):
                raise SnapshotError(
                    f"{self._local} has {free:,} bytes free, and {len(data):,} more are needed for a copy of a content "
                    f"that cannot be read by itself: {WRITE_REMEDY}"
                )
            self._handle.write(data)

    def _end_content(self, size: int) -> Source:
        source = Source(self._path, 0, "", self._size, size)
        self._size, self._contents, self.bytes = self._size + size, self._contents + 1, self.bytes + size
        return source

    def _begin_file(self) -> IO[bytes]:
        directory = self.directory
        if directory is None:
            return tempfile.TemporaryFile()
        self._path = join(directory, f"{CONTENT_SPILL}{uuid.uuid4().hex}.tmp")
        self._begun, self._size, self._contents = self._begun + 1, 0, 0
        if not is_local(directory):
            return tempfile.TemporaryFile()
        os.makedirs(directory, exist_ok=True)
        return open(self._path, "w+b")

    def _end_file(self) -> None:
        """Complete the file that was begun, if there is one."""
        if self._handle is None or self.directory is None:
            return
        with convert_write_errors(self._local):
            self._handle.flush()
        if not is_local(self._path):
            upload(self._handle, self._path)
        self._discard()
        self._complete = self._begun

    def _discard(self) -> None:
        """Close the file that was begun."""
        if self._handle is not None:
            with suppress(OSError):  # of what could not be written before
                self._handle.close()
            self._handle = None
