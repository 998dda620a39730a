"""EmbedCorpus: the whole data path, from text shards to a published snapshot.

import apache_beam as beam
from audioclip_beam.pipeline import EmbedCorpus, EmbedOptions

options = EmbedOptions(input=["texts/*.jsonl"], output="out")
with beam.Pipeline(options=options) as pipeline:
    pipeline | EmbedCorpus(options)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import AsSingleton
from filelock import FileLock

from .canary import Canary, canaries_agree, canary_batch, canary_from_batch
from .content import add_text_hash
from .dedup.duplicate_ids import FindDuplicateIds
from .dedup.reuse import JoinWithEarlierVectors, ReferToRowGroups, ReuseVectors
from .dedup.spill import PieceCodec
from .inference.embed_batch import check_not_truncated
from .inference.model_handler import RecordBatchHandler
from .io.paths import is_local
from .layout import CARRIED, EARLIER, SHARDS
from .options import EmbedOptions, ends_with_launcher, is_dataflow, is_local_run
from .prepare.job import Job, prepare_job
from .publish.limits import check_canary
from .publish.publish_snapshot import PublishSnapshot
from .readers.read_shards import ReadShards
from .remote.job_service import RemoteJob
from .remote.worker_reports import call_reported, check_version, remove_reports, report_errors, start_reporting
from .snapshots.listing import write_listings
from .snapshots.read_listings import ReadListings
from .snapshots.run_directory import end_run, record_job, remove_spills, run_path, start_run, write_canary
from .writers.carried_files import carry_over
from .writers.write_files import WriteFiles


class EmbedCorpus(beam.PTransform):  # type: ignore[misc]
    """The transform that embeds the shards of `options` and publishes them as one snapshot; its output is the manifest.

    The constructor checks everything that can be checked and raises before anything starts. `expand` creates the run
    directory, which belongs to this run until `close` is called or the process ends; the directory of a remote job, for
    as long as that may go on.
    """

    def __init__(self, options: EmbedOptions, handler: RecordBatchHandler | None = None) -> None:
        super().__init__()
        self.job, self.handler = prepare_job(options, handler)
        self.batch_size, self.max_file_rows = options.batch_size, options.max_file_rows
        self.vector_encoding = options.vector_encoding
        self.local = is_local_run(options)
        # Dataflow starts a container for each vCPU, and they cannot see each other.
        self.handler.threads = options.model_threads or (1 if is_dataflow(options) else None)
        # No hint that was not asked for: on Dataflow any hint turns right fitting on, which a GPU named for the whole pool
        # (worker_accelerator) must not be combined with.
        self.hints = {"accelerator": options.accelerator} if options.accelerator else {}
        # A local run spills rows into its run directory, or into this one if the output is on an object store.
        elsewhere = self.local and not is_local(self.job.output)
        self._spill_directory = tempfile.TemporaryDirectory(prefix="audioclip-beam-") if elsewhere else None
        self.snapshot: str | None = None
        # Whether the job may go on when this process has ended: from the end of `expand` until its end is known.
        self.may_go_on = False
        self._detached = not ends_with_launcher(options)
        self._lock: FileLock | None = None

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read the shards, reuse known vectors by text hash, embed new texts, write and publish."""
        job, handler, started = self.job, self.handler, time.time()
        previous = job.previous["snapshot"] if job.previous else ""
        self.snapshot, self._lock = start_run(
            job.output, job.model.fingerprint, after=previous, detached=self._detached
        )
        directory = run_path(job.output, self.snapshot)
        schema = job.schema.with_metadata({**job.schema.metadata, b"snapshot": self.snapshot.encode()})
        spill = (self._spill_directory.name if self._spill_directory else directory) if self.local else None
        reports_to = None if self.local else directory
        handler.reports_to, file_io = reports_to, replace(job.file_io, reports_to=reports_to)
        carried, first_segment = job.carry_over.files, len(job.carry_over.segments)
        shards = write_listings(directory, job.carry_over.shards, job.earlier, carried)
        listings = [SHARDS, *([EARLIER] if job.earlier else []), *([CARRIED] if carried else [])]
        before = run_path(job.output, previous)
        publisher = PublishSnapshot(job, self.snapshot, shards, started)
        write = WriteFiles(directory, schema, self.max_file_rows, job.bits, self.vector_encoding)

        entries = pbegin | "ListFiles" >> ReadListings(directory, listings, job.file_io, first_segment)
        read = entries.shards | "ReadShards" >> ReadShards(
            job.fields, job.kept, job.max_text_bytes, file_io, spread_parts=job.has_large_shards
        )
        rows = read.rows | "AddTextHash" >> beam.ParDo(AddTextHash(job.prompt, reports_to))
        canary = (
            pbegin
            | "CreateCanaryTexts" >> beam.Create([canary_batch()])
            | "EmbedCanary" >> RunInference(handler).with_resource_hints(**self.hints).with_output_types(pa.RecordBatch)
            | "CheckCanary"
            >> beam.FlatMap(call_reported, reports_to, partial(_canaries, job.without_files(), directory))
        )
        reports = [read.read, read.rejected | "WriteRejected" >> beam.ParDo(write), canary]
        if carried:
            reports.append(entries.carried | "CarryOverFiles" >> beam.Map(carry_over, before, directory))
        new = rows
        if job.bits:
            refer = ReferToRowGroups(job.model.fingerprint, job.bits, job.file_io)
            reuse = ReuseVectors(PieceCodec(job.row_schema), self.batch_size, file_io=job.file_io)
            same_model = None
            # Without --force a run whose canary differs from a snapshot's fails; a local run, stage by stage, has then
            # embedded nothing. One whose canary differs only from that of unpublished files embeds every text.
            if job.canary and (job.force or self.local or not job.reusable):
                same_model = AsSingleton(canary | "CompareCanary" >> beam.Map(canaries_agree, job.canary, job.dtype))
            earlier = entries.earlier if job.earlier else None
            joined = rows | JoinWithEarlierVectors(earlier, refer, reuse, spill, same_model)
            new, known = joined.new, joined.known
            if job.on_long == "error":
                known = known | "CheckLengths" >> beam.Map(check_not_truncated, reports_to).with_output_types(
                    pa.RecordBatch
                )
            reports.append(known | "WriteReused" >> beam.ParDo(write))
        if job.unique_ids:
            carried_files = entries.carried if carried else None
            reports.append(rows | FindDuplicateIds(carried_files, before, job.file_io, job.id_bits, spill))
        # Readers need no GPU, and each GPU worker gets its share. A local run would hold what is reshuffled in memory.
        if not self.local:
            new = new | "SpreadBatches" >> beam.Reshuffle()
        reports.append(new | EmbedAndWrite(handler, write).with_resource_hints(**self.hints))
        self.may_go_on = self._detached
        return (
            reports
            | "CollectReports" >> beam.Flatten()
            | "KeyReports" >> beam.WithKeys(None)
            | "AggregateReports" >> beam.GroupByKey()
            | "PublishSnapshot" >> beam.FlatMap(call_reported, reports_to, lambda reports: publisher.process(reports))  # noqa: PLW0108 - looked up at the call
        )

    def record_job(self, job: RemoteJob) -> None:
        """Note in the run directory which remote job writes into it, so that later runs can ask whether it has ended."""
        if self.may_go_on and self.snapshot:
            record_job(self.job.output, self.snapshot, job)

    def close(self) -> None:
        """Release the run directory, unless its job may go on, and remove what was spilled."""
        if self.snapshot and not self.may_go_on:
            end_run(self.job.output, self.snapshot)
            remove_spills(self.job.output, self.snapshot)
            if not self.local:
                remove_reports(run_path(self.job.output, self.snapshot))
        if self._lock:
            self._lock.release()
        if self._spill_directory:
            self._spill_directory.cleanup()


