"""WriteFiles: record batches to Parquet files, each emitted with the counts of its rows when it is finished."""

from __future__ import annotations

import atexit
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from ...model.head import Head
from ..embedded_batch import EmbeddedBatch
from ..errors import convert_write_errors
from ..io.worker_thread import WorkerThread
from ..layout import PART, REJECTED, parquet_name
from ..metrics import count, rows_by_second
from ..schemas import EMBEDDING, rejected_schema
from .parquet_file import REJECTED_OPTIONS, ROW_GROUP, ParquetFileWriter, part_options
from .statistics import FileStats, WrittenFile


class WriteFiles(beam.DoFn):  # type: ignore[misc]
    """Embedded rows to part files and rejected rows to rejected files, with a WrittenFile for each.

    A file is closed when it has `max_rows` rows, and at the end of a bundle. Every attempt uses
    new names, so a bundle that runs twice leaves files that no manifest names, and no row is published twice.

    A batch is written in a thread, while the model embeds the next one; a third one waits until the first is written. An
    error of writing is raised by the next call, in the same bundle.

    Args:
        directory: The run directory.
        head: The head that the rows were embedded with.
        schema: The schema of part files.
        max_rows: The most rows of a file.
        bits: How many bits of a content hash name a bucket: a row group has rows of one bucket. 0 if there are no buckets.
        encoding: That of the vectors, as --vector_encoding names it.
    """

    def __init__(
        self,
        directory: str,
        head: Head,
        schema: pa.Schema,
        max_rows: int,
        *,
        bits: int = 0,
        encoding: str = "plain",
    ) -> None:
        self.directory, self.head, self.max_rows, self.bits = directory, head, max_rows, bits
        self._schema = schema.serialize().to_pybytes()  # a pickled schema loses the element's not null
        self._vectors_at = schema.names.index(EMBEDDING)
        self.part_options = part_options(schema, encoding)
        self.rejected_schema = rejected_schema(head)
        # By what is in a file, PART or REJECTED.
        self._files: dict[str, ParquetFileWriter] = {}
        self._stats: dict[str, FileStats] = {}
        self._copied = FileStats()
        self._model = FileStats()
        self._metrics = Counter[str]()  # of the thread: Beam's metrics are those of the thread that calls `process`
        self._thread: WorkerThread | None = None
        self._writing: Future[list[WrittenFile]] | None = None

    def setup(self) -> None:
        """Deserialize the schema."""
        self.schema = pa.ipc.read_schema(pa.py_buffer(self._schema))

    def start_bundle(self) -> None:
        """Discard the files that a failed bundle left open."""
        if self._writing:
            with suppress(Exception):  # of the failed bundle
                self._writing.result()
        for file in self._files.values():
            file.discard()
        self._writing, self._files, self._stats = None, {}, defaultdict(FileStats)
        self._copied, self._model, self._metrics = FileStats(), FileStats(), Counter()

    def teardown(self) -> None:
        """Delete the files that were not finished, and end the thread."""
        self.start_bundle()
        if self._thread:
            self._thread.end_and_wait()
            atexit.unregister(self._thread.end_and_wait)
            self._thread = None

    def process(self, batch: EmbeddedBatch | pa.RecordBatch) -> Iterator[WrittenFile]:
        """Start to write an embedded batch, among whose rows may be some that the model failed on, or a rejected batch.

        Yields the files that were finished with the batch before it.
        """
        written = self._wait()
        if self._thread is None:
            self._thread = WorkerThread("writer")
            # A process that exits while Arrow writes is aborted.
            atexit.register(self._thread.end_and_wait)
        self._writing = self._thread.submit(lambda: list(self._write_batch(batch)))
        yield from written

    def _wait(self) -> list[WrittenFile]:
        """Wait until the batch before is written; return the files that were finished with it, and count its metrics."""
        if self._writing is None:
            return []
        writing, self._writing = self._writing, None
        written = writing.result()
        for name, rows in self._metrics.items():
            count(name, rows)
        self._metrics.clear()
        for file in written:
            file.stats.count_metrics()
        return written

    def _write_batch(self, batch: EmbeddedBatch | pa.RecordBatch) -> Iterator[WrittenFile]:
        """Write a batch, in the thread."""
        if isinstance(batch, EmbeddedBatch):
            self._model.work += batch.work
            yield from self._write_embedded(batch)
        else:
            yield from self._write_rejected(batch.select(self.rejected_schema.names))

    def _write_embedded(self, batch: EmbeddedBatch) -> Iterator[WrittenFile]:
        """Write the rows of a batch, of which some may have a reason instead of a vector."""
        rows, outcome = batch.rows, batch.outcome
        if "reason" in rows.schema.names and rows.column("reason").null_count < rows.num_rows:
            failed = pc.is_valid(rows.column("reason"))
            rejected = rows.filter(failed).select(self.rejected_schema.names).cast(self.rejected_schema)
            yield from self._write_rejected(rejected)
            rows = rows.filter(pc.invert(failed))
        if outcome != "copied":
            self._model.add_seconds(outcome, rows_by_second(rows.num_rows, batch.work.seconds))
        for start in range(0, rows.num_rows, ROW_GROUP):
            yield from self._write(PART, self._conform(rows.slice(start, ROW_GROUP)), outcome)

    def _write_rejected(self, rows: pa.RecordBatch) -> Iterator[WrittenFile]:
        self._model.add_seconds("rejected", rows_by_second(rows.num_rows))
        yield from self._write(REJECTED, rows, "rejected")

    def _conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns of a part file from `batch`, with one vector per row instead of a dictionary.

        The types of kept fields may not have been known before the run.
        """
        for number, field in enumerate(self.schema):
            if number > self._vectors_at and field.type != batch.schema.field(field.name).type:
                self.schema = self.schema.set(number, field.with_type(batch.schema.field(field.name).type))
        columns = {name: batch.column(name) for name in self.schema.names}
        columns["shard"] = columns["shard"].cast(pa.string())
        vectors = columns[EMBEDDING]
        if isinstance(vectors, pa.DictionaryArray):
            columns[EMBEDDING] = _decode_vectors(vectors)
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=self.schema)

    def _write(self, kind: str, batch: pa.RecordBatch, outcome: str) -> Iterator[WrittenFile]:
        self._metrics[f"rows_{outcome}"] += batch.num_rows
        while batch.num_rows:
            if kind not in self._files:
                name, is_part = parquet_name(kind, uuid.uuid4().hex[:16]), kind == PART
                schema, options = (
                    (self.schema, self.part_options) if is_part else (self.rejected_schema, REJECTED_OPTIONS)
                )
                with convert_write_errors(self.directory):
                    self._files[kind] = ParquetFileWriter(
                        self.directory, name, schema, options, bits=self.bits if is_part else 0
                    )
            file = self._files[kind]
            rows = batch.slice(0, self.max_rows - file.rows)
            began = time.perf_counter()
            with convert_write_errors(self.directory):
                file.add(rows)
            stats = self._stats[kind]
            stats.write_seconds += time.perf_counter() - began
            stats = self._copied if outcome == "copied" else stats
            setattr(stats, outcome, getattr(stats, outcome) + rows.num_rows)
            stats.add_file_rows(rows, self.head)
            batch = batch.slice(rows.num_rows)
            if file.rows >= self.max_rows:
                yield self._finish(kind)

    def _finish(self, kind: str) -> WrittenFile:
        began = time.perf_counter()
        with convert_write_errors(self.directory):
            file = self._files[kind].finish()
        del self._files[kind]  # one that could not be finished is discarded with the bundle
        stats, copied, rows = self._stats.pop(kind), FileStats(), FileStats()
        if kind == PART:
            copied, self._copied = self._copied, copied
        rows += stats
        rows += copied
        stats += self._model
        self._model = FileStats()
        stats.write_seconds += time.perf_counter() - began
        return WrittenFile(rows.described(file), stats, copied)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Finish the open files, and emit the counts of the model's work that belong to no file as well."""
        written, last = self._wait(), [self._finish(key) for key in list(self._files)]
        if self._model:
            last.append(WrittenFile(None, self._model))
        for file in last:
            file.stats.count_metrics()
        self.start_bundle()
        window = GlobalWindow()
        for file in [*written, *last]:
            yield WindowedValue(file, window.max_timestamp(), [window])


def _decode_vectors(vectors: pa.DictionaryArray) -> pa.Array:
    """Return one vector per row. There is no copy if no two rows share a vector, as in most batches."""
    places = vectors.indices.to_numpy()
    if len(places) and bool((np.diff(places) == 1).all()):
        return vectors.dictionary.slice(int(places[0]), len(places))
    return vectors.dictionary.take(vectors.indices)
