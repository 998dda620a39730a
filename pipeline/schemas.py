"""The Arrow schemas of all data in the pipeline, and nothing else; a head says which columns it adds.

Row batches go from the readers to the encoder, embedded batches from the encoder to the part files. Rejected batches
contain the rows that could not be embedded, each with its shard, its row number and the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow as pa

from ..model.head import Column, Head

# Reasons of rejected rows that every head has.
REASONS = (
    "missing field",
    "wrong type",
    "not UTF-8",
    "malformed record",
    "damaged shard",
    "too long",
    "model error",
    "non-finite vector",
)

# Those for which a row may not be rejected if it is read again.
PASSING_REASONS = ("missing file", "model error")

SHARD = pa.field("shard", pa.string(), nullable=False)

ID = pa.field("id", pa.string(), nullable=False)

# What ReadShards adds to row batches while types of kept fields are not known: JSON of the values that do not fit their
# columns, by the number of the kept field.
UNSETTLED = pa.field("_unsettled", pa.string())

# The last column of a hashed row batch: blake2b-128 of the content.
CONTENT_HASH = pa.field("content_hash", pa.binary(16), nullable=False)

EMBEDDING = "embedding"

# A reference to the content of a row: the columns of Parquet's type FILE. It names the file that a user knows.
FILE = pa.struct(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("content_type", pa.string()),
        pa.field("checksum", pa.string()),
    ]
)

# The place of the bytes of a row's content, which may be in a spill file; part files do not have it.
SOURCE = pa.field(
    "_source",
    pa.struct(
        [
            pa.field("path", pa.binary(), nullable=False),
            pa.field("bytes", pa.int64(), nullable=False),  # of the whole file
            pa.field("version", pa.string(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("units", pa.int64(), nullable=False),
        ]
    ),
    nullable=False,
)

_REASON_COLUMNS = (pa.field("reason", pa.string(), nullable=False), pa.field("detail", pa.string(), nullable=False))


def reasons_of(head: Head) -> tuple[str, ...]:
    """Return all reasons for which a row of a head may be rejected, in the order in which they are listed."""
    return *head.reasons, *REASONS


def arrow_field(column: Column, *, nullable: bool = False) -> pa.Field:
    """Return a head's column as a field of Arrow."""
    return pa.field(column.name, FILE if column.type == "file" else pa.type_for_alias(column.type), nullable=nullable)


def content_fields(head: Head, *, nullable: bool = False) -> list[pa.Field]:
    """Return the columns with the contents of rows, or with the references to them, as readers give them."""
    return [arrow_field(column, nullable=nullable) for column in (head.content, *head.content_columns)]


def row_schema(head: Head, kept: Iterable[pa.Field] = ()) -> pa.Schema:
    """Return what a reader makes of a shard; `row` counts from 0 and includes rejected rows.

    With references to contents, readers have hashed these.
    """
    return pa.schema(
        [
            SHARD.with_type(pa.dictionary(pa.int32(), pa.string())),
            pa.field("row", pa.int64(), nullable=False),
            ID,
            *content_fields(head),
            *([SOURCE] if head.by_reference else []),
            *kept,
            *([CONTENT_HASH] if head.by_reference else []),
        ]
    )


def hashed_schema(head: Head, kept: Iterable[pa.Field] = ()) -> pa.Schema:
    """Return the schema of row batches that are joined with earlier vectors."""
    schema = row_schema(head, kept)
    return schema if head.by_reference else schema.append(CONTENT_HASH)


def rejected_schema(head: Head) -> pa.Schema:
    """Return the schema of rejected rows: their content is what is known of it."""
    row, contents = pa.field("row", pa.string(), nullable=False), content_fields(head, nullable=True)
    return pa.schema([SHARD, row, ID.with_nullable(True), *contents, *_REASON_COLUMNS])


def model_columns(head: Head) -> tuple[str, ...]:
    """Return the names of the columns that the model computes; a reused row has those of an earlier snapshot."""
    return *(column.name for column in head.model_columns), EMBEDDING


def vector_type(dim: int, stored: str = "float32") -> pa.DataType:
    """Return the Arrow type of one vector of `dim` numbers; `stored` is "float32" or "float16"."""
    element = pa.float16() if stored == "float16" else pa.float32()
    return pa.list_(pa.field("element", element, nullable=False), dim)


def part_schema(
    head: Head,
    dim: int,
    kept: Iterable[pa.Field] = (),
    *,
    stored: str = "float32",
    omitted: Collection[str] = (),
) -> pa.Schema:
    """Return the schema of a part file.

    Args:
        head: The head that the rows were embedded with.
        dim: Numbers per vector.
        kept: The kept fields, which are the last columns.
        stored: The type of these numbers, "float32" or "float16".
        omitted: Columns that are left out.
    """
    columns = [
        ID,
        CONTENT_HASH,
        SHARD,
        *content_fields(head),
        *map(arrow_field, head.model_columns),
        pa.field(EMBEDDING, vector_type(dim, stored), nullable=False),
        *kept,
    ]
    return pa.schema([column for column in columns if column.name not in omitted])


def kept_fields(schema: pa.Schema) -> pa.Schema:
    """Return the kept fields of the schema of a part file."""
    return pa.schema(list(schema)[schema.names.index(EMBEDDING) + 1 :])
