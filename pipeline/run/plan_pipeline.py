"""The pipeline of `plan`: read and join as `embed` does, without the model, and compare ids with the current snapshot."""

from __future__ import annotations

import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from glob import escape

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics, MetricsFilter

from ...model.head import Head
from ..content import EXTENT, count_extent, extent_in
from ..dedup.buckets import Buckets, bucket_bits, read_rows
from ..dedup.spill import PieceCodec
from ..embedded_batch import EmbeddedBatch
from ..inference.shared_encoder import ModelDescription
from ..io.file_io import FileIO
from ..io.filesystem import remove_below
from ..io.local_cache import local_copy
from ..io.paths import is_local, join
from ..layout import DRY_RUN
from ..options import EmbedOptions
from ..prepare.job import Job
from ..publish.kept_notes import kept_notes
from ..read_and_join import ReadAndJoin, all_files
from ..readers.notes import ShardNotes, damage_note, merge_notes
from ..readers.read_shards import ShardsRead
from ..readers.settle_types import SettledTypes, apply_types
from ..readers.shard import InputError
from ..schemas import CONTENT_HASH, ID, SOURCE
from ..snapshots.listing import CarriedFile, write_listings
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import UNREADABLE, Snapshot
from ..writers.kept_files import DroppedShards
from .runner import choose_runner, error_message
from .signals import end_on_signal, remove_matches

NAMESPACE = "audioclip_beam.plan"

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanCounts:
    """What a run would do; each number is a counter of the pipeline, in NAMESPACE.

    Attributes:
        new: Rows that could be embedded and whose id is new.
        changed: Rows whose id has other content.
        same: Rows whose id has the same content.
        removed: Ids that no shard has any more.
        rejected: Rejected rows.
        reused: Rows that would get an earlier vector.
        embed: Rows that would go through the model.
        items: Different contents that would go through it.
        units: What these consist of, in the head's unit, as far as the model reads it.
        forbidden: Rows that the settings of the encoder forbid.
        damaged: Shards that cannot be read to their end.
        duplicate_ids: Ids that occur more than once.
        kept: Rows with vectors of the current snapshot that are not read again.
        copied: The bytes of contents that are copied while they are read.
        extent: How much content the rows that are read have, as the head's `extent` returns it, if it is in files.
        notes: What readers noticed, and what users should know of the kept fields.
    """

    new: int = 0
    changed: int = 0
    same: int = 0
    removed: int = 0
    rejected: int = 0
    reused: int = 0
    embed: int = 0
    items: int = 0
    units: int = 0
    forbidden: int = 0
    damaged: int = 0
    duplicate_ids: int = 0
    kept: int = 0
    copied: int = 0
    extent: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def count_changes(job: Job, options: EmbedOptions, spill: str | None, *, headers_only: bool = False) -> PlanCounts:
    """Return what a run would do; a local run writes shuffled rows to the directory `spill`.

    With `headers_only` no more than the headers of files are read, so that none of their contents is known.
    """
    job = replace(job, reading=replace(job.reading, headers_only=headers_only))
    # The workers of a remote run read the listings from the output's file system.
    listings = spill or run_path(job.output, f"{DRY_RUN}{uuid.uuid4().hex}")
    directories = [escape(listings)] if is_local(listings) else []

    def clean_up() -> None:
        remove_matches(directories)
        if not is_local(listings):
            remove_below(listings)

    try:
        with end_on_signal(lambda name: f"interrupted by {name}", clean_up) as set_handlers:
            return _run_and_count(job, options, set_handlers, spill, listings=listings, directories=directories)
    except Exception as error:
        raise RuntimeError(error_message(error)) from error


def _run_and_count(
    job: Job,
    options: EmbedOptions,
    set_handlers: Callable[[], None],
    spill: str | None,
    *,
    listings: str,
    directories: list[str],
) -> PlanCounts:
    """Run the pipeline, with its listings in the directory `listings`; append its temporary directory to `directories`."""
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    directories.append(escape(pipeline.local_tempdir))
    if is_local(listings):
        os.makedirs(listings, exist_ok=True)
    try:
        files = _list(job, listings)
        _build(pipeline, job, options.batch_size or job.head.batch_items, spill=spill, listings=listings)
        result = pipeline.run()
        set_handlers()
        result.wait_until_finish()
    finally:
        if not spill:
            remove_below(listings)
    metrics = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    counts = Counter[str]()
    for counter in metrics["counters"]:  # one for each step that counts under a name
        counts[counter.key.metric.name] += counter.committed
    extent = extent_in(counts)
    counts = Counter({name: number for name, number in counts.items() if not name.startswith(EXTENT)})
    notes = {note for found in metrics.get("string_sets", ()) for note in found.committed or ()}
    counts["kept"] = files - counts.pop("dropped", 0)
    return PlanCounts(
        **counts, extent=extent, notes=(*sorted(notes), *([] if job.types.open else kept_notes(job, job.settled)))
    )


