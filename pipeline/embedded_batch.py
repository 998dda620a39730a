"""EmbeddedBatch: what goes from the model, or from earlier files, to the writer."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa

from ..model.head import Work

_OPTIONS = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))


def encode_stream(batch: pa.RecordBatch) -> bytes:
    """Return a record batch as a compressed Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def decode_stream(data: bytes) -> pa.RecordBatch:
    """Return the record batch that `encode_stream` was given."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


@dataclass(frozen=True)
class EmbeddedBatch:
    """Rows with the head's model columns, a vector each, and how they got them.

    Attributes:
        rows: Among them may be rows that the model failed on, which have a `reason` and a `detail`.
        work: What the model did for them.
        outcome: "embedded" by the model, "reused" from earlier part files, or "copied": rows that were not read.
    """

    rows: pa.RecordBatch
    work: Work = field(default_factory=Work)
    outcome: str = "embedded"


class RecordBatchCoder(beam.coders.Coder):  # type: ignore[misc]
    """Coder of record batches as compressed Arrow IPC streams."""

    def encode(self, batch: pa.RecordBatch) -> bytes:
        """Return one stream of the schema and the batch."""
        return encode_stream(batch)

    def decode(self, data: bytes) -> pa.RecordBatch:
        """Return the batch that `encode` was given."""
        return decode_stream(data)

    def estimate_size(self, batch: pa.RecordBatch) -> int:
        """Return the bytes of the columns; Beam's default encodes a batch to see how long it is."""
        return int(batch.nbytes)

    def is_deterministic(self) -> bool:
        """Return False: record batches are not keys."""
        return False


class EmbeddedBatchCoder(RecordBatchCoder):
    """Coder of embedded batches: their work and the stream of their rows."""

    def encode(self, batch: EmbeddedBatch) -> bytes:
        """Return all fields."""
        return pickle.dumps((encode_stream(batch.rows), batch.work, batch.outcome))

    def decode(self, data: bytes) -> EmbeddedBatch:
        """Return the batch that `encode` was given."""
        stream, work, outcome = pickle.loads(data)
        return EmbeddedBatch(decode_stream(stream), work, outcome)

    def estimate_size(self, batch: EmbeddedBatch) -> int:
        """Return the bytes of the columns."""
        return int(batch.rows.nbytes)


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
beam.coders.registry.register_coder(EmbeddedBatch, EmbeddedBatchCoder)
