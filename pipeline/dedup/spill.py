"""Record batches as bytes, for Beam's shuffle and for files on one machine.

Beam's runner for one machine keeps three to four copies of all shuffled elements in memory. There, pieces go to a spill
file and only references to them are shuffled, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import os
import struct
import uuid

import pyarrow as pa

from ..embedded_batch import encode_stream
from ..errors import convert_write_errors
from ..layout import SPILL
from ..readers.arrow_values import value_type

_END_OF_STREAM = 8  # bytes that end an Arrow IPC stream


class PieceCodec:
    """Codec of batches of one schema, which is not repeated: both sides of a shuffle know it.

    A dictionary-encoded column is encoded by its values, and is dictionary-encoded again when it is decoded.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._ipc = schema.serialize().to_pybytes()  # a pickled pa.Schema forgets which list elements are not null

    def __getstate__(self) -> dict[str, object]:
        return {"_ipc": self._ipc}

    def _schemas(self) -> tuple[pa.Schema, pa.Schema, int]:
        """Return the schema of batches, the plain one that is encoded, and the bytes of the latter in a stream."""
        if not hasattr(self, "_cached"):
            schema = pa.ipc.read_schema(pa.py_buffer(self._ipc))
            plain = pa.schema([field.with_type(value_type(field.type)) for field in schema])
            self._cached = schema, plain, len(plain.serialize())
        return self._cached

    def encode(self, batch: pa.RecordBatch) -> bytes:
        """Return the compressed columns of `batch`."""
        _, plain, header = self._schemas()
        columns = [
            column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns
        ]
        return encode_stream(pa.RecordBatch.from_arrays(columns, schema=plain))[header:-_END_OF_STREAM]

    def decode(self, data: bytes) -> pa.RecordBatch:
        """Return the batch that `encode` was given."""
        schema, plain, _ = self._schemas()
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), plain)
        columns = [
            column.dictionary_encode() if pa.types.is_dictionary(field.type) else column
            for field, column in zip(schema, batch.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


def shrink_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return `batch` with dictionaries of the values that its rows use.

    Rows that were taken from others have the dictionaries of all of these: in memory, and wherever they are encoded.
    """
    columns = [
        column.dictionary_decode().dictionary_encode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def combine_batches(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return several batches of one schema, at least one, as one; RuntimeError if a column would exceed Arrow's 2 GiB."""
    whole = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()
    if len(whole) > 1:
        raise RuntimeError(
            f"{sum(batch.num_rows for batch in batches):,} rows of one bucket contain more than 2 GiB: allow only "
            f"shorter contents, keep fewer fields, or embed with --no_dedupe"
        )
    return whole[0] if whole else batches[0]


class Spill:
    """A file of encoded pieces in `directory`, to be read by reference after it is closed."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, f"{SPILL}{uuid.uuid4().hex}.tmp")
        with convert_write_errors(self.path):
            os.makedirs(directory, exist_ok=True)
            self._handle = open(self.path, "wb")  # noqa: SIM115

    def add(self, piece: bytes) -> bytes:
        """Write a piece, and return a reference to it."""
        offset = self._handle.tell()
        with convert_write_errors(self.path):
            self._handle.write(piece)
        return _REFERENCE.pack(offset, len(piece)) + os.fsencode(self.path)

    def close(self) -> None:
        """Close the file; what was added can be read now."""
        with convert_write_errors(self.path):
            self._handle.close()


_REFERENCE = struct.Struct("<QQ")  # offset and length; the path follows


def read_spilled(reference: bytes) -> bytes:
    """Return the piece that a reference refers to."""
    offset, length = _REFERENCE.unpack_from(reference)
    with open(os.fsdecode(reference[_REFERENCE.size :]), "rb") as handle:
        handle.seek(offset)
        return handle.read(length)
