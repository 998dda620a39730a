"""ReadListings: the step that reads the listings in a run directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import TypeAlias

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from ..io.file_io import FileIO
from ..readers.parts import group_shards
from ..readers.shard import Shard
from ..readers.shard_table import SHARD_SCHEMA, ShardTable
from .listing import CarriedFile, read_carried, read_earlier, read_inputs

_Entry: TypeAlias = list[Shard] | str | list[CarriedFile] | CarriedFile


class ReadListings(beam.PTransform):  # type: ignore[misc]
    """The entries of listings: `.shards`, `.earlier`, `.carried` and `.merged`.

    `.shards` are groups of the shards that the run reads, `.carried` groups of files that become one file, and `.merged`
    files whose rows the run writes to its own. One worker reads all listings, and one shuffle spreads all entries.

    Args:
        directory: The directory of the listings.
        file_io: How they are read.
    """

    def __init__(self, directory: str, file_io: FileIO) -> None:
        super().__init__()
        self.directory, self.read = directory, beam.FlatMap(_read_entries, file_io)

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        """Read and spread the entries, and return each kind of them by itself."""
        return (
            pbegin
            | "CreateListingPath" >> beam.Create([self.directory], reshuffle=False)
            | "ReadListings" >> self.read
            | "SpreadEntries" >> beam.Reshuffle()
            | "SortEntries" >> beam.FlatMap(_tag).with_outputs("earlier", "carried", "merged", main="shards")
        )


def _read_entries(directory: str, file_io: FileIO) -> Iterator[_Entry]:
    """Yield the entries of the listings in `directory`, shards in the groups of group_shards."""
    yield from group_shards(shards_to_read(read_inputs(directory, file_io)))
    yield from read_earlier(directory, file_io)
    for group, files in groupby(read_carried(directory, file_io), lambda each: each.group):
        if group is None:
            yield from files
        else:
            yield list(files)


def shards_to_read(inputs: pa.Table) -> Iterator[Shard]:
    """Yield the shards of a run that it reads, each with its place among all of them."""
    places = pc.indices_nonzero(pc.is_null(inputs["rows"]).combine_chunks())
    shards = ShardTable(inputs.select(SHARD_SCHEMA.names).take(places))
    for number, shard in zip(places, shards, strict=True):
        yield replace(shard, number=number.as_py())


def _tag(entry: _Entry) -> Iterator[list[Shard] | beam.pvalue.TaggedOutput]:
    if isinstance(entry, list) and isinstance(entry[0], Shard):
        yield entry
    elif isinstance(entry, str):
        yield beam.pvalue.TaggedOutput("earlier", entry)
    else:
        yield beam.pvalue.TaggedOutput("merged" if isinstance(entry, CarriedFile) else "carried", entry)
