"""The dry run: read and join as `embed` does, without the model, and compare the ids with the current snapshot."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import escape

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics, MetricsFilter

from ..dedup.buckets import Buckets, bucket_bits, read_rows
from ..dedup.duplicate_ids import FindDuplicateIds, ids_of_file
from ..dedup.reuse import JoinWithEarlierVectors, ReferToRowGroups, ReuseVectors
from ..dedup.spill import PieceCodec
from ..inference.model_handler import RecordBatchHandler
from ..io.file_io import FileIO
from ..io.filesystem import remove_below
from ..io.paths import is_local, join
from ..job import Job, prepare_job
from ..options import EmbedOptions, OptionsError, is_local_run
from ..publish.limits import Counted, damaged_shards, exceeded_limits
from ..readers.read_shards import ReadShards
from ..schemas import ROW, TEXT_HASH
from ..snapshots.history import measured_work
from ..snapshots.listing import CARRIED, EARLIER, SHARDS, write_listings
from ..snapshots.manifest import DRY_RUN, FileInfo
from ..snapshots.read_listings import ReadListings
from ..snapshots.run_directory import run_path
from ..snapshots.segments import add_rows
from ..snapshots.snapshot import Snapshot
from ..terminal import print_line, print_note, printable
from ..text_hash import add_text_hash
from .check_runner import check_runner
from .embed import download, parse
from .runner import choose_runner, error_message
from .signals import end_on_signal, remove_matches

NAMESPACE = "audioclip_text.plan"

_LOGGER = logging.getLogger(__name__)


def plan(argv: Sequence[str], handler: RecordBatchHandler | None = None) -> int:
    """Run `audioclip-text plan` with the flags of `embed`; return the exit status."""
    options = parse(argv)
    if options.no_dedupe:
        raise OptionsError("--no_dedupe embeds every row, so there is nothing to plan: run plan without it")
    options.check()
    check_runner(options)
    if options.download_model:
        download(options)
    job, handler = prepare_job(options, handler)
    for note in job.notes:
        print_note(note)
    with tempfile.TemporaryDirectory(prefix="audioclip-text-") as spill:
        print_line(plan_summary(job, count_changes(job, handler, options, spill if is_local_run(options) else None)))
    return 0


def count_changes(job: Job, handler: RecordBatchHandler, options: EmbedOptions, spill: str | None) -> dict[str, int]:
    """Return the counts of rows and texts by outcome; a local run writes shuffled rows to the directory `spill`."""
    # The workers of a remote run read the listings from the output's file system.
    listings = spill or run_path(job.output, f"{DRY_RUN}{uuid.uuid4().hex}")
    directories = [escape(listings)] if is_local(listings) else []

    def clean_up() -> None:
        remove_matches(directories)
        if not is_local(listings):
            remove_below(listings)

    try:
        with end_on_signal(lambda name: f"interrupted by {name}", clean_up):
            return _run_and_count(job, handler, options, spill=spill, listings=listings, directories=directories)
    except Exception as error:
        raise RuntimeError(error_message(error)) from error


def _run_and_count(
    job: Job,
    handler: RecordBatchHandler,
    options: EmbedOptions,
    *,
    spill: str | None,
    listings: str,
    directories: list[str],
) -> dict[str, int]:
    """Run the pipeline, with its listings in the directory `listings`; append its temporary directory to `directories`."""
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    directories.append(escape(pipeline.local_tempdir))
    if is_local(listings):
        os.makedirs(listings, exist_ok=True)
    try:
        write_listings(listings, job.carry_over.shards, job.earlier, _carried(job))
        _build(pipeline, job, handler, options.batch_size, spill=spill, listings=listings)
        result = pipeline.run()
        result.wait_until_finish()
    finally:
        if not spill:
            remove_below(listings)
    counters = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return {counter.key.metric.name: counter.committed for counter in counters}


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
    reuse = ReuseVectors(PieceCodec(job.row_schema), batch_size, (), job.file_io)
    joined = rows | JoinWithEarlierVectors(entries.earlier, refer, reuse, spill)
    _ = joined.known | "CountReused" >> beam.Map(lambda batch: _add("reused", batch.num_rows))
    _ = joined.new | "CountNew" >> beam.Map(_count_new, handler)
    _ = read.rejected | "CountRejected" >> beam.Map(lambda batch: _add("rejected", batch.num_rows))
    damaged = read.read | "ListDamaged" >> beam.FlatMap(lambda shards: {name for name, *_ in shards.damaged})
    if job.has_large_shards:  # a shard that is read in parts may be damaged in several
        damaged = damaged | "OncePerShard" >> beam.Distinct()
    _ = damaged | "CountDamaged" >> beam.Map(lambda _: _add("damaged", 1))
    if job.unique_ids:
        before = run_path(job.output, job.previous["snapshot"]) if job.previous else ""
        find = FindDuplicateIds(entries.carried if carried else None, before, job.file_io, job.id_bits, spill)
        _ = (
            rows
            | "FindDuplicateIds" >> find
            | "CountDuplicateIds" >> beam.Map(lambda each: _add("duplicate_ids", each.ids))
        )
    now = rows | "SelectIds" >> beam.Map(_ids, False).with_output_types(pa.RecordBatch)
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


def plan_summary(job: Job, counts: Mapping[str, int]) -> str:
    """Return the plan as lines for a terminal."""
    number = Counter(counts)
    carry_over = job.carry_over
    carried = sum(segment["rows"]["vectors"] for segment in carry_over.segments)
    carried_bytes = sum(file.bytes for file in carry_over.files)
    read, read_bytes = len(carry_over.read), sum(shard.bytes for shard in carry_over.read)
    number["same"] += carried
    texts, tokens = number["texts"], number["tokens"]
    against = job.previous["snapshot"] if job.previous else "nothing (the first run)"
    lines = [
        f"against   {against}",
        f"shards    {len(carry_over.shards) - read:,} carried over ({carried:,} rows, {carried_bytes:,} bytes of files), "
        f"{read:,} read ({read_bytes:,} bytes)",
        f"rows      {number['new']:,} new, {number['changed']:,} with another text, {number['same']:,} with the same text, "
        f"{number['removed']:,} removed; {number['rejected']:,} rejected",
        f"vectors   {number['reused']:,} rows reused, {number['embed']:,} rows to embed",
        f"model     {texts:,} texts, {tokens:,} tokens",
    ]
    measured = measured_work(job.output, job.model.fingerprint)
    if measured:
        rate = measured.tokens / measured.seconds
        lines.append(
            f"estimate  {tokens / rate:,.0f} s of model time, at the {rate:,.0f} tokens/s of earlier runs with this "
            f"fingerprint"
        )
    else:
        lines.append("estimate  none: no model time was measured in an earlier run with this fingerprint")
    lines += [f"limits    embed would publish nothing: {excess}" for excess in _exceeded_limits(job, number)]
    return "\n".join(map(printable, lines))


def _exceeded_limits(job: Job, number: Counter[str]) -> Iterator[str]:
    """Yield what exceeds a limit of the job, as a run would find it."""
    carried = add_rows(segment["rows"] for segment in job.carry_over.segments)
    rejected, vectors = number["rejected"], number["reused"] + number["embed"]
    new = Counted(rejected + vectors, vectors, rejected)
    total = Counted(new.read + carried["read"], vectors + carried["vectors"], rejected + carried["rejected"])
    exceeded = exceeded_limits(
        job,
        new=new,
        total=total,
        shards=len(job.carry_over.shards),
        damaged=number["damaged"] + len(damaged_shards(job.carry_over.segments)),
        duplicate_ids=number["duplicate_ids"],
    )
    for _, excess in exceeded:
        yield excess


def _add(name: str, amount: int) -> None:
    Metrics.counter(NAMESPACE, name).inc(amount)


def _count_new(batch: pa.RecordBatch, handler: RecordBatchHandler) -> None:
    texts = pc.unique(batch.column("text")).to_pylist()
    _add("embed", batch.num_rows)
    _add("texts", len(texts))
    _add("tokens", handler.count_tokens(texts))


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
    except (OSError, pa.ArrowException) as error:
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
