"""Listings: the shards and files that a run begins and ends with, in Parquet files beside its other files.

A job graph and a manifest must stay small however many files a corpus has. The launcher lists what the run begins with into
the run directory, a first step of the graph reads it from there (ReadListings), and the graph contains only the paths. The
finished files and the shards of a snapshot are listed beside its manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SnapshotError, first_line
from ..io.file_io import FileIO
from ..io.filesystem import read, write_atomically
from ..io.paths import join
from ..layout import CARRIED, DROPPED, EARLIER, FILE_LIST, INPUTS, SHARD_LIST, parquet_name
from ..readers.shard_table import SHARD_SCHEMA
from .manifest import RESTORE_REMEDY, FileInfo, ListingInfo, Manifest, Provenance, require_plain_name
from .run_directory import run_path

# Shards of a snapshot: the number of the segment, the rows, rejected ones included, the documents without contents, and why
# it could not be read to its end. In INPUTS the last three are null for shards that the run reads.
LISTED_SCHEMA = pa.schema(
    [
        *SHARD_SCHEMA,
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("rows", pa.int64()),
        pa.field("without_texts", pa.int64()),
        pa.field("damaged", pa.string()),
    ]
)

_COUNTS_BY_NUMBER, _COUNTS_BY_NAME = pa.map_(pa.int32(), pa.int64()), pa.map_(pa.string(), pa.int64())
_FILE_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("lowest_hash", pa.string()),
        pa.field("truncated", pa.int64(), nullable=False),
        pa.field("rejected_by_reason", _COUNTS_BY_NAME, nullable=False),
        pa.field("sizes", _COUNTS_BY_NUMBER, nullable=False),
        pa.field("norm_bins", _COUNTS_BY_NUMBER, nullable=False),
        pa.field("contents", _COUNTS_BY_NAME, nullable=False),
        pa.field("made_by", pa.struct([(each.name, pa.string()) for each in fields(Provenance)]), nullable=False),
    ]
)
_MAPS = tuple(each.name for each in _FILE_SCHEMA if pa.types.is_map(each.type))
_CARRIED_SCHEMA = pa.schema(
    [*_FILE_SCHEMA, pa.field("before", pa.int32(), nullable=False), pa.field("group", pa.int32())]
)
_EARLIER_SCHEMA = pa.schema([pa.field("path", pa.binary(), nullable=False)])
# A shard whose rows are dropped from the files of the previous snapshot: its segment there, and its name.
DROPPED_SCHEMA = pa.schema([pa.field("segment", pa.int32(), nullable=False), pa.field("name", pa.string())])


@dataclass(frozen=True)
class CarriedFile:
    """A file of the previous snapshot with rows that the new one has, too.

    Attributes:
        file: The file, with the number of the segment in the new snapshot.
        before: The number of its segment in the previous one.
        group: Files of the same group become one file. None if its rows are written to the part files of the run, with all
            rows of their buckets.
    """

    file: FileInfo
    before: int
    group: int | None


def write_listings(
    directory: str,
    inputs: pa.Table,
    earlier: Sequence[str] = (),
    carried: Sequence[CarriedFile] = (),
    dropped: pa.Table | None = None,
) -> None:
    """Write the listings that a run begins with into `directory`."""
    rows = [{**_row_of(each.file), "before": each.before, "group": each.group} for each in carried]
    _write(directory, CARRIED, _encode(pa.Table.from_pylist(rows, _CARRIED_SCHEMA)))
    _write(directory, DROPPED, _encode(DROPPED_SCHEMA.empty_table() if dropped is None else dropped))
    _write(directory, EARLIER, _encode(pa.table({"path": [os.fsencode(path) for path in earlier]}, _EARLIER_SCHEMA)))
    _write(directory, INPUTS, _encode(inputs))


def write_file_list(directory: str, files: Sequence[FileInfo]) -> ListingInfo:
    """Write the list of a snapshot's files into `directory`; return what the manifest says of it.

    Its name contains the first digits of its digest: if the last step of a run is executed twice at the same time, the
    list that the published manifest names is not overwritten.
    """
    return _write_list(directory, FILE_LIST, pa.Table.from_pylist([_row_of(file) for file in files], _FILE_SCHEMA))


def write_shard_list(directory: str, shards: pa.Table) -> ListingInfo:
    """Write the list of a snapshot's shards, as write_file_list does."""
    return _write_list(directory, SHARD_LIST, shards)


