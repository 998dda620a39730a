"""A Parquet file that is written under a temporary name, hashed on the way, and renamed or uploaded when complete."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..content import hash_words
from ..io.filesystem import AtomicFile, temporary_name, upload
from ..io.paths import is_local, join
from ..schemas import CONTENT_HASH, EMBEDDING
from ..snapshots.manifest import FileInfo

# Rows, or bytes in memory: a row group ends with what comes first, and has less than twice as much.
ROW_GROUP, ROW_GROUP_BYTES = 4096, 64 << 20

REJECTED_OPTIONS: dict[str, object] = {"write_page_checksum": True}  # of a file of rejected rows

_VECTORS = f"{EMBEDDING}.list.element"


def part_options(schema: pa.Schema, encoding: str) -> dict[str, object]:
    """Return pyarrow's options of a part file of `schema`, with vectors encoded as `encoding` of --vector_encoding.

    Plain vectors are compressed only if the model's type leaves many of their bits zero: then they need half the bytes,
    otherwise compression saves 7 % of them, and reading takes three times as long.
    """
    split = encoding == "byte_stream_split"
    provenance = schema.metadata or {}
    all_bits = provenance.get(b"dtype", b"float32") == b"float32" or provenance.get(b"normalize") == b"true"
    codecs = dict.fromkeys(_leaf_columns(schema), "zstd")
    if all_bits and not split:
        codecs[_VECTORS] = "none"
    return {
        "compression": codecs,
        "compression_level": {column: 1 for column, codec in codecs.items() if codec == "zstd"},
        "use_dictionary": False,
        "use_byte_stream_split": [_VECTORS] if split else False,
        "write_page_checksum": True,
        "write_statistics": [CONTENT_HASH.name],
    }


def _leaf_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns as Parquet has them: those of a list or a struct are paths."""
    file = io.BytesIO()
    pq.ParquetWriter(file, schema).close()
    columns = pq.ParquetFile(file).schema
    return [columns.column(number).path for number in range(len(columns))]


class _Digesting:
    """A write-only file that hashes and counts the bytes written to it."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.sha256, self.bytes, self.closed = handle, hashlib.sha256(), 0, False

    def write(self, data: bytes) -> int:
        if self.closed:  # a ParquetWriter that is discarded still writes its footer
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
    """One Parquet file that is being written; `directory` is local or on an object store, `options` are pyarrow's."""

    directory: str
    name: str
    schema: pa.Schema
    options: dict[str, object]
    bits: int = 0  # of the bucket of a content hash; 0 if rows come in any order
    bucket: int = 0
    rows: int = 0
    pending: list[pa.RecordBatch] = field(default_factory=list)
    pending_rows: int = 0
    pending_bytes: int = 0  # in memory
    lowest_hash: str | None = None

    def __post_init__(self) -> None:
        # For an object store the file is written to local disk first, so that its upload can be retried. It has no name
        # there, so it ends with this process.
        self.file: AtomicFile | None = None
        if is_local(self.directory):
            os.makedirs(self.directory, exist_ok=True)
            self.file = AtomicFile(temporary_name(os.path.join(self.directory, f".{self.name}")))
        self.handle = self.file.handle if self.file else tempfile.TemporaryFile()  # noqa: SIM115
        self.digest = _Digesting(self.handle)
        self.writer = pq.ParquetWriter(self.digest, self.schema, **self.options)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows; they are written in row groups, each of rows of one bucket."""
        bucket = self._bucket(batch)
        if self.pending and bucket != self.bucket:
            self.flush()
        self.bucket = bucket
        rows = min(ROW_GROUP, max(1, batch.num_rows * ROW_GROUP_BYTES // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows):  # else a row group that is copied again and again would grow
            part = batch.slice(start, rows)
            self.pending.append(part)
            self.rows += part.num_rows
            self.pending_rows += part.num_rows
            self.pending_bytes += part.nbytes
            if self.pending_rows >= ROW_GROUP or self.pending_bytes >= ROW_GROUP_BYTES:
                self.flush()

    def _bucket(self, batch: pa.RecordBatch) -> int:
        if not self.bits or not batch.num_rows:
            return 0
        return int(hash_words(batch.column(CONTENT_HASH.name).slice(0, 1))[0, 0]) >> (32 - self.bits)

    def flush(self) -> None:
        """End the row group with the rows that were added."""
        table = pa.Table.from_batches(self.pending, self.schema)
        self.pending, self.pending_rows, self.pending_bytes = [], 0, 0
        if not table.num_rows:
            return
        self.writer.write_table(table, row_group_size=table.num_rows)
        if CONTENT_HASH.name in table.column_names:
            lowest = pc.min(table[CONTENT_HASH.name]).as_py().hex()
            self.lowest_hash = lowest if self.lowest_hash is None else min(lowest, self.lowest_hash)

    def finish(self) -> FileInfo:
        """Write the last row group and give the file its name; return what the list of files says of it."""
        self.flush()
        self.writer.close()
        path = join(self.directory, self.name)
        if self.file:
            self.file.commit(path, sync=True)
        else:
            self.handle.flush()
            upload(self.handle, path, "application/vnd.apache.parquet")
            self.handle.close()
        digest = self.digest.sha256.hexdigest()
        return FileInfo(self.name, self.rows, self.digest.bytes, digest, lowest_hash=self.lowest_hash)

    def discard(self) -> None:
        """Delete the file; no error is raised."""
        self.digest.close()
        with suppress(Exception):
            self.writer.close()
        with suppress(Exception):
            self.handle.close()
        if self.file:
            self.file.discard()
