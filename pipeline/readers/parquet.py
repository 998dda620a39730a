"""Rows of Parquet: batches of the columns that the fields need, and a look at each row of a batch that is not clean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...model.head import BadRow
from ..errors import first_line
from .arrow_values import (
    as_strings,
    cast_kept,
    kept_values,
    needed_columns,
    records_of,
    repeated_name,
    row_bytes,
    type_at,
)
from .batch_builder import BatchBuilder
from .compression import BLOCK_ROWS, BadHeader, DamagedShard
from .field_types import check_types
from .fields import Fields
from .parquet_limits import (
    Column,
    ReadAheadFile,
    chunks_can_stay_encoded,
    leaves_of,
    open_parquet,
    rows_at_once,
    type_can_stay_encoded,
)
from .reader import GROUP_BYTES, FieldSummary, too_long
from .shard import BATCH_BYTES, RECORD_BYTES, Batches, Part, Record, Shard

MAX_ROWS = 2**62

MEDIA_RECORD_BYTES = 256 << 20  # of a record with a picture or sound


class ParquetReader:
    """Reader of Parquet, whose files are compressed inside only."""

    has_fields = True
    compressible = False
    has_delimiter = False
    quoting = None
    has_row_groups = True
    group_bytes = GROUP_BYTES

    def read(self, handle: IO[bytes], builder: BatchBuilder) -> Batches:
        """Add every row of every row group that can be read to `builder`."""
        for first, batch in _batches(handle, builder.fields, builder.part):
            if isinstance(batch, BadRow):
                yield from builder.add(first, batch)
                continue
            clean = _clean_rows(first, batch, builder)
            if clean is not None:
                yield from builder.pass_through(first, clean)
                continue
            kept = [kept_values(batch, *pair) for pair in zip(builder.fields.kept, builder.kept, strict=True)]
            yield from builder.add_records(first, records_of(batch), kept, batch.schema)
            yield builder.flush()  # its kept values are slices, each of which keeps the whole column in memory

    def describe_fields(self, handle: IO[bytes], shard: Shard, fields: Fields, summary: FieldSummary) -> None:
        """Add the columns of the file's schema to `summary`."""
        with arrow_damage():
            file, groups = open_parquet(handle)
            schema = file.schema_arrow
        _check_names(schema, fields)
        _check_readable(file, [group.columns for group in groups], needed_columns(schema, fields))
        summary.names.update(dict.fromkeys(schema.names))
        types = {path: kind for path in fields.columns if (kind := type_at(schema, path)) is not None}
        summary.paths.update(types)
        check_types(shard, fields, types)
        for path in fields.kept_paths & types.keys():
            summary.add_kind(path, types[path], shard.path)


def _clean_rows(first: int, batch: pa.RecordBatch, builder: BatchBuilder) -> pa.RecordBatch | None:
    """Return the row batch of `batch`, or None if a row must be looked at by itself."""
    fields = builder.fields
    if not (fields.is_plain and builder.keeps_strings):
        return None
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if not {fields.text, *fields.kept_paths, *([fields.id] if fields.id else [])} <= columns.keys():
        return None
    try:
        text = as_strings(columns[fields.text])
        ids = as_strings(columns[fields.id], ids=True) if fields.id else None
        kept = [
            cast_kept(columns[field.path], field, column.type)
            for field, column in zip(fields.kept, builder.kept, strict=True)
        ]
        for column in (text, ids):
            if column is not None:
                column.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return builder.checked_batch(first, text, ids, kept)


def _check_names(schema: pa.Schema, fields: Fields) -> None:
    """Raise BadHeader if a name on a path of the fields occurs twice."""
    repeated = sorted({name for path in fields.columns if (name := repeated_name(schema, path)) is not None})
    if repeated:
        raise BadHeader(f"the schema has the field {', '.join(map(repr, repeated))} more than once: rename the others")


def _check_readable(file: pq.ParquetFile, groups: Sequence[Sequence[Column]], names: Sequence[str]) -> None:
    """Raise BadHeader if a column that is read is encrypted; others may be."""
    encrypted = [
        name
        for name in names
        for leaf in leaves_of(file.schema, [name])
        if any(leaf < len(group) and group[leaf].encrypted for group in groups)
    ]
    if encrypted:
        raise BadHeader(
            f"the column {', '.join(map(repr, dict.fromkeys(encrypted)))} is encrypted: decrypt the file first, or leave "
            f"the column out"
        )


def row_group_sizes(handle: IO[bytes]) -> list[tuple[int, int, int]]:
    """Return (rows, bytes, place in the footer) of each row group. Raises DamagedShard if the footer is damaged."""
    with arrow_damage():
        file, groups = open_parquet(handle)
        rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        return [
            (count, sum(column.length for column in group.columns), group.place)
            for count, group in zip(rows, groups, strict=True)
        ]


