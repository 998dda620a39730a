"""Ids that occur more than once in a corpus, found by one shuffle of the ids alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..io.file_io import FileIO
from ..io.paths import join
from ..schemas import ID
from ..snapshots.listing import CarriedFile
from ..writers.kept_files import DroppedShards, open_kept
from .buckets import Buckets, read_rows
from .spill import PieceCodec

EXAMPLES = 5
_CODEC = PieceCodec(pa.schema([ID]))


@dataclass(frozen=True)
class Duplicates:
    """How many ids occur more than once, and a few of them."""

    ids: int
    examples: list[str]


class FindDuplicateIds(beam.PTransform):  # type: ignore[misc]
    """Row batches to one Duplicates for each bucket of ids in which an id occurs more than once.

    Args:
        carried: Groups of the files whose rows the run keeps; None without any. Only the ids of these rows are read.
        directory: The directory of the snapshot that they are in.
        dropped: The shards whose rows it does not keep.
        bits: There are 2**bits buckets.
        spill: As for Buckets.
        file_io: How files are opened.
        record: Whether damage is noted beside a file.
    """

    def __init__(
        self,
        carried: beam.PCollection | None,
        directory: str,
        dropped: DroppedShards,
        *,
        bits: int,
        spill: str | None,
        file_io: FileIO,
        record: bool,
    ) -> None:
        super().__init__()
        self.carried, self.bits, self.spill = carried, bits, spill
        self.read_ids = beam.FlatMap(_kept_ids, directory, dropped, file_io, record=record).with_output_types(
            pa.RecordBatch
        )

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        """Split the ids into 2**bits buckets by checksum, and count them in each."""
        ids = rows | "SelectIds" >> beam.Map(_select_ids).with_output_types(pa.RecordBatch)
        if self.carried is not None:
            ids = (ids, self.carried | "ReadCarriedIds" >> self.read_ids) | "AddCarriedIds" >> beam.Flatten()
        return (
            ids
            | "MeetInBuckets" >> Buckets(_CODEC, "id", self.bits, self.spill)
            | "CountDuplicates" >> beam.FlatMap(_duplicates)
        )


def _kept_ids(
    group: list[CarriedFile], directory: str, dropped: DroppedShards, file_io: FileIO, *, record: bool
) -> Iterator[pa.RecordBatch]:
    """Yield the ids of the rows with vectors that are kept. Raises SnapshotError if a file is damaged."""
    for each in group:
        if each.file.is_part:
            with open_kept(join(directory, each.file.name), file_io, record=record) as handle:
                for batch in pq.ParquetFile(handle, page_checksum_verification=True).iter_batches(
                    columns=["id", "shard"]
                ):
                    kept = batch.filter(pa.array(dropped.kept(batch.column("shard"), each.before)))
                    yield kept.select(["id"])


def _select_ids(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.select(["id"])


def _duplicates(element: tuple[int, Iterable[bytes]]) -> Iterator[Duplicates]:
    ids = pa.chunked_array([batch.column("id") for batch in read_rows(element[1], _CODEC)])
    counted = pc.value_counts(ids)
    values, counts = counted.field("values"), counted.field("counts")
    repeated = values.filter(pc.greater(counts, 1))
    if len(repeated):
        yield Duplicates(len(repeated), repeated[:EXAMPLES].to_pylist())