def _build(pipeline: beam.Pipeline, job: Job, batch_items: int, *, spill: str | None, listings: str) -> None:
    """Build the pipeline that counts what the listings in the directory `listings` name."""
    # Rows of an earlier snapshot may be forbidden in this run, as one that was truncated is with --on_long error.
    forbidden = job.model.settings.forbidden
    joined = pipeline | ReadAndJoin(
        job, listings, batch_items, spill, columns=(forbidden,) if forbidden else (), carry_over=False
    )
    known = joined.known | "CountReused" >> beam.Map(_count_reused, job.head, forbidden).with_output_types(
        pa.RecordBatch
    )
    new = joined.new | "CountNew" >> beam.ParDo(_CountNew(job.model)).with_output_types(pa.RecordBatch)
    _ = joined.rejected | "CountRejected" >> beam.Map(lambda batch: _add("rejected", batch.num_rows))
    damaged = joined.read | "ListDamaged" >> beam.FlatMap(lambda shards: {number for number, *_ in shards.damaged})
    if job.has_large_shards:  # a shard that is read in parts may be damaged in several
        damaged = damaged | "KeepOnePerShard" >> beam.Distinct()
    _ = damaged | "CountDamaged" >> beam.Map(lambda _: _add("damaged", 1))
    if job.head.by_reference:
        _ = joined.read | "CountCopies" >> beam.Map(lambda read: _add("copied", read.copied))
    notes = joined.read | "SelectNotes" >> beam.Map(_notes) | "MergeNotes" >> beam.CombineGlobally(merge_notes)
    _ = notes | "ListNotes" >> beam.Map(lambda found: _add_notes(found.describe()))
    if joined.types is not None:
        _ = joined.types | "NoteTypes" >> beam.Map(_note_types, job.without_files())
    if joined.duplicates is not None:
        _ = joined.duplicates | "CountDuplicateIds" >> beam.Map(lambda each: _add("duplicate_ids", each.ids))
    embedded = (known, new) | "MergeRows" >> beam.Flatten()
    now = embedded | "SelectIds" >> beam.Map(_ids, False).with_output_types(pa.RecordBatch)
    files = all_files(joined.carried, joined.merged)
    if files is not None and job.previous:
        dropped = DroppedShards(listings, job.reading.file_io)
        directory = run_path(job.output, job.previous["snapshot"])
        read_ids = beam.FlatMap(_ids_before, directory, dropped, job.reading.file_io).with_output_types(pa.RecordBatch)
        now = (now, files | "ReadEarlierIds" >> read_ids) | "MergeIds" >> beam.Flatten()
        types = job.settled if joined.types is None else beam.pvalue.AsSingleton(joined.types)
        if types is not None:
            check = beam.Map(_check_types, directory, dropped, job.reading.file_io, types)
            _ = files | "CheckKeptTypes" >> check
    previous_rows = job.previous["totals"]["vectors"] if job.previous else 0
    bits = bucket_bits(job.rows + previous_rows, local=spill is not None)
    _ = now | "GroupById" >> Buckets(_IDS, "id", bits, spill) | "CompareIds" >> beam.Map(_compare)


def _list(job: Job, listings: str) -> int:
    """Write the listings of the run into a directory, with all part files of the current snapshot; return the rows of these.

    Files of which the run would keep no row are listed, too: their ids are counted.
    """
    carry_over, files, dropped = job.carry_over, list[CarriedFile](), job.carry_over.dropped
    if job.previous:
        snapshot = Snapshot(job.output, job.previous["snapshot"], job.previous)
        listed, lost = {each.before for each in carry_over.files}, snapshot.damaged
        present = [file for file in snapshot.files if file.is_part and file.name not in lost]
        files = [CarriedFile(file, file.segment, number) for number, file in enumerate(present)]
        others = pc.is_in(snapshot.shards["segment"], value_set=pa.array(sorted(listed), pa.int32()))
        more = snapshot.shards.filter(pc.invert(others)).select(dropped.column_names)
        dropped = pa.concat_tables([dropped, more.cast(dropped.schema)])
    write_listings(listings, carry_over.inputs, job.earlier.files, files, dropped)
    return sum(each.file.rows for each in files)


def _note_types(types: SettledTypes, job: Job) -> None:
    _add_notes(kept_notes(job, types))


def _add(name: str, amount: int) -> None:
    Metrics.counter(NAMESPACE, name).inc(amount)


def _notes(read: ShardsRead) -> ShardNotes:
    """Return what readers noticed, damage included."""
    notes = merge_notes([read.notes])
    for _, shard, _, reason in read.damaged:
        notes.merge(damage_note(shard, reason))
    return notes


def _add_notes(notes: Iterable[str]) -> None:
    found = Metrics.string_set(NAMESPACE, "notes")
    for note in notes:
        found.add(note)


def _count_reused(batch: EmbeddedBatch, head: Head, forbidden: str | None) -> pa.RecordBatch:
    """Count rows with an earlier vector, and return them."""
    _add("reused", batch.rows.num_rows)
    count_extent(batch.rows, head, _add)
    if forbidden:
        _add("forbidden", pc.sum(batch.rows.column(forbidden)).as_py())
    return batch.rows


