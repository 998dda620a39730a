"""ReadListing: the step that reads a listing from the run directory."""

from __future__ import annotations

import apache_beam as beam

from ..io.file_io import FileIO
from ..io.filesystem import join
from .listing import read_listing


class ReadListing(beam.PTransform):  # type: ignore[misc]
    """The Shards (of SHARDS) or paths (of EARLIER) of a listing in `directory`, spread over the workers."""

    def __init__(self, directory: str, name: str, file_io: FileIO) -> None:
        super().__init__()
        self.path, self.file_io = join(directory, name), file_io

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read the listing on one worker, and spread its entries."""
        return (
            pbegin
            | "ListingPath" >> beam.Create([self.path], reshuffle=False)
            | "ReadListing" >> beam.FlatMap(read_listing, self.file_io)
            | "SpreadEntries" >> beam.Reshuffle()
        )
