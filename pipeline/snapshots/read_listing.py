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
    """The groups of Shards (of SHARDS) or paths (of EARLIER) of a listing in `directory`, spread over the workers."""

    def __init__(self, directory: str, name: str, file_io: FileIO) -> None:
        super().__init__()
        self.path, self.file_io = join(directory, name), file_io
        self.read = _read_groups if name == SHARDS else read_listing

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read the listing on one worker, and spread its entries."""
        return (
            pbegin
            | "ListingPath" >> beam.Create([self.path], reshuffle=False)
            | "ReadListing" >> beam.FlatMap(self.read, self.file_io)
            | "SpreadEntries" >> beam.Reshuffle()
        )


def _read_groups(path: str, file_io: FileIO) -> Iterator[list[Shard]]:
    """Yield the shards of the listing at `path`, in the groups of group_shards."""
    return group_shards(shard for shard in read_listing(path, file_io) if isinstance(shard, Shard))
