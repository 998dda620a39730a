"""ReadListing: the step that reads a listing from the run directory."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from ..io.file_io import FileIO
from ..io.filesystem import join
from ..readers.parts import group_shards
from ..readers.shard import Shard
from .listing import SHARDS, read_listing


class ReadListing(beam.PTransform):  # type: ignore[misc]
    """The entries of a listing in `directory`, spread over the workers.

    Of SHARDS these are groups of the shards that the run reads, those of the segments from `first_segment` on.
    """

    def __init__(self, directory: str, name: str, file_io: FileIO, first_segment: int = 0) -> None:
        super().__init__()
        self.path = join(directory, name)
        is_shards = name == SHARDS
        self.read = beam.FlatMap(*(_read_groups, file_io, first_segment) if is_shards else (read_listing, file_io))

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read the listing on one worker, and spread its entries."""
        return (
            pbegin
            | "ListingPath" >> beam.Create([self.path], reshuffle=False)
            | "ReadListing" >> self.read
            | "SpreadEntries" >> beam.Reshuffle()
        )


def _read_groups(path: str, file_io: FileIO, first_segment: int) -> Iterator[list[Shard]]:
    """Yield the shards of the listing at `path` from that segment on, in the groups of group_shards."""
    entries = read_listing(path, file_io)
    return group_shards(entry for entry in entries if isinstance(entry, Shard) and entry.segment >= first_segment)
