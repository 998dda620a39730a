"""The Arrow schemas of all data in the pipeline, and nothing else.

Row batches go from the readers to the encoder, embedded batches from the encoder to the part files. Rejected batches
hold the rows that could not be embedded, each with its shard, its row number and the reason.
"""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa

Reason = Literal[
    "empty text",
    "null text",
    "missing field",
    "wrong type",
    "not UTF-8",
    "malformed record",
    "damaged shard",
    "too long",
    "model error",
    "non-finite vector",
]


REASONS: tuple[Reason, ...] = get_args(Reason)

# What a reader makes of a shard; the kept fields follow these columns. `row` counts from 0 and includes rejected rows.
ROW = pa.schema(
    [
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)

# What ReadShards adds to row batches and rejected batches: the number of the segment of the snapshot that they belong to.
SEGMENT = pa.field("_segment", pa.int8(), nullable=False)

# The last column of a hashed row batch: blake2b-128 of the text as it enters the tokenizer.
TEXT_HASH = pa.field("text_hash", pa.binary(16), nullable=False)

REJECTED = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

# The columns that the model computes; a reused row has those of an earlier snapshot.
MODEL_COLUMNS = ("n_tokens", "truncated", "embedding")


def vector_type(dim: int, stored: str = "float32") -> pa.DataType:
    """Return the Arrow type of one vector of `dim` numbers; `stored` is "float32" or "float16"."""
    element = pa.float16() if stored == "float16" else pa.float32()
    return pa.list_(pa.field("element", element, nullable=False), dim)


def embedded_schema(dim: int, kept: pa.Schema, *, stored: str = "float32", text: bool = True) -> pa.Schema:
    """Return the schema of a part file: vectors of `dim` numbers, followed by the fields of `kept`."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        TEXT_HASH,
        pa.field("n_tokens", pa.int16(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("embedding", vector_type(dim, stored), nullable=False),
        *kept,
    ]
    return pa.schema([field for field in fields if text or field.name != "text"])


def kept_fields(schema: pa.Schema) -> pa.Schema:
    """Return the kept fields of the schema of a part file."""
    return pa.schema(list(schema)[schema.names.index("embedding") + 1 :])
