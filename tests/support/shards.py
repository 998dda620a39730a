"""Shards on disk, and the rows and rejected rows that are read from them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import zstandard

from audioclip_beam.model.text.head import MAX_TEXT_BYTES, TEXT
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.readers import infer_schema, read_shards
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.notes import ShardNotes
from audioclip_beam.pipeline.readers.read_settings import ReadSettings
from audioclip_beam.pipeline.readers.shard import Batches, Shard
from audioclip_beam.pipeline.schemas import reasons_of, rejected_schema, row_schema

# Of the text head.
ROW, REJECTED, REASONS = row_schema(TEXT), rejected_schema(TEXT), reasons_of(TEXT)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
Row = dict[str, object]


def read_settings(
    fields: Fields, kept: pa.Schema, limit: int = MAX_TEXT_BYTES, file_io: FileIO | None = None
) -> ReadSettings:
    """Return how texts are read."""
    return ReadSettings(TEXT, fields, kept, limit, file_io or FileIO())


def infer_kept_schema(
    shards: Sequence[Shard], fields: Fields, file_io: FileIO | None = None, known: pa.Schema | None = None
) -> pa.Schema:
    """Return the kept fields of shards of texts."""
    return infer_schema.infer_kept_schema(shards, TEXT, fields, file_io or FileIO(), known)


def read_shard(
    shard: Shard,
    fields: Fields,
    kept: pa.Schema,
    limit: int = MAX_TEXT_BYTES,
    *,
    file_io: FileIO | None = None,
    notes: ShardNotes | None = None,
) -> Batches:
    """Yield the row batches and rejected batches of a shard of texts."""
    return read_shards.read_shard(shard, read_settings(fields, kept, limit, file_io), notes)


def read_rows(
    path: Path,
    limit: int = MAX_TEXT_BYTES,
    *,
    kept: pa.Schema | None = None,
    file_io: FileIO | None = None,
    quoting: str | None = None,
    escape: str | None = None,
    **fields: object,
) -> tuple[list[Row], list[Row]]:
    """Return the rows and rejected rows of the shard at `path`, and check what is true of every shard.

    Without the schema `kept` the shard is peeked at first, as in a run.
    """
    (shard,) = find_shards([str(path)], quoting=quoting, escape=escape)
    chosen = Fields(**fields)  # type: ignore[arg-type]
    kept = infer_kept_schema([shard], chosen) if kept is None else kept
    rows, rejected = list[Row](), list[Row]()
    for good, bad in read_shard(shard, chosen, kept, limit, file_io=file_io):
        good.validate(full=True)
        bad.validate(full=True)
        assert good.schema == pa.schema([*ROW, *kept])
        assert bad.schema == REJECTED
        assert good.num_rows <= 4096
        rows += good.to_pylist()
        rejected += bad.to_pylist()
    assert {row["reason"] for row in rejected} <= set(REASONS)
    assert {row["shard"] for row in rows + rejected} <= {shard.name}
    return rows, rejected


def texts(rows: Sequence[Row]) -> list[object]:
    return [row["text"] for row in rows]


def ids(rows: Sequence[Row]) -> list[object]:
    return [row["id"] for row in rows]


def reasons(rejected: Sequence[Row]) -> list[tuple[object, object]]:
    """Return (row, reason) of each rejected row."""
    return [(row["row"], row["reason"]) for row in rejected]


def write_lines(path: Path, *lines: object) -> Path:
    """Write a file of these lines: bytes unchanged, anything else as JSON."""
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def encode_rows(form: str, rows: Sequence[Mapping[str, str]]) -> bytes:
    """Return the rows in a text format, not compressed; the first column is the id, the second the text."""
    if form == "txt":
        return "".join(row["text"] + "\n" for row in rows).encode()
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "text"], delimiter="," if form == "csv" else "\t")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
