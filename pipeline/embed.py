"""EmbedCorpus: the whole data path, from text shards to a published snapshot.

import apache_beam as beam
from audioclip_text.pipeline import EmbedCorpus, EmbedOptions

options = EmbedOptions(input=["texts/*.jsonl"], output="out")
with beam.Pipeline(options=options) as pipeline:
    pipeline | EmbedCorpus(options)
"""

from __future__ import annotations

import tempfile
import time

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import AsSingleton
from filelock import FileLock

from .canary import agrees, canary_batch, canary_of
from .dedup.duplicate_ids import DuplicateIds
from .dedup.reuse import JoinWithEarlierVectors, ReuseVectors
from .inference.model_handler import RecordBatchHandler, resource_hints
from .io.filesystem import is_local
from .job import prepare_job
from .options import EmbedOptions, is_local_run
from .publish import Publish
from .readers.read_shards import ReadShards
from .snapshots.run_directory import end_run, run_path, start_run
from .text_hash import add_text_hash
from .writers.write_files import WriteFiles


class EmbedCorpus(beam.PTransform):  # type: ignore[misc]
    """Embed the shards that `options` names and publish them as one snapshot; gives its manifest.

    The constructor checks all that can be checked and raises before anything starts; `expand` makes the run directory,
    which stays this run's own until `close` is called or the process ends.
    """

    def __init__(self, options: EmbedOptions, handler: RecordBatchHandler | None = None) -> None:
        super().__init__()
        self.job, self.handler = prepare_job(options, handler)
        self.batch_size, self.max_file_rows = options.batch_size, options.max_file_rows
        # On one machine hints change nothing but what Beam fuses: vectors must not wait in memory for their writer.
        self.local = is_local_run(options)
        self.hints = {} if self.local else resource_hints(options.accelerator)
        # Where a local run puts rows aside if its output is no local directory; removed by `close`, or with this object.
        aside = self.local and not is_local(self.job.output)
        self._aside = tempfile.TemporaryDirectory(prefix="audioclip-text-") if aside else None
        self.snapshot: str | None = None
        self._lock: FileLock | None = None

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read, meet earlier vectors by text hash, embed what is new, write, publish."""
        job, handler, started = self.job, self.handler, time.time()
        before = job.previous["snapshot"] if job.previous else ""
        self.snapshot, self._lock = start_run(job.output, job.model.fingerprint, after=before)
        schema = job.schema.with_metadata({**job.schema.metadata, b"snapshot": self.snapshot.encode()})
        aside = self._aside.name if self._aside else run_path(job.output, self.snapshot)
        spill = aside if self.local else None
        write = WriteFiles(run_path(job.output, self.snapshot), schema, self.max_file_rows)

        read = (
            pbegin
            | "Shards" >> beam.Create(job.shards)
            | "Read" >> ReadShards(job.fields, job.kept, job.max_text_bytes, job.file_io)
        )
        rows = read.rows | "Hash" >> beam.Map(add_text_hash, job.prompt).with_output_types(pa.RecordBatch)
        canary = (
            pbegin
            | "Canary texts" >> beam.Create([canary_batch()])
            | "Canary" >> RunInference(handler).with_resource_hints(**self.hints).with_output_types(pa.RecordBatch)
        )
        canary |= "Canary vectors" >> beam.Map(canary_of)
        reports = [
            read.read,
            read.rejected | "Write rejected" >> beam.ParDo(write),
            canary,
        ]
        new = rows
        if job.bits:
            reuse = ReuseVectors(self.batch_size, file_io=job.file_io)
            same = AsSingleton(canary | "Same model" >> beam.Map(agrees, job.canary, job.dtype))
            met = rows | "Known" >> JoinWithEarlierVectors(job.earlier, reuse, job.bits, spill, same)
            new = met.new
            reports.append(met.known | "Write reused" >> beam.ParDo(write))
        if job.bits and job.fields.id is not None:
            reports.append(rows | "Ids" >> DuplicateIds(job.bits, spill))
        reports.append(new | "Model" >> EmbedAndWrite(handler, write).with_resource_hints(**self.hints))
        return (
            reports
            | "Reports" >> beam.Flatten()
            | "Together" >> beam.Map(lambda report: (None, report))
            | "All" >> beam.GroupByKey()
            | "Publish" >> beam.ParDo(Publish(job, self.snapshot, started))
        )

    def close(self) -> None:
        """Give the run directory up."""
        if self._lock:
            self._lock.release()
        if self.local and self.snapshot:  # elsewhere the job may go on when its launcher ends
            end_run(self.job.output, self.snapshot)
        if self._aside:
            self._aside.cleanup()


class EmbedAndWrite(beam.PTransform):  # type: ignore[misc]
    """Model and writer on the same worker: vectors go to a file, never through a shuffle."""

    def __init__(self, handler: RecordBatchHandler, write: WriteFiles) -> None:
        super().__init__()
        self.handler, self.write = handler, write

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        """Hashed row batches -> what the files made of them hold."""
        embedded = rows | "Embed" >> RunInference(self.handler).with_output_types(pa.RecordBatch)
        return embedded | "Write" >> beam.ParDo(self.write)
