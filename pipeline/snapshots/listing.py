"""Listings of a run: its shards and the earlier part files, in files that a first step reads.

A job graph must stay small however many files a corpus has, so the launcher writes what it listed beside the run's other
files, and the graph contains only the paths of the two listings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from ..io.file_io import FileIO
from ..io.filesystem import write_atomically
from ..readers.shard import Shard

SHARDS, EARLIER = "_shards.parquet", "_earlier.parquet"
LISTINGS = (SHARDS, EARLIER)
_SHARD_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),  # on a disk a path need not be UTF-8
        pa.field("name", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("compression", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("delimiter", pa.string()),
    ]
)
_EARLIER_SCHEMA = pa.schema([pa.field("path", pa.binary(), nullable=False)])


def write_listings(directory: str, shards: Sequence[Shard], earlier: Sequence[str]) -> None:
    """Write the two listings of a run into `directory`."""
    _write(directory, SHARDS, pa.Table.from_pylist([_row(shard) for shard in shards], _SHARD_SCHEMA))
    _write(directory, EARLIER, pa.table({"path": [os.fsencode(path) for path in earlier]}, _EARLIER_SCHEMA))


def _row(shard: Shard) -> dict[str, object]:
    return {**asdict(shard), "path": os.fsencode(shard.path)}


def _write(directory: str, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(FileSystems.join(directory, name), bytes(sink.getvalue()), "application/vnd.apache.parquet")


class ReadListing(beam.PTransform):  # type: ignore[misc]
    """The Shards (of SHARDS) or paths (of EARLIER) of a listing in `directory`, spread over the workers."""

    def __init__(self, directory: str, name: str, file_io: FileIO) -> None:
        super().__init__()
        self.path, self.file_io = FileSystems.join(directory, name), file_io

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read the listing on one worker, and spread its entries."""
        return (
            pbegin
            | "ListingPath" >> beam.Create([self.path], reshuffle=False)
            | "ReadListing" >> beam.FlatMap(read_listing, self.file_io)
            | "SpreadEntries" >> beam.Reshuffle()
        )


def read_listing(path: str, file_io: FileIO = FileIO()) -> Iterator[Shard | str]:
    """Yield the entries of the listing at `path`."""
    with file_io.open(path) as handle:
        file = pq.ParquetFile(handle)
        is_shards = file.schema_arrow.names == _SHARD_SCHEMA.names
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                path = os.fsdecode(row["path"])
                yield Shard(**{**row, "path": path}) if is_shards else path
