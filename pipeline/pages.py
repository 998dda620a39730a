"""What a Parquet file would grow to, told by its own pages before Arrow reads them, and refused where it is too much.

A footer may lie, and 81 honest bytes can hold 50 million values of one row. Arrow allocates what it is told, so the
schema's depth and the header of each page that is going to be read are looked at first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from .ahead import Ahead
from .thrift import Compact, ThriftError, Value

MAX_DEPTH = 100  # of a schema; Arrow walks it by recursion
PAGE_BYTES = 256 << 20  # of one page, unpacked: that is how Arrow holds it
NESTED_BYTES, NESTED_VALUES = 512 << 20, 16 << 20  # of one column of lists in a row group: all may be one row's
VALUE_BYTES = 8  # levels and index of a value, whatever its size
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_LEAVES_DICTIONARIES = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
_PLAIN_DICTIONARY, _DELTA_BYTE_ARRAY, _RLE_DICTIONARY = 2, 7, 8


@dataclass
class _Chunk:
    """What a column of a row group may take in memory: in all, and by row where a row is a value."""

    total: int = 0
    values: int = 0
    row: int = VALUE_BYTES


def open_parquet(handle: IO[bytes]) -> pq.ParquetFile:
    """`handle` as a Parquet file; ThriftError where its schema is too deep for Arrow, an Arrow error where it is none."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - 8))
    tail = handle.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] == b"PAR1" and length <= size - 12:  # anything else Arrow has words for
        handle.seek(size - 8 - length)
        _check_depth(Compact(handle.read(length)).struct().get(2))
    handle.seek(0)
    return pq.ParquetFile(handle)


def _check_depth(elements: Value) -> None:
    """The schema is a list of elements in depth-first order, each with the number of its children."""
    open_at: list[int] = []  # children still to come, by level
    for element in elements if isinstance(elements, list) else []:
        while open_at and open_at[-1] <= 0:
            open_at.pop()
        if open_at:
            open_at[-1] -= 1
        children = element.get(5) if isinstance(element, dict) else None
        open_at.append(children if isinstance(children, int) else 0)
        if len(open_at) > MAX_DEPTH:
            raise ThriftError(f"its schema is nested over {MAX_DEPTH} deep")


def rows_at_once(
    ahead: Ahead, file: pq.ParquetFile, row_group: int, leaves: list[int], *, once: set[str], batch_bytes: int
) -> int:
    """How many rows of a row group may be read at once, at least 1, for a batch to stay at about `batch_bytes`.

    `leaves` are the columns that will be read, `once` those of them whose values stay in their dictionary. Raises
    ThriftError where a page, or what may be one row, is larger than anybody should hold.
    """
    group = file.metadata.row_group(row_group)
    rows = max(1, group.num_rows)
    most = batch_bytes
    for leaf in leaves:
        column, path = file.schema.column(leaf), file.schema.column(leaf).path
        width = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
        if column.physical_type != "BYTE_ARRAY":
            width = max(width, VALUE_BYTES)
        chunk = _measured(ahead, group.column(leaf), path in once, width)
        if column.max_repetition_level:
            if chunk.total > NESTED_BYTES or chunk.values > NESTED_VALUES:
                raise ThriftError(
                    f"column {path} of the row group has {chunk.values:,} values in {chunk.total:,} bytes, over "
                    f"{NESTED_VALUES:,} or {NESTED_BYTES:,}, and all may be one row's: write smaller row groups"
                )
            most = min(most, batch_bytes * rows // max(1, chunk.total))
        else:
            most = min(most, batch_bytes // chunk.row)
    return max(1, most)


def _measured(ahead: Ahead, column: pq.ColumnChunkMetaData, once: bool, width: int) -> _Chunk:
    """What the pages of a column take; `width` is that of its values where they all have one, else 0."""
    start, length = column.data_page_offset, column.total_compressed_size
    if column.has_dictionary_page and 0 < (column.dictionary_page_offset or 0) < start:
        start = column.dictionary_page_offset
    compact, found, dictionary = Compact(ahead.load(start, length)), _Chunk(), 0
    while compact.at < length and found.values < column.num_values:  # Arrow stops there, and so may what was written
        header = compact.struct()
        size, packed = header.get(2), header.get(3)
        if not isinstance(size, int) or not isinstance(packed, int) or size < 0 or packed < 0:
            raise ThriftError("a page does not say how long it is")
        if size > PAGE_BYTES:
            raise ThriftError(f"a page of {size:,} bytes is more than {PAGE_BYTES:,}: write smaller pages")
        compact.at += packed
        kind = header.get(1)
        if kind in (_DATA_PAGE, _DATA_PAGE_V2):
            data = header.get(5 if kind == _DATA_PAGE else 8)
            fields = data if isinstance(data, dict) else {}
            values, encoding = fields.get(1), fields.get(2 if kind == _DATA_PAGE else 4)
            if not isinstance(values, int) or values < 0:
                raise ThriftError("a page does not say how many values it holds")
            if encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
                value = width or (0 if once else dictionary)
            elif encoding == _DELTA_BYTE_ARRAY:  # each value may repeat the one before it
                value = size
            else:
                value = max(width, -(-size // max(1, values)))
            found.values += values
            found.total += values * (value + VALUE_BYTES)
            found.row = max(found.row, value + VALUE_BYTES)
        elif kind == _DICTIONARY_PAGE:
            dictionary = max(dictionary, size)
    return found


def leaves_of(schema: pq.ParquetSchema, names: list[str]) -> list[int]:
    """The numbers of the leaf columns below the columns `names`."""
    return [
        leaf
        for leaf in range(len(schema))
        if any(schema.column(leaf).path == name or schema.column(leaf).path.startswith(f"{name}.") for name in names)
    ]


def can_stay_once(metadata: pq.FileMetaData, leaf: int) -> bool:
    """Whether Arrow can leave the values of a leaf in their dictionary, by how the file says it has encoded them."""
    groups = (metadata.row_group(number).column(leaf) for number in range(metadata.num_row_groups))
    column = metadata.schema.column(leaf)
    return (
        column.physical_type == "BYTE_ARRAY"
        and column.logical_type.type != "DECIMAL"
        and all(set(group.encodings) <= _LEAVES_DICTIONARIES for group in groups)
    )


def may_stay_once(kind: pa.DataType) -> bool:
    """Whether all texts and bytes in a column of this type can stay in their dictionary: they can but inside of maps."""
    if pa.types.is_struct(kind):
        return all(may_stay_once(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return may_stay_once(kind.value_type)
    return not pa.types.is_nested(kind)
