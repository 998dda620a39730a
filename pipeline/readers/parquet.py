"""Records of Parquet: batches of the columns that the fields need, and a closer look where a batch is not clean."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .base import RECORD_BYTES, Records, too_long
from .compression import BLOCK_ROWS, DamagedShard
from .fields import BadRow, Fields, is_text
from .parquet_limits import (
    VALUE_BYTES,
    Ahead,
    Column,
    can_stay_once,
    leaves_of,
    may_stay_once,
    open_parquet,
    rows_at_once,
)

# What the rows of a batch should take at most, as far as the file's own figures tell.
BATCH_BYTES = 16 << 20


def read_parquet(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """Rows of a Parquet file, as records of the columns that the fields need."""
    for row, batch in parquet_batches(handle, fields):
        yield row, [batch] if isinstance(batch, BadRow) else [*parquet_records(batch)]


def parquet_batches(handle: IO[bytes], fields: Fields) -> Iterator[tuple[int, pa.RecordBatch | BadRow]]:
    """(first row's number, batch) of the columns that the fields need, from every row group that can be read.

    A BadRow in a batch's place is one row that is too long to be held. Raises DamagedShard at the end where a row group
    could not be read, and at once where the file is not Parquet.
    """
    with arrow_damage():
        reading = _opened(handle, fields)
    file = reading.file
    first, damage = 0, None
    for number in range(file.num_row_groups):
        row = first
        try:
            with arrow_damage():
                rows = file.metadata.row_group(number).num_rows
                first += max(0, rows)
                if first >= 2**62:
                    raise ValueError(f"its footer tells of {rows:,} rows")
                chunks, once = reading.groups[number], reading.once
                size = rows_at_once(reading.ahead, file.schema, chunks, rows=rows, once=once, batch_bytes=BATCH_BYTES)
                size = min(size, BLOCK_ROWS)
                for batch in file.iter_batches(size, row_groups=[number], columns=reading.needed, use_threads=False):
                    for part in _parts(batch):
                        yield row, part
                        row += 1 if isinstance(part, BadRow) else part.num_rows
                if row != first:
                    raise ValueError(f"{rows:,} rows are said to be in it, and it ends elsewhere")
        except DamagedShard as error:
            damage = damage or DamagedShard(f"row group {number} of {file.num_row_groups}: {error}")
            first = max(first, row)  # a number is never given twice, whatever the footer says
            if first >= 2**62:
                break
        reading.ahead.forget()
    if damage:
        raise damage


@dataclass
class _Reading:
    """A file as it is read: the columns `needed`, their chunks by leaf for each row group, and the leaves kept `once`."""

    file: pq.ParquetFile
    ahead: Ahead
    needed: list[str]
    groups: list[dict[int, Column]]
    once: set[str]


def _opened(handle: IO[bytes], fields: Fields) -> _Reading:
    file, groups = open_parquet(handle)
    schema, count = file.schema, len(file.schema)
    if any(len(group) != count for group in groups) or len(groups) != file.num_row_groups:
        raise ValueError("its row groups do not have the columns of its schema")
    needed = needed_columns(file.schema_arrow, fields)
    # A value that a small file holds once may fill gigabytes of rows: it stays one until its rows are counted.
    whole = leaves_of(schema, [name for name in needed if may_stay_once(file.schema_arrow.field(name).type)])
    columns = {leaf: schema.column(leaf) for leaf in whole}
    once = {column.path for leaf, column in columns.items() if can_stay_once(column, [group[leaf] for group in groups])}
    ahead, leaves = Ahead(handle), leaves_of(schema, needed)
    file = pq.ParquetFile(ahead, metadata=file.metadata, read_dictionary=sorted(once))
    return _Reading(file, ahead, needed, [{leaf: group[leaf] for leaf in leaves} for group in groups], once)


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | BadRow]:
    """A batch in as many parts as keep each at about BATCH_BYTES when its dictionaries are written out."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += row_bytes(column)
    long = sizes > RECORD_BYTES
    sizes[long] = 0
    cut = np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH_BYTES)) + 1
    ends = np.unique(np.concatenate([cut, np.flatnonzero(long), np.flatnonzero(long) + 1, [batch.num_rows]]))
    start = 0
    for end in ends.tolist():
        if end > start:
            yield too_long(RECORD_BYTES) if long[start] else batch.slice(start, end - start)
        start = end


