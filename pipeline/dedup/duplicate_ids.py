"""Ids that occur more than once in a corpus, found by one shuffle of the ids alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import SnapshotError, first_line
from ..io.file_io import FileIO
from ..io.paths import join
from ..schemas import ID
from ..snapshots.manifest import FileInfo
from ..snapshots.snapshot import UNREADABLE
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

    `carried` are the files that the run carries over from the snapshot in `directory`, or None; only their ids are read.
    """

    def __init__(
        self, carried: beam.PCollection | None, directory: str, file_io: FileIO, bits: int, spill: str | None
    ) -> None:
        super().__init__()
        self.carried, self.bits, self.spill = carried, bits, spill
        self.read_ids = beam.FlatMap(_carried_ids, directory, file_io).with_output_types(pa.RecordBatch)

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


def ids_of_file(
    file: FileInfo, directory: str, file_io: FileIO, columns: Sequence[str] = ("id",)
) -> Iterator[pa.RecordBatch]:
    """Yield the ids, or other columns, of a part file in `directory`; nothing of a file of rejected rows."""
    if file.is_part:
        with file_io.open(join(directory, file.name)) as handle:
            yield from pq.ParquetFile(handle, page_checksum_verification=True).iter_batches(columns=list(columns))


def _carried_ids(file: FileInfo, directory: str, file_io: FileIO) -> Iterator[pa.RecordBatch]:
    """Yield the ids of a file that is carried over. Raises SnapshotError if it is damaged."""
    try:
        yield from ids_of_file(file, directory, file_io)
    except UNREADABLE as error:
        raise SnapshotError(
            f"the ids in {join(directory, file.name)}, which is carried over, cannot be read "
            f"({first_line(error)}): run again with --force, which reads every shard"
        ) from error


def _select_ids(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.select(["id"])


def _duplicates(element: tuple[int, Iterable[bytes]]) -> Iterator[Duplicates]:
    ids = pa.chunked_array([batch.column("id") for batch in read_rows(element[1], _CODEC)])
    counted = pc.value_counts(ids)
    values, counts = counted.field("values"), counted.field("counts")
    repeated = values.filter(pc.greater(counts, 1))
    if len(repeated):
        yield Duplicates(len(repeated), repeated[:EXAMPLES].to_pylist())
