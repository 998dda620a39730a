"""EmbedCorpus: the whole data path, from shards to a published snapshot.

import apache_beam as beam
from audioclip_beam.pipeline import EmbedCorpus, EmbedOptions

options = EmbedOptions(input=["shards/*.jsonl"], output="out")
with beam.Pipeline(options=options) as pipeline:
    pipeline | EmbedCorpus(options)
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import AsSingleton
from filelock import FileLock

from ..model.head import EncoderSettings, Head
from .canary import Canary, canaries_agree
from .embedded_batch import EmbeddedBatch
from .inference.embed_batch import check_allowed
from .inference.model_handler import CanaryHandler, RecordBatchHandler
from .io.paths import is_local
from .options import EmbedOptions, ends_with_launcher, is_dataflow, is_local_run
from .prepare.job import Job, prepare_job
from .prepare.unchanged import Listing
from .publish.limits import check_canary
from .publish.publish_snapshot import PublishSnapshot
from .read_and_join import ReadAndJoin
from .remote.job_service import RemoteJob
from .remote.worker_reports import RunReports, remove_reports
from .snapshots.listing import write_listings
from .snapshots.run_directory import (
    NO_LOCKS_NOTE,
    end_run,
    record_job,
    remove_spills,
    run_path,
    start_run,
    write_canary,
)
from .writers.kept_files import DroppedShards, KeepRows
from .writers.write_files import WriteFiles


class EmbedCorpus(beam.PTransform):  # type: ignore[misc]
    """The transform that embeds the shards of `options` and publishes them as one snapshot; its output is the manifest.

    The constructor checks everything that can be checked and raises before anything starts. `expand` creates the run
    directory, which belongs to this run until `close` is called or the process ends; the directory of a remote job, for
    as long as that may go on.

    Args:
        options: The options of the run.
        head: The head that embeds; by default the one that the options name.
        listing: The shards, if they were listed before.

    Attributes:
        job: What was decided before the run.
        snapshot: The name of the snapshot, once `expand` was called.
        may_go_on: Whether the job may go on when this process has ended: from `expand` until the job is known to have ended.
    """

    def __init__(self, options: EmbedOptions, head: Head | None = None, listing: Listing | None = None) -> None:
        super().__init__()
        self.options, self.job = options, prepare_job(options, head, listing)
        self.local = is_local_run(options)
        # A local run spills into its run directory, or into this one if the output is on an object store.
        elsewhere = self.local and not is_local(self.job.output)
        self._spill_directory = tempfile.TemporaryDirectory(prefix="audioclip-beam-") if elsewhere else None
        self.snapshot: str | None = None
        self.may_go_on = False
        self._detached = not ends_with_launcher(options)
        self._lock: FileLock | None = None

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read the shards, reuse known vectors by content hash, embed new contents, write and publish."""
        job, started, hints = self.job, time.time(), _resource_hints(self.options)
        previous = job.previous["snapshot"] if job.previous else ""
        self.snapshot, self._lock = start_run(
            job.output, job.model.info.fingerprint, after=previous, detached=self._detached
        )
        if is_local(job.output) and not self._lock:
            job.notes.append(NO_LOCKS_NOTE)
        directory, before = run_path(job.output, self.snapshot), run_path(job.output, previous)
        carry_over = job.carry_over
        write_listings(directory, carry_over.inputs, job.earlier.files, carry_over.files, carry_over.dropped)
        reports = RunReports(None if self.local else directory)
        of_model = (job.model, _model_threads(self.options), reports)
        publisher = PublishSnapshot(job, self.snapshot, started, local=self.local)
        write = WriteFiles(
            directory,
            job.head,
            job.part_schema(self.snapshot),
            self.options.max_file_rows,
            bits=job.bits,
            encoding=self.options.vector_encoding,
        )

        canary = (
            pbegin
            | "CreateCanary" >> beam.Create([None])
            | "EmbedCanary" >> RunInference(CanaryHandler(*of_model)).with_resource_hints(**hints)
            | "CheckCanary" >> beam.FlatMap(reports.call, partial(_check_canary, job.without_files(), directory))
        )
        joined = pbegin | ReadAndJoin(
            job,
            directory,
            self.options.batch_size or job.head.batch_items,
            self._spill_path(directory),
            reports=reports,
            same_model=self._same_model(canary),
            carry_over=True,
        )
        done = [joined.read, joined.rejected | "WriteRejected" >> beam.ParDo(write), canary]
        if joined.carried is not None:
            file_io = job.reading.file_io
            dropped = DroppedShards(directory, file_io)
            encoding = self.options.vector_encoding
            keep = KeepRows(before, directory, head=job.head, dropped=dropped, encoding=encoding, file_io=file_io)
            sides = {"types": job.settled if joined.types is None else AsSingleton(joined.types)}
            done.append(joined.carried | "KeepRows" >> beam.ParDo(keep, **sides))
        if joined.known is not None:
            known = joined.known
            if job.model.settings.forbidden:
                known = known | "CheckRows" >> beam.Map(_check_rows, job.model.settings, reports)
            done.append(known | "WriteReused" >> beam.ParDo(write))
        if joined.types is not None:
            done.append(joined.types)
        if joined.duplicates is not None:
            done.append(joined.duplicates)
        # Readers need no GPU, and each GPU worker gets its share. A local run would hold what is reshuffled in memory.
        new = joined.new if self.local else joined.new | "SpreadBatches" >> beam.Reshuffle()
        done.append(
            new
            | EmbedAndWrite(RecordBatchHandler(*of_model, job.content_reader(reports)), write).with_resource_hints(
                **hints
            )
        )
        self.may_go_on = self._detached
        return (
            done
            | "CollectReports" >> beam.Flatten()
            | "KeyReports" >> beam.WithKeys(None)
            | "AggregateReports" >> beam.GroupByKey()
            | "PublishSnapshot" >> beam.FlatMap(reports.call, lambda done: publisher.process(done))  # noqa: PLW0108 - looked up at the call
        )

    def _spill_path(self, directory: str) -> str | None:
        """Return the directory in which a local run keeps shuffled rows and copied contents; None on a remote runner."""
        if not self.local:
            return None
        return self._spill_directory.name if self._spill_directory else directory

    def _same_model(self, canary: beam.PCollection) -> AsSingleton | None:
        """Return the side input that says whether earlier vectors may be reused; None if reuse need not wait for it.

        Without --force a run whose canary differs from a snapshot's fails; a local run, stage by stage, has then embedded
        nothing. One whose canary differs only from that of unpublished files embeds everything.
        """
        job = self.job
        if not (job.bits and job.earlier.canary) or not (job.force or self.local or not job.earlier.reusable):
            return None
        return AsSingleton(canary | "CompareCanary" >> beam.Map(canaries_agree, job.earlier.canary, job.dtype))

    def record_job(self, job: RemoteJob) -> None:
        """Note in the run directory which remote job writes into it, so that later runs can ask whether it has ended."""
        if self.may_go_on and self.snapshot:
            record_job(self.job.output, self.snapshot, job)

    def close(self) -> None:
        """Release the run directory, unless its job may go on, and remove what was spilled."""
        if self.snapshot and not self.may_go_on:
            end_run(self.job.output, self.snapshot)
            remove_spills(self.job.output, self.snapshot, contents=self.job.head.by_reference)
            if not self.local:
                remove_reports(run_path(self.job.output, self.snapshot))
        if self._lock:
            self._lock.release()
        if self._spill_directory:
            self._spill_directory.cleanup()