def _write_list(directory: str, kind: str, table: pa.Table) -> ListingInfo:
    data = _encode(table)
    digest = hashlib.sha256(data).hexdigest()
    name = parquet_name(kind, digest[:16])
    _write(directory, name, data)
    return {"name": name, "entries": table.num_rows, "sha256": digest}


def read_file_list(output: str, manifest: Manifest) -> list[FileInfo]:
    """Return the files of a snapshot.

    Raises:
        SnapshotError: The list is missing or is not the one that the manifest describes, or it names a file that could be
            outside of the snapshot's directory.
    """
    path, table = _read_checked(output, manifest, manifest["files"], _FILE_SCHEMA)
    files = [_file_of(row) for row in table.to_pylist()]
    for file in files:
        require_plain_name(file.name, path)
    return files


def read_shard_list(output: str, manifest: Manifest, columns: Sequence[str] = tuple(LISTED_SCHEMA.names)) -> pa.Table:
    """Return columns of LISTED_SCHEMA of the shards of a snapshot.

    Raises:
        SnapshotError: Their list is missing or not as the manifest says.
    """
    schema = pa.schema([LISTED_SCHEMA.field(name) for name in columns])
    return _read_checked(output, manifest, manifest["shards"], schema)[1]


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
        table = pq.ParquetFile(pa.BufferReader(data)).read(schema.names, use_threads=False)
        return path, table.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException, ValueError) as error:
        raise SnapshotError(
            f"{path} is not a list of files or shards ({first_line(error)}): {RESTORE_REMEDY}"
        ) from None


def read_inputs(directory: str, file_io: FileIO = FileIO()) -> pa.Table:
    """Return the shards that a run began with, of LISTED_SCHEMA."""
    return _read(join(directory, INPUTS), file_io)


def read_dropped(directory: str, file_io: FileIO = FileIO()) -> pa.Table:
    """Return the shards whose rows a run drops, of DROPPED_SCHEMA."""
    return _read(join(directory, DROPPED), file_io)


def read_carried(directory: str, file_io: FileIO = FileIO()) -> Iterator[CarriedFile]:
    """Yield the files of the previous snapshot whose rows a run keeps."""
    for row in _read(join(directory, CARRIED), file_io).to_pylist():
        before, group = row.pop("before"), row.pop("group")
        yield CarriedFile(_file_of(row), before, group)


def read_earlier(directory: str, file_io: FileIO = FileIO()) -> Iterator[str]:
    """Yield the paths of the earlier part files in which a run looks for known contents."""
    yield from map(os.fsdecode, _read(join(directory, EARLIER), file_io)["path"].to_pylist())


def _read(path: str, file_io: FileIO) -> pa.Table:
    with file_io.open(path) as handle:
        return pq.ParquetFile(handle).read(use_threads=False)


def _row_of(file: FileInfo) -> dict[str, object]:
    """Return a file as the listing has it."""
    row = asdict(file)
    return {name: list(value.items()) if name in _MAPS else value for name, value in row.items()}


def _file_of(row: dict[str, Any]) -> FileInfo:
    maps = {name: dict(row[name]) for name in _MAPS}
    return FileInfo(**{**row, **maps, "made_by": Provenance(**row["made_by"])})


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _write(directory: str, name: str, data: bytes) -> None:
    write_atomically(join(directory, name), data, "application/vnd.apache.parquet", sync=True)