def read_record(handle: IO[bytes], fields: Fields, shard: Shard, row: int, max_bytes: int) -> Record | None:
    """Return the fields of a record by its number.

    None: There is no such row, it is too long, or these fields of its row group have more than `max_bytes` in the file.
    Raises DamagedShard if the file cannot be read up to there.
    """
    with arrow_damage():
        file, groups = open_parquet(handle)
        leaves = leaves_of(file.schema, needed_columns(file.schema_arrow, fields))
        ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(len(groups))], dtype=np.int64)
        number = int(np.searchsorted(ends, row, "right"))
        if number == len(groups) or sum(groups[number].columns[leaf].length for leaf in leaves) > max_bytes:
            return None
        first = int(ends[number]) - file.metadata.row_group(number).num_rows
    part = Part(shard, shard.bytes, first=number, end=number + 1, row=first, place=groups[number].place)
    for start, batch in _batches(handle, fields, part):
        if not isinstance(batch, BadRow) and start <= row < start + batch.num_rows:
            return next(iter(records_of(batch.slice(row - start, 1))))
    return None


def _batches(handle: IO[bytes], fields: Fields, part: Part) -> Iterator[tuple[int, pa.RecordBatch | BadRow]]:
    """Yield (number of the first row, batch) of the columns that the fields need, from every readable row group of a part.

    A BadRow instead of a batch is one row that is too long to be held. Raises DamagedShard at the end if a row group
    could not be read, and at once if the file is not Parquet.
    """
    with arrow_damage():
        opened = _open(handle, fields, part)
    file = opened.file
    first, damage = part.row, None
    for number in range(part.first, file.num_row_groups if part.end is None else part.end):
        row = first
        try:
            with arrow_damage():
                rows = file.metadata.row_group(number).num_rows
                first += max(0, rows)
                if first >= MAX_ROWS:
                    raise ValueError(f"its footer claims {rows:,} rows")
                size = rows_at_once(
                    opened.ahead,
                    file.schema,
                    opened.groups[number - part.first],
                    rows=rows,
                    encoded=opened.encoded,
                    batch_bytes=BATCH_BYTES,
                )
                size = min(size, BLOCK_ROWS)
                for batch in file.iter_batches(size, row_groups=[number], columns=opened.needed, use_threads=False):
                    for piece in _pieces(batch, MEDIA_RECORD_BYTES if fields.by_reference else RECORD_BYTES):
                        start, row = row, row + (1 if isinstance(piece, BadRow) else piece.num_rows)
                        if row > first:  # another part may have the next numbers
                            break
                        yield start, piece
                if row != first:
                    raise ValueError(f"its footer claims {rows:,} rows, and it has another number")
        except DamagedShard as error:
            damage = damage or DamagedShard(f"row group {number} of {file.num_row_groups}: {error}")
            if first >= MAX_ROWS:
                break
        opened.ahead.forget()
    if damage:
        raise damage


@dataclass
class _OpenFile:
    """An open file: the columns `needed`, their chunks by leaf for each row group read, and the leaves that stay encoded."""

    file: pq.ParquetFile
    ahead: ReadAheadFile
    needed: list[str]
    groups: list[dict[int, Column]]
    encoded: set[str]


def _open(handle: IO[bytes], fields: Fields, part: Part) -> _OpenFile:
    file, row_groups = open_parquet(handle, part)
    groups = [group.columns for group in row_groups]
    schema, count = file.schema, len(file.schema)
    expected = len(range(part.first, file.num_row_groups if part.end is None else part.end))
    if any(len(group) != count for group in groups) or len(groups) != expected:
        raise ValueError("its row groups do not have the columns of its schema")
    _check_names(file.schema_arrow, fields)
    needed = needed_columns(file.schema_arrow, fields)
    _check_readable(file, groups, needed)
    # A value that a small file stores once may fill gigabytes of rows: it stays in a dictionary until they are counted.
    candidates = leaves_of(
        schema, [name for name in needed if type_can_stay_encoded(file.schema_arrow.field(name).type)]
    )
    columns = {leaf: schema.column(leaf) for leaf in candidates}
    encoded = {
        column.path
        for leaf, column in columns.items()
        if chunks_can_stay_encoded(column, [group[leaf] for group in groups])
    }
    ahead, leaves = ReadAheadFile(handle), leaves_of(schema, needed)
    file = pq.ParquetFile(ahead, metadata=file.metadata, read_dictionary=sorted(encoded))
    return _OpenFile(file, ahead, needed, [{leaf: group[leaf] for leaf in leaves} for group in groups], encoded)


def _pieces(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch | BadRow]:
    """Yield a batch in pieces that take about BATCH_BYTES each with their dictionaries expanded, a record up to `limit`."""
    sizes = row_bytes(batch)
    long = sizes > limit
    sizes[long] = 0
    cut = np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH_BYTES)) + 1
    ends = np.unique(np.concatenate([cut, np.flatnonzero(long), np.flatnonzero(long) + 1, [batch.num_rows]]))
    start = 0
    for end in ends.tolist():
        if end > start:
            yield too_long(limit) if long[start] else batch.slice(start, end - start)
        start = end


@contextmanager
def arrow_damage() -> Iterator[None]:
    """Raise Arrow's errors about the file as DamagedShard; errors of the file system stay as they are."""
    try:
        yield
    # C++ exceptions that Arrow has no class for become RuntimeError or MemoryError.
    except (pa.ArrowException, OSError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        raise DamagedShard(f"parquet: {first_line(error)}") from error
