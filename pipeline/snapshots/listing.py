"""Listings: the shards, earlier part files and finished files of a run, in Parquet files beside its other files.

A job graph and a manifest must stay small however many files a corpus has. The launcher lists the shards, the earlier part
files and those that are carried over into the run directory, a first step of the graph reads them from there
(ReadListings), and the graph contains only its paths. The finished files of a snapshot are listed beside its manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SnapshotError, first_line
from ..io.file_io import FileIO
from ..io.filesystem import read, write_atomically
from ..io.paths import absolute_path, join
from ..layout import CARRIED, EARLIER, FILE_LIST, SHARDS, parquet_name
from ..readers.shard import Shard
from .manifest import RESTORE_REMEDY, FileInfo, ListingInfo, Manifest, require_plain_name
from .run_directory import run_path

_SHARD_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),  # on a disk a path need not be UTF-8
        pa.field("name", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("compression", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("delimiter", pa.string()),
        pa.field("quoting", pa.string()),
        pa.field("escape", pa.string()),
        pa.field("segment", pa.int32(), nullable=False),
    ]
)
_EARLIER_SCHEMA = pa.schema([pa.field("path", pa.binary(), nullable=False)])
_FILE_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("lowest_hash", pa.string()),
    ]
)


def write_listings(
    directory: str, shards: Sequence[Shard], earlier: Sequence[str], carried: Sequence[FileInfo] = ()
) -> ListingInfo:
    """Write the listings that a run begins with into `directory`; return what the manifest says of the shards."""
    if carried:
        _write(directory, CARRIED, _encode(pa.Table.from_pylist([asdict(file) for file in carried], _FILE_SCHEMA)))
    _write(directory, EARLIER, _encode(pa.table({"path": [os.fsencode(path) for path in earlier]}, _EARLIER_SCHEMA)))
    data = _encode(pa.Table.from_pylist([shard_row(shard) for shard in shards], _SHARD_SCHEMA))
    return _write(directory, SHARDS, data, len(shards))


def write_file_list(directory: str, files: Sequence[FileInfo]) -> ListingInfo:
    """Write the list of a snapshot's files into `directory`; return what the manifest says of it.

    Its name contains the first digits of its digest: if the last step of a run is executed twice at the same time, the
    list that the published manifest names is not overwritten.
    """
    data = _encode(pa.Table.from_pylist([asdict(file) for file in files], _FILE_SCHEMA))
    return _write(directory, parquet_name(FILE_LIST, hashlib.sha256(data).hexdigest()[:16]), data, len(files))


def read_file_list(output: str, manifest: Manifest) -> list[FileInfo]:
    """Return the files of a snapshot.

    Raises:
        SnapshotError: The list is missing or is not the one that the manifest describes, or it names a file that could be
            outside of the snapshot's directory.
    """
    path, table = _read_checked(output, manifest, manifest["files"], _FILE_SCHEMA)
    files = [FileInfo(**row) for row in table.to_pylist()]
    for file in files:
        require_plain_name(file.name, path)
    return files


def read_shard_list(output: str, manifest: Manifest) -> list[Shard]:
    """Return the shards of a snapshot. Raises SnapshotError if their list is missing or not as the manifest says."""
    _, table = _read_checked(output, manifest, manifest["shards"], _SHARD_SCHEMA)
    return [_shard(row) for row in table.to_pylist()]


def _read_checked(output: str, manifest: Manifest, info: ListingInfo, schema: pa.Schema) -> tuple[str, pa.Table]:
    """Return the path and the content of a listing that a manifest names."""
    path = join(run_path(output, manifest["snapshot"]), info["name"])
    data = read(path)
    if data is None or hashlib.sha256(data).hexdigest() != info["sha256"]:
        raise SnapshotError(
            f"{path} {'is missing' if data is None else 'is not the list that the manifest describes'}: {RESTORE_REMEDY}"
        )
    try:
        # Without Arrow's threads: one of them may release `data` late, and aborts a process that ends just then.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        for field in schema:
            if field.nullable and field.name not in table.column_names:  # an option that was added later
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return path, table.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException, ValueError) as error:
        raise SnapshotError(
            f"{path} is not a list of files or shards ({first_line(error)}): {RESTORE_REMEDY}"
        ) from None


def shard_row(shard: Shard) -> dict[str, object]:
    """Return a shard as the listing has it, with its absolute path."""
    return {**asdict(shard), "path": os.fsencode(absolute_path(shard.path))}


def shard_state(shard: Shard) -> Shard:
    """Return what must be equal for a shard to count as unchanged."""
    return replace(shard, path=absolute_path(shard.path), segment=0)


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _write(directory: str, name: str, data: bytes, entries: int = 0) -> ListingInfo:
    write_atomically(join(directory, name), data, "application/vnd.apache.parquet", sync=True)
    return {"name": name, "entries": entries, "sha256": hashlib.sha256(data).hexdigest()}


def read_listing(path: str, file_io: FileIO = FileIO()) -> Iterator[Shard | FileInfo | str]:
    """Yield the entries of the listing at `path`."""
    with file_io.open(path) as handle:
        file = pq.ParquetFile(handle)
        names = file.schema_arrow.names
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                if names == _FILE_SCHEMA.names:
                    yield FileInfo(**row)
                else:
                    yield _shard(row) if names == _SHARD_SCHEMA.names else os.fsdecode(row["path"])


def _shard(row: dict[str, Any]) -> Shard:
    return Shard(**{**row, "path": os.fsdecode(row["path"])})
