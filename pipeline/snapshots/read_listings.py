"""ReadListings: the step that reads the listings in a run directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import apache_beam as beam

from ..io.file_io import FileIO
from ..io.paths import base_name, join
from ..layout import SHARDS
from ..readers.parts import group_shards
from ..readers.shard import Shard
from .listing import read_listing
from .manifest import FileInfo

_Entry: TypeAlias = list[Shard] | str | FileInfo


class ReadListings(beam.PTransform):  # type: ignore[misc]
    """The entries of listings: `.shards`, `.earlier` and `.carried`.

    Those of SHARDS are groups of the shards that the run reads. One worker reads all listings, and one shuffle spreads all
    entries over the workers.

    Args:
        directory: The directory of the listings.
        names: Which ones are read.
        file_io: How they are read.
        first_segment: The first of the segments whose shards the run reads.
    """

    def __init__(self, directory: str, names: Sequence[str], file_io: FileIO, first_segment: int = 0) -> None:
        super().__init__()
        self.paths = [join(directory, name) for name in names]
        self.read = beam.FlatMap(_read_entries, file_io, first_segment)

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        """Read and spread the entries, and return each kind of them by itself."""
        return (
            pbegin
            | "CreateListingPaths" >> beam.Create(self.paths, reshuffle=False)
            | "ReadListings" >> self.read
            | "SpreadEntries" >> beam.Reshuffle()
            | "SortEntries" >> beam.FlatMap(_tag).with_outputs("earlier", "carried", main="shards")
        )


def _read_entries(path: str, file_io: FileIO, first_segment: int) -> Iterator[_Entry]:
    """Yield the entries of a listing; of SHARDS those from that segment on, in the groups of group_shards."""
    entries = read_listing(path, file_io)
    if base_name(path) == SHARDS:
        return group_shards(entry for entry in entries if isinstance(entry, Shard) and entry.segment >= first_segment)
    return (entry for entry in entries if not isinstance(entry, Shard))


def _tag(entry: _Entry) -> Iterator[list[Shard] | beam.pvalue.TaggedOutput]:
    if isinstance(entry, list):
        yield entry
    else:
        yield beam.pvalue.TaggedOutput("earlier" if isinstance(entry, str) else "carried", entry)
