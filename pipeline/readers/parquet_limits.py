"""Limits on what a Parquet file expands to, checked in the headers of its pages before Arrow reads them.

A footer may be wrong, and 81 correct bytes can store 50 million values of one row. Arrow allocates what the file claims,
so the depth of the schema and the header of each page that will be read are checked first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from .compression import BadHeader
from .shard import Part
from .thrift import START, Compact, Selection, ThriftError, Value

MAX_DEPTH = 100  # of a schema; Arrow walks it by recursion

PAGE_BYTES = 256 << 20  # of one page, unpacked: that is how Arrow holds it

NESTED_BYTES, NESTED_VALUES = 512 << 20, 16 << 20  # of one column of lists in a row group: one row may have them all

VALUE_BYTES = 8  # levels and index of a value, whatever its size

_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3

_PLAIN, _PLAIN_DICTIONARY, _RLE, _BIT_PACKED, _DELTA_BYTE_ARRAY, _RLE_DICTIONARY = 0, 2, 3, 4, 7, 8

# What is read of the structures of Parquet's specification, by the numbers of their fields.
_COLUMN: Selection = {3: {2: {}, 5: {}, 7: {}, 9: {}, 11: {}}, 8: {}}
_GROUP: Selection = {1: _COLUMN}
_FOOTER: Selection = {2: {5: {}}, 4: _GROUP}
_PAGE: Selection = {1: {}, 2: {}, 3: {}, 5: {1: {}, 2: {}}, 8: {1: {}, 4: {}}}

# Encodings of a chunk with which Arrow can leave its values in their dictionary.
_ALLOW_DICTIONARY = {_PLAIN, _PLAIN_DICTIONARY, _RLE, _BIT_PACKED, _RLE_DICTIONARY}


@dataclass
class Column:
    """A column of a row group in the footer: the place of its pages, the number of its values, and how they are stored."""

    start: int
    length: int
    values: int
    encodings: set[int]
    encrypted: bool = False


@dataclass
class RowGroup:
    """A row group in the footer: the place of its description there, in bytes, and its columns."""

    place: int
    columns: list[Column]


@dataclass
class _Chunk:
    """Bytes that a column of a row group may take in memory: in all, and per row if each row is one value."""

    total: int = 0
    values: int = 0
    row: int = VALUE_BYTES


def open_parquet(handle: IO[bytes], part: Part | None = None) -> tuple[pq.ParquetFile, list[RowGroup]]:
    """Return `handle` as a Parquet file, and its row groups, or those of a part, as its footer describes them.

    The footer is not read by pyarrow, which ends the process if a column's statistics are wrong. Raises ThriftError if
    the schema is too deep for Arrow, BadHeader if the file is encrypted as a whole, an Arrow error if it is not Parquet.
    """
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - 8))
    tail = handle.read(8)
    length, groups = int.from_bytes(tail[:4], "little"), list[RowGroup]()
    if tail[4:] == b"PARE":
        raise BadHeader("the file is encrypted: decrypt it first")
    if tail[4:] == b"PAR1" and length <= size - 12:  # else Arrow says what is wrong
        handle.seek(size - 8 - length)
        data = handle.read(length)
        if part is None or part.end is None:
            footer = Compact(data).struct(_FOOTER)
            _check_depth(footer.get(2))
            found = [_fields(group) for group in _list(footer.get(4))]
        else:  # the whole footer was checked when the shard was split: doing so for each part would take quadratic time
            compact = Compact(data, part.place)
            found = [compact.struct(_GROUP) for _ in range(part.first, part.end)]
        groups = [_row_group(fields) for fields in found]
    handle.seek(0)
    return pq.ParquetFile(handle), groups


def _fields(value: Value) -> dict[int, Value]:
    return value if isinstance(value, dict) else {}


def _list(value: Value) -> list[Value]:
    return value if isinstance(value, list) else []


def _row_group(fields: dict[int, Value]) -> RowGroup:
    place = fields.get(START)
    return RowGroup(place if isinstance(place, int) else 0, [_column(column) for column in _list(fields.get(1))])


def _column(value: Value) -> Column:
    chunk = _fields(value)
    fields = _fields(chunk.get(3))
    numbers = [fields.get(number) for number in (5, 7, 9, 11)]
    values, length, start, dictionary = (number if isinstance(number, int) else 0 for number in numbers)
    encodings = {encoding for encoding in _list(fields.get(2)) if isinstance(encoding, int)}
    return Column(min(start, dictionary) if dictionary > 0 else start, length, values, encodings, 8 in chunk)


def _check_depth(elements: Value) -> None:
    """Check the depth of a schema: a list of elements, depth first, each with the number of its children."""
    open_at: list[int] = []  # remaining children by level
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
    ahead: ReadAheadFile,
    schema: pq.ParquetSchema,
    columns: dict[int, Column],
    *,
    rows: int,
    encoded: set[str],
    batch_bytes: int,
) -> int:
    """Return how many rows of a row group may be read at once, at least 1.

    Args:
        ahead: The file.
        schema: Its schema.
        columns: The columns that will be read, by leaf.
        rows: The rows of the row group.
        encoded: The paths of the columns whose values stay in a dictionary.
        batch_bytes: About how many bytes the rows may have.

    Raises:
        ThriftError: A page, or what may be one row, is over the limits of this module.
    """
    limit = batch_bytes
    for leaf, chunked in columns.items():
        column, path = schema.column(leaf), schema.column(leaf).path
        width = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
        if column.physical_type != "BYTE_ARRAY":
            width = max(width, VALUE_BYTES)
        chunk = _measure(ahead, chunked, path in encoded, width)
        if column.max_repetition_level:
            if chunk.total > NESTED_BYTES or chunk.values > NESTED_VALUES:
                raise ThriftError(
                    f"column {path} of the row group has {chunk.values:,} values in {chunk.total:,} bytes, over "
                    f"{NESTED_VALUES:,} or {NESTED_BYTES:,}, and one row may have them all: write smaller row groups"
                )
            limit = min(limit, batch_bytes * max(1, rows) // max(1, chunk.total))
        else:
            limit = min(limit, batch_bytes // chunk.row)
    return max(1, limit)


def _measure(ahead: ReadAheadFile, column: Column, encoded: bool, width: int) -> _Chunk:
    """Return what the pages of a column take; `width` is that of its values if all have the same, else 0."""
    compact, chunk, dictionary = Compact(ahead.load(column.start, column.length)), _Chunk(), 0
    while compact.at < column.length and chunk.values < column.values:  # Arrow stops there, and a writer may do so
        header = compact.struct(_PAGE)
        size, packed = header.get(2), header.get(3)
        if not isinstance(size, int) or not isinstance(packed, int) or size < 0 or packed < 0:
            raise ThriftError("a page has no length")
        if size > PAGE_BYTES:
            raise ThriftError(f"a page of {size:,} bytes is more than {PAGE_BYTES:,}: write smaller pages")
        compact.at += packed
        kind = header.get(1)
        if kind in (_DATA_PAGE, _DATA_PAGE_V2):
            data = header.get(5 if kind == _DATA_PAGE else 8)
            fields = data if isinstance(data, dict) else {}
            values, encoding = fields.get(1), fields.get(2 if kind == _DATA_PAGE else 4)
            if not isinstance(values, int) or values < 0:
                raise ThriftError("a page has no number of values")
            if encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
                value = width or (0 if encoded else dictionary)
            elif encoding == _DELTA_BYTE_ARRAY:  # each value may repeat the previous one
                value = size
            else:
                value = max(width, -(-size // max(1, values)))
            chunk.values += values
            chunk.total += values * (value + VALUE_BYTES)
            chunk.row = max(chunk.row, value + VALUE_BYTES)
        elif kind == _DICTIONARY_PAGE:
            dictionary = max(dictionary, size)
    return chunk


def leaves_of(schema: pq.ParquetSchema, names: list[str]) -> list[int]:
    """Return the numbers of the leaf columns below the columns `names`."""
    return [
        leaf
        for leaf in range(len(schema))
        if any(schema.column(leaf).path == name or schema.column(leaf).path.startswith(f"{name}.") for name in names)
    ]


def chunks_can_stay_encoded(column: pq.ColumnSchema, chunks: list[Column]) -> bool:
    """Return whether Arrow can leave the values of a leaf in their dictionary, given the encodings in the file."""
    text = column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
    return text and all(chunk.encodings <= _ALLOW_DICTIONARY for chunk in chunks)


def type_can_stay_encoded(kind: pa.DataType) -> bool:
    """Return whether all texts and bytes in a column of this type can stay in their dictionary: not so in maps."""
    if pa.types.is_struct(kind):
        return all(type_can_stay_encoded(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return type_can_stay_encoded(kind.value_type)
    return not pa.types.is_nested(kind)


class ReadAheadFile:
    """A file that keeps the chunks loaded in advance until they are read, so that each is fetched once."""

    closed = False

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.at = handle, 0
        self.size = handle.seek(0, os.SEEK_END)
        self._ahead: dict[tuple[int, int], bytes] = {}

    def load(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on, and keep them until they are read or `forget` is called."""
        if start < 0 or length < 0 or start + length > self.size:
            raise ValueError(f"a column begins at byte {start:,}, and the file has no such bytes")
        self.handle.seek(start)
        data = self.handle.read(length)
        self._ahead[start, length] = data
        return data

    def forget(self) -> None:
        """Drop the chunks that were not read."""
        self._ahead.clear()

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, or all to the end."""
        size = max(0, self.size - self.at) if size < 0 else size
        data = self._ahead.pop((self.at, size), None)
        if data is None:
            self.handle.seek(self.at)
            data = self.handle.read(size)
        self.at += len(data)
        return data

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        self.at = to + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        """Return the position."""
        return self.at

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Leave the file open: its owner closes it."""