def _model_threads(options: EmbedOptions) -> int | None:
    """Return the threads of the model; Dataflow starts a container for each vCPU, and they cannot see each other."""
    return options.model_threads or (1 if is_dataflow(options) else None)


def _resource_hints(options: EmbedOptions) -> dict[str, Any]:
    """Return the hints of the model's steps, none that was not asked for.

    On Dataflow any hint turns right fitting on, which a GPU named for the whole pool (worker_accelerator) must not be
    combined with.
    """
    return {"accelerator": options.accelerator} if options.accelerator else {}


def _check_canary(job: Job, directory: str, canary: Canary) -> list[Canary]:
    """Return the canary of the run's encoder, if the run may go on with it; later runs find it in `directory`."""
    write_canary(directory, canary)
    check_canary(job, canary)
    return [canary]


def _check_rows(batch: EmbeddedBatch, settings: EncoderSettings, reports: RunReports) -> EmbeddedBatch:
    """Return an embedded batch; raise ForbiddenRowError if the settings of the encoder forbid one of its rows."""
    check_allowed(batch.rows, settings, reports)
    return batch


class EmbedAndWrite(beam.PTransform):  # type: ignore[misc]
    """Model and writer on one worker: vectors go into a file, never through a shuffle."""

    def __init__(self, handler: RecordBatchHandler, write: WriteFiles) -> None:
        super().__init__()
        self.handler, self.write = handler, write

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        """Turn hashed row batches into part files, and return a WrittenFile for each."""
        embedded = rows | "RunModel" >> RunInference(self.handler).with_output_types(EmbeddedBatch)
        return embedded | "WriteParquet" >> beam.ParDo(self.write)
