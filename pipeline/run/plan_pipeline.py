"""The pipeline of `plan`: read and join as `embed` does, without the model, and compare ids with the current snapshot."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from glob import escape

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics, MetricsFilter

from ..content import add_text_hash
from ..dedup.buckets import Buckets, bucket_bits, read_rows
from ..dedup.duplicate_ids import FindDuplicateIds, ids_of_file
from ..dedup.reuse import JoinWithEarlierVectors, ReferToRowGroups, ReuseVectors
from ..dedup.spill import PieceCodec
from ..inference.model_handler import RecordBatchHandler
from ..io.file_io import FileIO
from ..io.filesystem import remove_below
from ..io.paths import is_local, join
from ..layout import CARRIED, DRY_RUN, EARLIER, SHARDS
from ..options import EmbedOptions
from ..prepare.job import Job
from ..readers.read_shards import ReadShards
from ..schemas import ROW, TEXT_HASH
from ..snapshots.listing import write_listings
from ..snapshots.manifest import FileInfo
from ..snapshots.read_listings import ReadListings
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import UNREADABLE, Snapshot
from .runner import choose_runner, error_message
from .signals import end_on_signal, remove_matches

NAMESPACE = "audioclip_beam.plan"

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanCounts:
    """What a run would do; each field is a counter of the pipeline, in NAMESPACE.

    Of the rows that it would read and could embed, `new`, `changed` and `same` are those whose id is new, has another text
    and has the same text; `removed` are ids that no shard has any more. `reused` of them would get an earlier vector and
    `embed` go through the model, as `texts` different texts of `tokens` tokens; `too_long` have more tokens than it reads.
    `damaged` are shards.
    """

    new: int = 0
    changed: int = 0
    same: int = 0
    removed: int = 0
    rejected: int = 0
    reused: int = 0
    embed: int = 0
    texts: int = 0
    tokens: int = 0
    too_long: int = 0
    damaged: int = 0
    duplicate_ids: int = 0


def count_changes(job: Job, handler: RecordBatchHandler, options: EmbedOptions, spill: str | None) -> PlanCounts:
    """Return what a run would do; a local run writes shuffled rows to the directory `spill`."""
    # The workers of a remote run read the listings from the output's file system.
    listings = spill or run_path(job.output, f"{DRY_RUN}{uuid.uuid4().hex}")
    directories = [escape(listings)] if is_local(listings) else []

    def clean_up() -> None:
        remove_matches(directories)
        if not is_local(listings):
            remove_below(listings)

    try:
        with end_on_signal(lambda name: f"interrupted by {name}", clean_up) as set_handlers:
            return _run_and_count(
                job, handler, options, set_handlers, spill, listings=listings, directories=directories
            )
    except Exception as error:
        raise RuntimeError(error_message(error)) from error


def _run_and_count(
    job: Job,
    handler: RecordBatchHandler,
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
        write_listings(listings, job.carry_over.shards, job.earlier, _carried(job))
        _build(pipeline, job, handler, options.batch_size, spill=spill, listings=listings)
        result = pipeline.run()
        set_handlers()
        result.wait_until_finish()
    finally:
        if not spill:
            remove_below(listings)
    counters = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    counts = dict.fromkeys((field.name for field in fields(PlanCounts)), 0)
    for counter in counters:  # one for each step that counts under a name
        counts[counter.key.metric.name] += counter.committed
    return PlanCounts(**counts)


def _build(
    pipeline: beam.Pipeline, job: Job, handler: RecordBatchHandler, batch_size: int, *, spill: str | None, listings: str
) -> None:
    """Build the pipeline that counts what the listings in the directory `listings` name."""
    carried = _carried(job)
    names = [SHARDS, EARLIER, *([CARRIED] if carried else [])]
    entries = pipeline | "ListFiles" >> ReadListings(listings, names, job.file_io, len(job.carry_over.segments))
    read = entries.shards | ReadShards(
        job.fields, job.kept, job.max_text_bytes, job.file_io, spread_parts=job.has_large_shards
    )
    rows = read.rows | "AddTextHash" >> beam.Map(add_text_hash, job.prompt).with_output_types(pa.RecordBatch)
    refer = ReferToRowGroups(job.model.fingerprint, job.bits, job.file_io)
    # A snapshot that was made with --on_long truncate is reused with --on_long error, which fails on its truncated rows.
    columns = ("truncated",) if job.on_long == "error" else ()
    reuse = ReuseVectors(PieceCodec(job.row_schema), batch_size, columns, job.file_io)
    joined = rows | JoinWithEarlierVectors(entries.earlier, refer, reuse, spill)
    _ = joined.known | "CountReused" >> beam.Map(_count_reused)
    new = joined.new | "CountNew" >> beam.FlatMap(_count_new, handler, job.on_long).with_output_types(pa.RecordBatch)
    _ = read.rejected | "CountRejected" >> beam.Map(lambda batch: _add("rejected", batch.num_rows))
    damaged = read.read | "ListDamaged" >> beam.FlatMap(lambda shards: {name for name, *_ in shards.damaged})
    if job.has_large_shards:  # a shard that is read in parts may be damaged in several
        damaged = damaged | "KeepOnePerShard" >> beam.Distinct()
    _ = damaged | "CountDamaged" >> beam.Map(lambda _: _add("damaged", 1))
    if job.unique_ids:
        before = run_path(job.output, job.previous["snapshot"]) if job.previous else ""
        find = FindDuplicateIds(entries.carried if carried else None, before, job.file_io, job.id_bits, spill)
        _ = (
            rows
            | "FindDuplicateIds" >> find
            | "CountDuplicateIds" >> beam.Map(lambda each: _add("duplicate_ids", each.ids))
        )
    embedded = (joined.known, new) | "MergeRows" >> beam.Flatten()
    now = embedded | "SelectIds" >> beam.Map(_ids, False).with_output_types(pa.RecordBatch)
    directory, files = _files_before(job)
    read_ids = beam.FlatMap(_ids_before, directory, job.file_io).with_output_types(pa.RecordBatch)
    before = pipeline | "ListPreviousFiles" >> beam.Create(files) | "ReadEarlierIds" >> read_ids
    bits = bucket_bits(job.rows + sum(file.rows for file in files), local=spill is not None)
    _ = (
        (now, before)
        | "MergeIds" >> beam.Flatten()
        | "GroupById" >> Buckets(_IDS, "id", bits, spill)
        | "CompareIds" >> beam.Map(_compare)
    )


def _carried(job: Job) -> list[FileInfo]:
    """Return the files that a run would carry over and whose ids it would read."""
    return job.carry_over.files if job.unique_ids else []


def _add(name: str, amount: int) -> None:
    Metrics.counter(NAMESPACE, name).inc(amount)


def _count_reused(batch: pa.RecordBatch) -> None:
    _add("reused", batch.num_rows)
    if "truncated" in batch.schema.names:
        _add("too_long", pc.sum(batch.column("truncated")).as_py())


def _count_new(batch: pa.RecordBatch, handler: RecordBatchHandler, on_long: str) -> Iterator[pa.RecordBatch]:
    """Count the rows of one call of the encoder, and yield those that it would embed."""
    texts = batch.column("text").dictionary_encode()
    too_long, tokens = handler.count_tokens(texts.dictionary.to_pylist())
    is_long = pa.array(too_long).take(texts.indices)
    rows = batch.filter(pc.invert(is_long)) if on_long == "reject" else batch
    _add("rejected", batch.num_rows - rows.num_rows)
    _add("embed", rows.num_rows)
    _add("texts", len(texts.dictionary))
    _add("tokens", tokens)
    _add("too_long", pc.sum(is_long).as_py())
    if rows.num_rows:
        yield rows


def _files_before(job: Job) -> tuple[str, list[FileInfo]]:
    """Return the directory of the current snapshot, and those of its part files that are not carried over."""
    if not job.previous:
        return "", []
    snapshot = Snapshot(job.output, job.previous["snapshot"], job.previous)
    carried = {file.name for file in job.carry_over.files}
    return snapshot.path, [file for file in snapshot.files if file.is_part and file.name not in carried]


_IDS = PieceCodec(pa.schema([ROW.field("id"), TEXT_HASH, pa.field("before", pa.bool_())]))


def _ids_before(file: FileInfo, directory: str, file_io: FileIO) -> Iterator[pa.RecordBatch]:
    """Yield the ids of a part file of the current snapshot. Rows of a damaged one count as new: embed embeds them again."""
    try:
        for batch in ids_of_file(file, directory, file_io, ["id", "text_hash"]):
            yield _ids(batch, True)
    except UNREADABLE as error:
        _LOGGER.warning("%s cannot be read (%s): its rows count as new", join(directory, file.name), error)


def _ids(batch: pa.RecordBatch, before: bool) -> pa.RecordBatch:
    columns = [batch.column("id"), batch.column("text_hash"), pa.array([before] * batch.num_rows, pa.bool_())]
    return pa.RecordBatch.from_arrays(columns, names=["id", "text_hash", "before"])


def _compare(element: tuple[int, Iterable[bytes]]) -> None:
    """Count the rows of one bucket of ids as new, changed or the same, and the removed ids."""
    table = pa.Table.from_batches(list(read_rows(element[1], _IDS))).combine_chunks()
    before = table.filter(table["before"])
    now = table.filter(pc.invert(table["before"]))
    hash_before, hash_now = (side["text_hash"].cast(pa.binary()) for side in (before, now))
    known = pc.is_in(now["id"], value_set=before["id"])
    pairs = pc.binary_join_element_wise(before["id"].cast(pa.binary()), hash_before, b"\0")
    same = pc.is_in(pc.binary_join_element_wise(now["id"].cast(pa.binary()), hash_now, b"\0"), value_set=pairs)
    removed = pc.unique(before["id"].filter(pc.invert(pc.is_in(before["id"], value_set=now["id"]))))
    for name, mask in (("new", pc.invert(known)), ("changed", pc.and_(known, pc.invert(same))), ("same", same)):
        _add(name, pc.sum(mask).as_py() or 0)
    _add("removed", len(removed))
