"""ReadAndJoin: shards to rows that an earlier vector is known for, and rows that need the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa

from ..model.head import Head
from .content import add_content_hash
from .dedup.buckets import Buckets, bucket_bits, read_rows
from .dedup.duplicate_ids import FindDuplicateIds
from .dedup.reuse import JoinWithEarlierVectors, ReferToRowGroups, ReuseVectors
from .dedup.spill import PieceCodec
from .prepare.job import Job
from .readers.read_shards import ReadShards
from .readers.settle_types import SettledTypes, apply_types, merge_kinds, settle_types
from .remote.worker_reports import RunReports, check_version
from .schemas import CONTENT_HASH
from .snapshots.read_listings import ReadListings
from .snapshots.run_directory import run_path
from .writers.kept_files import DroppedShards


class JoinResult(NamedTuple):
    """What ReadAndJoin gives.

    Attributes:
        read: A ShardsRead for what was read in one step.
        rejected: Rejected batches.
        known: Embedded batches of rows with an earlier vector; None without deduplication.
        new: Hashed row batches of the others.
        carried: Groups of files of the previous snapshot that become one file; None if no row is kept.
        merged: Files of the previous snapshot whose rows are written to those of the run; None without any.
        duplicates: Ids that occur more than once; None if they may.
        types: The SettledTypes of the kept fields; None if they are known before the run.
    """

    read: beam.PCollection
    rejected: beam.PCollection
    known: beam.PCollection | None
    new: beam.PCollection
    carried: beam.PCollection | None
    merged: beam.PCollection | None
    duplicates: beam.PCollection | None
    types: beam.PCollection | None


class ReadAndJoin(beam.PTransform):  # type: ignore[misc]
    """The first half of a run, which `embed` and `plan` share: read shards, and join their rows with earlier vectors.

    Args:
        job: The run.
        listings: The directory with the listings of its shards, earlier files and carried files.
        batch_items: The most different contents of a batch of new rows.
        spill: The directory for what a local run spills; None on a remote runner, where shuffled rows are not, and contents
            are in `listings`.
        reports: Where workers report.
        columns: The columns that are taken from earlier files; by default those that the model computes.
        same_model: A side input: if it is False, every row is new.
        carry_over: Whether rows of the previous snapshot are written, too. If not, its files are all in `.carried`.
    """

    def __init__(
        self,
        job: Job,
        listings: str,
        batch_items: int,
        spill: str | None,
        *,
        reports: RunReports = RunReports(),
        columns: tuple[str, ...] | None = None,
        same_model: beam.pvalue.AsSideInput | None = None,
        carry_over: bool,
    ) -> None:
        super().__init__()
        self.job, self.listings, self.batch_items, self.spill = job, listings, batch_items, spill
        self.reports, self.columns, self.same_model, self.carry_over = reports, columns, same_model, carry_over

    def expand(self, pbegin: beam.pvalue.PBegin) -> JoinResult:
        """List, read, and shuffle once."""
        job, file_io = self.job, self.job.reading.file_io
        before = run_path(job.output, job.previous["snapshot"]) if job.previous else ""
        dropped, listed = DroppedShards(self.listings, file_io), job.listed
        entries = pbegin | "ListFiles" >> ReadListings(self.listings, file_io)
        carried = entries.carried if listed.groups or not self.carry_over else None
        merged = entries.merged if self.carry_over and listed.merged_rows else None
        spill = (self.spill or self.listings) if self.carry_over else None  # a dry run does not read contents again
        reading = replace(job.reading, reports=self.reports, spill=spill)
        read = entries.shards | "ReadShards" >> ReadShards(reading, spread_parts=job.has_large_shards)
        rows = read.rows | "AddContentHash" >> beam.ParDo(AddContentHash(job.head, self.reports))
        known, new, types = None, rows, None
        sides: dict[str, object] = {"reuse": self.same_model} if self.same_model else {}
        if job.settled:
            sides["types"] = job.settled
        codec = PieceCodec(job.row_schema)
        if reading.open:
            settle = partial(settle_types, fields=reading.fields, types=job.types)
            types = (
                read.read
                | "SelectKinds" >> beam.Map(lambda read: read.kinds)
                | "MergeKinds" >> beam.CombineGlobally(merge_kinds)
                | "SettleTypes" >> beam.FlatMap(self.reports.call, settle)
            )
            sides["types"] = beam.pvalue.AsSingleton(types)
        if job.bits:
            refer = ReferToRowGroups(job.model.info.fingerprint, job.bits, before, file_io)
            reuse = ReuseVectors(
                codec, job.head, self.batch_items, self.columns, bits=job.bits, dropped=dropped, file_io=file_io
            )
            earlier = entries.earlier if job.earlier.files else None
            if merged is not None:
                earlier = (entries.earlier, merged) | "AddMergedFiles" >> beam.Flatten()
            joined = rows | JoinWithEarlierVectors(earlier, refer, reuse, self.spill, sides)
            known, new = joined.known, joined.new
        elif types is not None:  # the rows wait for their types
            bits = bucket_bits(job.rows, local=self.spill is not None)
            buckets = rows | "WaitForTypes" >> Buckets(codec, CONTENT_HASH.name, bits, self.spill)
            new = buckets | "ApplyTypes" >> beam.FlatMap(_apply_types, codec, **sides).with_output_types(pa.RecordBatch)
        duplicates = None
        if job.limits.unique_ids:
            kept = all_files(carried, merged)
            duplicates = rows | FindDuplicateIds(
                kept, before, dropped, bits=job.id_bits, spill=self.spill, file_io=file_io, record=self.carry_over
            )
        return JoinResult(read.read, read.rejected, known, new, carried, merged, duplicates, types)


def all_files(carried: beam.PCollection | None, merged: beam.PCollection | None) -> beam.PCollection | None:
    """Return groups of all files of the previous snapshot of which rows are kept; None without any."""
    if merged is None:
        return carried
    groups = merged | "MakeGroups" >> beam.Map(lambda file: [file])
    return groups if carried is None else (carried, groups) | "AddGroups" >> beam.Flatten()


def _apply_types(
    element: tuple[int, Iterable[bytes]], codec: PieceCodec, types: SettledTypes
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a bucket with the settled types of their kept fields."""
    for batch in read_rows(element[1], codec):
        yield apply_types(batch, types)


@beam.typehints.with_output_types(pa.RecordBatch)
class AddContentHash(beam.DoFn):  # type: ignore[misc]
    """Row batches to hashed ones. On a remote worker it also starts the reports to the launcher."""

    def __init__(self, head: Head, reports: RunReports) -> None:
        self.head, self.reports = head, reports
        self.version = version("audioclip-beam")

    def setup(self) -> None:
        """Start the reports, and check that the worker has the launcher's version of the project."""
        if self.reports.directory is not None:
            self.reports.start()
            with self.reports.errors():
                check_version(self.version)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield the batch with its hashes."""
        yield batch if self.head.by_reference else add_content_hash(batch, self.head.content.name)
