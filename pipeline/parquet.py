"""Records of Parquet: batches of the columns that the fields need, and a closer look where a batch is not clean."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .decompress import BLOCK_ROWS, DamagedShard
from .fields import Fields, is_text
from .lines import Records

# What the rows of a batch should take at most, as far as the file's own figures tell.
BATCH_BYTES = 16 << 20


def read_parquet(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """Rows of a Parquet file, as records of the columns that the fields need."""
    for row, batch in parquet_batches(handle, fields):
        yield row, [*parquet_records(batch)]


def parquet_batches(handle: IO[bytes], fields: Fields) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row's number, batch) of the columns that the fields need, from every row group that can be read.

    Raises DamagedShard at the end where one could not, and at once where the file is not Parquet.
    """
    with arrow_damage():
        file = pq.ParquetFile(handle)
        needed = needed_columns(file.schema_arrow, fields)
        # A value that a small file holds once may fill gigabytes of rows: it stays one until its rows are counted.
        once = [name for name in needed if _may_stay_once(file.schema_arrow.field(name).type)]
        file = pq.ParquetFile(handle, metadata=file.metadata, read_dictionary=once)
    first, damage = 0, None
    for number in range(file.num_row_groups):
        row = first
        try:
            with arrow_damage():
                group = file.metadata.row_group(number)
                first += max(0, group.num_rows)
                if first >= 2**62:
                    raise ValueError(f"its footer tells of {group.num_rows:,} rows")
                size = BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)
                size = min(BLOCK_ROWS, max(1, size))
                for batch in file.iter_batches(size, row_groups=[number], columns=needed, use_threads=False):
                    for part in _parts(batch):
                        yield row, part
                        row += part.num_rows
                if row != first:
                    raise ValueError(f"{group.num_rows:,} rows are said to be in it, and it ends elsewhere")
        except DamagedShard as error:
            damage = damage or DamagedShard(f"row group {number} of {file.num_row_groups}: {error}")
            first = max(first, row)  # a number is never given twice, whatever the footer says
            if first >= 2**62:
                break
    if damage:
        raise damage


def _may_stay_once(kind: pa.DataType) -> bool:
    return bool(is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in as many parts as keep each at about BATCH_BYTES when its dictionaries are written out."""
    size = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _may_stay_once(column.type.value_type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            size += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    step = max(1, batch.num_rows * BATCH_BYTES // max(size, BATCH_BYTES))
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)


@contextmanager
def arrow_damage() -> Iterator[None]:
    """Arrow's errors about what it reads as DamagedShard; those of the file system under it as they are."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError, OverflowError) as error:
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
