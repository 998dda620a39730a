"""Record batches to Parquet files: finished under a temporary name, then renamed; what they hold is told downstream."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from .metrics import count, count_file
from .output_file import ROW_GROUP, FileInfo, OutputFile
from .pointer import writing
from .records import REJECTED
from .statistics import histograms, paced


class WriteFiles(beam.DoFn):  # type: ignore[misc]
    """Write embedded batches into part files and rejected rows into rejected files; yield a FileInfo for each.

    A file is closed at `max_rows` rows and at the end of a bundle. Names are new on every attempt, so a bundle that
    runs twice leaves a file that no manifest names, never a row twice.
    """

    def __init__(self, directory: str, schema: pa.Schema, max_rows: int) -> None:
        self.directory, self.max_rows = directory, max_rows
        self._schema = schema.serialize().to_pybytes()  # pickled as a schema it forgets that no element is null
        self.part_options: dict[str, object] = {
            "compression": "zstd",
            "compression_level": 1,
            "use_dictionary": False,
            "write_page_checksum": True,
            "write_statistics": [name for name in schema.names if name != "embedding"],
        }
        if schema.field("embedding").type.value_type == pa.float32():
            self.part_options["use_byte_stream_split"] = ["embedding.list.element"]
        self._files: dict[str, OutputFile] = {}
        self._counts: dict[str, Counter[str]] = {}

    def setup(self) -> None:
        """Read the schema."""
        self.schema = pa.ipc.read_schema(pa.py_buffer(self._schema))

    def start_bundle(self) -> None:
        """Forget what a failed bundle left open."""
        self.teardown()

    def teardown(self) -> None:
        """Remove files that never were finished."""
        for file in self._files.values():
            file.discard()
        self._files, self._counts = {}, {"part": Counter(), "rejected": Counter()}

    def process(self, batch: pa.RecordBatch) -> Iterator[FileInfo]:
        """Take an embedded batch, with or without failed rows, or a rejected one."""
        metadata = batch.schema.metadata or {}
        stats = json.loads(metadata.get(b"stats", b"{}"))
        for name, amount in stats.items():
            self._counts["part"][name] += amount
        if batch.schema.names[: len(REJECTED)] == REJECTED.names:
            yield from self._write("rejected", batch)
            return
        if "reason" in batch.schema.names and batch.column("reason").null_count < batch.num_rows:
            failed = pc.is_valid(batch.column("reason"))
            yield from self._write("rejected", _rejected(batch.filter(failed)))
            batch = batch.filter(pc.invert(failed))
        origin = "reused" if b"reused" in metadata else "embedded"
        took = stats.get("tokenize_seconds", 0) + stats.get("model_seconds", 0)
        self._counts["part"].update(paced(origin, batch.num_rows, took))
        for start in range(0, batch.num_rows, ROW_GROUP):
            part = _conform(batch.slice(start, ROW_GROUP), self.schema)
            self._counts["part"][origin] += part.num_rows
            self._counts["part"]["truncated"] += pc.sum(part.column("truncated")).as_py()
            self._counts["part"].update(histograms(part))
            count(f"rows_{origin}", part.num_rows)
            yield from self._write("part", part)

    def _write(self, kind: str, batch: pa.RecordBatch) -> Iterator[FileInfo]:
        if kind == "rejected":
            for reason in batch.column("reason").to_pylist():
                self._counts[kind][f"rejected: {reason}"] += 1
            self._counts[kind]["rejected"] += batch.num_rows
            self._counts[kind].update(paced("rejected", batch.num_rows))
            count("rows_rejected", batch.num_rows)
        while batch.num_rows:
            if kind not in self._files:
                name = f"{kind}-{uuid.uuid4().hex[:16]}.parquet"
                schema, options = (self.schema, self.part_options) if kind == "part" else (REJECTED, {})
                with writing(self.directory):
                    self._files[kind] = OutputFile(self.directory, name, schema, options)
            file = self._files[kind]
            room = self.max_rows - file.rows
            began = time.perf_counter()
            with writing(self.directory):
                file.add(batch.slice(0, room))
            self._counts[kind]["write_seconds"] += time.perf_counter() - began  # type: ignore[assignment]
            batch = batch.slice(room)
            if file.rows >= self.max_rows:
                yield self._finish(kind)

    def _finish(self, kind: str) -> FileInfo:
        began = time.perf_counter()
        with writing(self.directory):
            info = self._files[kind].finish(self._counts[kind])
        info["counts"]["write_seconds"] += time.perf_counter() - began
        count_file(info["counts"])
        del self._files[kind]
        self._counts[kind] = Counter()
        return info

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Close the open files; a bundle without one still tells what it counted."""
        infos = [self._finish(kind) for kind in list(self._files)]
        left = self._counts["part"] + self._counts["rejected"]
        if left:
            count_file(left)
            infos.append({"name": "", "rows": 0, "bytes": 0, "sha256": "", "row_groups": [], "counts": dict(left)})
        self.teardown()
        window = GlobalWindow()
        for info in infos:
            yield WindowedValue(info, window.max_timestamp(), [window])


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema` out of `batch`, with every vector spelled out."""
    columns = [batch.column(name) for name in schema.names]
    vectors = batch.column("embedding")
    if isinstance(vectors, pa.DictionaryArray):
        columns[schema.get_field_index("embedding")] = _spelled_out(vectors)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _spelled_out(vectors: pa.DictionaryArray) -> pa.Array:
    """A vector for each row; without a copy where no two rows of the batch share one, as in most batches."""
    places = vectors.indices.to_numpy()
    if len(places) and bool((np.diff(places) == 1).all()):
        return vectors.dictionary.slice(int(places[0]), len(places))
    return vectors.dictionary.take(vectors.indices)


def _rejected(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows that the model did not take, as rejected rows."""
    columns = [
        batch.column("shard").cast(pa.string()),
        batch.column("row").cast(pa.string()),
        *(batch.column(name) for name in ("id", "text", "reason", "detail")),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REJECTED)
