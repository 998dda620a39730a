"""One Parquet file in the making: written under a temporary name, digested on the way, renamed or sent when it is whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from ..io.filesystem import is_local, upload
from ..snapshots.manifest import FileInfo, RowGroup
from ..text_hash import hash_ranges, hash_words

ROW_GROUP = 4096


class _Digesting:
    """A write-only file that hashes and counts what passes through it."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.sha256, self.bytes, self.closed = handle, hashlib.sha256(), 0, False

    def write(self, data: bytes) -> int:
        if self.closed:  # a ParquetWriter that is given up still writes its footer
            return len(data)
        self.handle.write(data)
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self.handle.flush()

    def close(self) -> None:
        self.closed = True


@dataclass
class ParquetFileWriter:
    """A Parquet file in the making, in a directory of any file system; `options` are those of pyarrow's writer."""

    directory: str
    name: str
    schema: pa.Schema
    options: dict[str, object]
    bits: int = 0  # of the bucket of a text hash; 0 if rows come in any order
    bucket: int = 0
    rows: int = 0
    waiting: list[pa.RecordBatch] = field(default_factory=list)
    row_groups: list[RowGroup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.temporary = FileSystems.join(self.directory, f".{self.name}.tmp")
        # For a store the file is made here, so that it can be sent whole, and again; without a name it leaves with us.
        self.here = is_local(self.directory)
        self.handle = FileSystems.create(self.temporary) if self.here else tempfile.TemporaryFile()  # noqa: SIM115
        self.digest = _Digesting(self.handle)
        self.writer = pq.ParquetWriter(self.digest, self.schema, **self.options)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows; they are written a row group at a time, and a row group has rows of one bucket."""
        bucket = self._bucket(batch)
        if self.waiting and bucket != self.bucket:
            self._flush()
        self.bucket = bucket
        self.waiting.append(batch)
        self.rows += batch.num_rows
        if sum(waiting.num_rows for waiting in self.waiting) >= ROW_GROUP:
            self._flush()

    def _bucket(self, batch: pa.RecordBatch) -> int:
        if not self.bits or not batch.num_rows:
            return 0
        return int(hash_words(batch.column("text_hash").slice(0, 1))[0, 0]) >> (32 - self.bits)

    def _flush(self) -> None:
        table = pa.Table.from_batches(self.waiting, self.schema)
        self.waiting = []
        if not table.num_rows:
            return
        self.writer.write_table(table, row_group_size=table.num_rows)
        ranges = hash_ranges(table["text_hash"].combine_chunks()) if "text_hash" in table.column_names else []
        self.row_groups.append({"rows": table.num_rows, "ranges": ranges})

    def finish(self) -> FileInfo:
        """Write what waits, and put the file in its place."""
        self._flush()
        self.writer.close()
        self.handle.flush()
        path = FileSystems.join(self.directory, self.name)
        if self.here:
            os.fsync(self.handle.fileno())
            self.handle.close()
            FileSystems.rename([self.temporary], [path])
        else:
            upload(self.handle, path, "application/vnd.apache.parquet")
            self.handle.close()
        return {
            "name": self.name,
            "rows": self.rows,
            "bytes": self.digest.bytes,
            "sha256": self.digest.sha256.hexdigest(),
            "row_groups": self.row_groups,
        }

    def discard(self) -> None:
        """Leave nothing of it behind."""
        self.digest.close()
        with suppress(Exception):
            self.writer.close()
        with suppress(Exception):
            self.handle.close()
        if self.here:
            with suppress(Exception):
                FileSystems.delete([self.temporary])
