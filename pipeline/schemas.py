"""The Arrow schemas of everything that flows, and nothing else.

A row batch goes from the reader to the encoder, an embedded batch from the encoder into part files, and a rejected
batch says of each row that could not be embedded where it stood and why.
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

# What a reader makes of a shard; the kept fields stand behind these columns. `row` counts from 0, bad rows included.
ROW = pa.schema(
    [
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)

# Stands behind a row's other columns once it is hashed: blake2b-128 of the text as it enters the tokenizer.
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

# Where earlier vectors lie: a row group of a finished part file, and the range of hash prefixes in it.
EARLIER = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
    ]
)

# The columns that the model makes, and that a reused row takes from an earlier snapshot.
MODEL_COLUMNS = ("n_tokens", "truncated", "embedding")


def vector_type(dim: int, stored: str = "float32") -> pa.DataType:
    """Arrow type of one `dim`-vector; `stored` is "float32" or "float16"."""
    element = pa.float16() if stored == "float16" else pa.float32()
    return pa.list_(pa.field("element", element, nullable=False), dim)


def embedded_schema(dim: int, kept: pa.Schema, *, stored: str = "float32", text: bool = True) -> pa.Schema:
    """Schema of a part file: vectors of `dim` numbers, and the kept fields behind them."""
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