class _CountNew(beam.DoFn):  # type: ignore[misc]
    """Count the rows of one call of the encoder, and return those that it would embed."""

    def __init__(self, model: ModelDescription) -> None:
        self.model = model

    def setup(self) -> None:
        """Read what measures contents."""
        model = self.model
        if model.head.by_reference:  # readers have measured it
            return

        def copy_of(number: int) -> str:
            return local_copy(model.settings.files[number], model.contents[number])

        self.measure = model.head.measurer(model.settings, model.info, copy_of)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Count, and yield the rows."""
        if self.model.head.by_reference:
            count_extent(batch, self.model.head, _add)
            _, first = np.unique(batch.column(CONTENT_HASH.name).dictionary_encode().indices, return_index=True)
            _add("embed", batch.num_rows)
            _add("items", len(first))
            _add("units", pc.sum(batch.column(SOURCE.name).field("units").take(pa.array(first))).as_py() or 0)
            yield batch
            return
        contents = batch.column(self.model.head.content.name).dictionary_encode()
        measured = self.measure(contents.dictionary.to_pylist())
        rejected, forbidden = (
            pa.array(each).take(contents.indices) for each in (measured.rejected, measured.forbidden)
        )
        rows = batch.filter(pc.invert(rejected))
        _add("rejected", batch.num_rows - rows.num_rows)
        _add("embed", rows.num_rows)
        _add("items", len(contents.dictionary))
        _add("units", measured.units)
        _add("forbidden", pc.sum(forbidden).as_py() or 0)
        if rows.num_rows:
            yield rows


_ID_SCHEMA = pa.schema([ID, CONTENT_HASH, pa.field("before", pa.bool_())])

_IDS = PieceCodec(_ID_SCHEMA)


def _ids_before(
    group: list[CarriedFile], directory: str, dropped: DroppedShards, file_io: FileIO
) -> Iterator[pa.RecordBatch]:
    """Yield the ids of the rows of part files that a run would not keep.

    Those of a damaged file count as new: embed reads them again.
    """
    for each in group:
        if not dropped.in_segment(each.before):
            continue
        path = join(directory, each.file.name)
        try:
            with file_io.open(path) as handle:
                columns = ["id", CONTENT_HASH.name, "shard"]
                for batch in pq.ParquetFile(handle, page_checksum_verification=True).iter_batches(columns=columns):
                    rows = batch.filter(pa.array(~dropped.kept(batch.column("shard"), each.before)))
                    _add("dropped", rows.num_rows)
                    yield _ids(rows, True)
        except UNREADABLE as error:
            _LOGGER.warning("%s cannot be read (%s): its rows count as new", path, error)


def _check_types(
    group: list[CarriedFile], directory: str, dropped: DroppedShards, file_io: FileIO, types: SettledTypes
) -> None:
    """Raise InputError if a kept value of a row that a run would keep has no equal one of a wider type."""
    for each in group if types.widened else ():
        path = join(directory, each.file.name)
        try:
            with file_io.open(path) as handle:
                columns = ["id", "shard", *types.kept.names]
                for batch in pq.ParquetFile(handle, page_checksum_verification=True).iter_batches(columns=columns):
                    apply_types(batch.filter(pa.array(dropped.kept(batch.column("shard"), each.before))), types)
        except InputError:
            raise
        except UNREADABLE as error:
            _LOGGER.warning("%s cannot be read (%s): its kept fields are not checked", path, error)


def _ids(batch: pa.RecordBatch, before: bool) -> pa.RecordBatch:
    columns = [batch.column("id"), batch.column(CONTENT_HASH.name), pa.array([before] * batch.num_rows, pa.bool_())]
    return pa.RecordBatch.from_arrays(columns, schema=_ID_SCHEMA)


def _compare(element: tuple[int, Iterable[bytes]]) -> None:
    """Count the rows of one bucket of ids as new, changed or the same, and the removed ids."""
    table = pa.Table.from_batches(list(read_rows(element[1], _IDS))).combine_chunks()
    before = table.filter(table["before"])
    now = table.filter(pc.invert(table["before"]))
    hash_before, hash_now = (side[CONTENT_HASH.name].cast(pa.binary()) for side in (before, now))
    known = pc.is_in(now["id"], value_set=before["id"])
    pairs = pc.binary_join_element_wise(before["id"].cast(pa.binary()), hash_before, b"\0")
    same = pc.is_in(pc.binary_join_element_wise(now["id"].cast(pa.binary()), hash_now, b"\0"), value_set=pairs)
    removed = pc.unique(before["id"].filter(pc.invert(pc.is_in(before["id"], value_set=now["id"]))))
    for name, mask in (("new", pc.invert(known)), ("changed", pc.and_(known, pc.invert(same))), ("same", same)):
        _add(name, pc.sum(mask).as_py() or 0)
    _add("removed", len(removed))