def _canaries(job: Job, directory: str, batch: pa.RecordBatch) -> list[Canary]:
    """Return the canary of the embedded canary texts, if the run may go on with it; later runs find it in `directory`."""
    canary = canary_from_batch(batch)
    write_canary(directory, canary)
    check_canary(job, canary)
    return [canary]


@beam.typehints.with_output_types(pa.RecordBatch)
class AddTextHash(beam.DoFn):  # type: ignore[misc]
    """Row batches to hashed ones. On a remote worker it also starts the reports to the launcher."""

    def __init__(self, prompt: str, reports_to: str | None) -> None:
        self.prompt, self.reports_to = prompt, reports_to
        self.version = version("audioclip-beam")

    def setup(self) -> None:
        """Start the reports, and check that the worker has the launcher's version of the project."""
        if self.reports_to:
            start_reporting(self.reports_to)
            with report_errors(self.reports_to):
                check_version(self.version)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield the batch with its hashes."""
        yield add_text_hash(batch, self.prompt)


class EmbedAndWrite(beam.PTransform):  # type: ignore[misc]
    """Model and writer on one worker: vectors go into a file, never through a shuffle."""

    def __init__(self, handler: RecordBatchHandler, write: WriteFiles) -> None:
        super().__init__()
        self.handler, self.write = handler, write

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        """Turn hashed row batches into part files, and return a WrittenFile for each."""
        embedded = rows | "RunModel" >> RunInference(self.handler).with_output_types(pa.RecordBatch)
        return embedded | "WriteParquet" >> beam.ParDo(self.write)
