"""Record batches as bytes: through Beam's shuffle, or on one machine through a file beside the output.

Beam's runner for one machine keeps three to four copies of all that is shuffled in memory. There, batches go to a file
and only references to them are shuffled, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import os
import uuid

import apache_beam as beam
import pyarrow as pa

from ..errors import convert_write_errors

# Where a batch lies in a spill file.
SPILLED = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
    ]
)


_OPTIONS = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))


class RecordBatchCoder(beam.coders.Coder):  # type: ignore[misc]
    """Record batches as compressed Arrow IPC streams."""

    def encode(self, batch: pa.RecordBatch) -> bytes:
        """One stream with the schema and the batch."""
        return to_bytes(batch)

    def decode(self, data: bytes) -> pa.RecordBatch:
        """The batch that `encode` was given."""
        return from_bytes(data)

    def estimate_size(self, batch: pa.RecordBatch) -> int:
        """Bytes of the columns: Beam's default encodes a batch to see how long it is."""
        return int(batch.nbytes)

    def is_deterministic(self) -> bool:
        """Record batches are no keys."""
        return False


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


def to_bytes(batch: pa.RecordBatch) -> bytes:
    """A batch with its schema, compressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def from_bytes(data: bytes) -> pa.RecordBatch:
    """The batch that `to_bytes` was given."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


def combine_batches(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Several batches of one schema, at least one, as one; RuntimeError where a column would pass Arrow's 2 GiB."""
    whole = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()
    if len(whole) > 1:
        raise RuntimeError(
            f"{sum(batch.num_rows for batch in batches):,} rows that belong together hold more than 2 GiB of text: lower "
            f"--max_text_bytes, keep fewer fields, or embed with --no_dedupe"
        )
    return whole[0] if whole else batches[0]


class Spill:
    """A file of batches in `directory`, to be read by reference once it is closed."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, f"spill-{uuid.uuid4().hex}.tmp")
        with convert_write_errors(self.path):
            os.makedirs(directory, exist_ok=True)
            self._handle = open(self.path, "wb")  # noqa: SIM115

    def add(self, batch: pa.RecordBatch) -> tuple[int, int]:
        """Write a batch; gives its (offset, length)."""
        data = to_bytes(batch)
        offset = self._handle.tell()
        with convert_write_errors(self.path):
            self._handle.write(data)
        return offset, len(data)

    def close(self) -> None:
        """What was added can be read from now on."""
        with convert_write_errors(self.path):
            self._handle.close()


def read_spilled(reference: pa.RecordBatch) -> list[pa.RecordBatch]:
    """The batches that a batch of references stands for."""
    batches = []
    for path, offset, length in zip(*(column.to_pylist() for column in reference.columns), strict=True):
        with open(path, "rb") as handle:
            handle.seek(offset)
            batches.append(from_bytes(handle.read(length)))
    return batches