def row_bytes(column: pa.Array) -> NDArray[np.int64]:
    """About how many bytes each row of a column takes when its dictionaries are written out [n]."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        inside = row_bytes(column.dictionary)
        ends = pc.min_max(column.indices).as_py()
        if ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < len(inside):
            raise ValueError(f"an index leads out of a dictionary of {len(inside):,} values")
        longest = int(inside.max(initial=0))
        if longest * len(column) <= BATCH_BYTES >> 4:  # no need to know which
            return np.full(len(column), longest, np.int64)
        return np.asarray(pa.array(inside).take(column.indices).fill_null(0))
    if is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        lengths = pc.binary_length(column.cast(pa.large_binary()) if pa.types.is_string_view(kind) else column)
        return np.asarray(lengths.fill_null(0) if lengths.null_count else lengths).astype(np.int64)
    if pa.types.is_struct(kind):
        return sum((row_bytes(part) for part in column.flatten()), np.zeros(len(column), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = np.asarray(pc.list_value_length(column).cast(pa.int64()).fill_null(0))
        sums = np.concatenate([[0], np.cumsum(row_bytes(column.flatten()))])
        ends = np.cumsum(lengths)
        return np.asarray(sums[ends] - sums[ends - lengths] + VALUE_BYTES * lengths)
    return np.full(len(column), column.nbytes // max(1, len(column)) + 1, np.int64)


@contextmanager
def arrow_damage() -> Iterator[None]:
    """Arrow's errors about what it reads as DamagedShard; those of the file system under it as they are."""
    try:
        yield
    # What Arrow's C++ throws without a name of its own comes as RuntimeError or MemoryError.
    except (pa.ArrowException, OSError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        raise DamagedShard(f"parquet: {(str(error).splitlines() or ['not readable'])[0]}") from error


def needed_columns(schema: pa.Schema, fields: Fields) -> list[str]:
    """The columns that the fields' paths begin with."""
    return [name for name in schema.names if any(_begins(path, name) for path in fields.columns)]


def _begins(path: str, name: str) -> bool:
    return path == name or path.startswith((f"{name}.", f"{name}[]"))


def parquet_records(batch: pa.RecordBatch) -> list[dict[str, object]]:
    """A batch as records; strings that Arrow did not check come as bytes where one in the column is not UTF-8."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [plain_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def column_at(batch: pa.RecordBatch, path: str) -> pa.Array | None:
    """The column at a dotted path, as `lookup` goes; None where there is none."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    while path not in columns:
        head = next((name for name in columns if path.startswith(f"{name}.") and _is_struct(columns[name])), None)
        if head is None:
            return None
        column, path = columns[head], path.removeprefix(f"{head}.")
        columns = dict(zip([field.name for field in column.type], column.flatten(), strict=True))
    return columns[path]


def _is_struct(column: pa.Array) -> bool:
    return bool(pa.types.is_struct(column.type))


def plain_values(column: pa.Array) -> list[object]:
    """The values of a column as Python's; what Python has no value for comes as an array of one."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain_values(column.dictionary_decode())
    if is_text(kind):
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError:
            binary = pa.binary() if pa.types.is_string_view(kind) else pa.large_binary()
            return list(column.cast(binary).to_pylist())
    if pa.types.is_struct(kind):
        parts = [plain_values(part) for part in column.flatten()]
        names = [field.name for field in kind]
        rows = zip(*parts, strict=True) if parts else ((),) * len(column)
        return [
            dict(zip(names, row, strict=True)) if ok else None for row, ok in zip(rows, _there(column), strict=True)
        ]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = iter(plain_values(column.flatten()))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if length is None else list(itertools.islice(values, length)) for length in lengths]
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, KeyError):  # nanoseconds, years after 9999, time zones that are not known
        return [column.slice(row, 1) if ok else None for row, ok in enumerate(_there(column))]


def _there(column: pa.Array) -> list[bool]:
    return list(column.is_valid().to_pylist())
