"""Records out of a shard's bytes, one format a function: blocks of (first row's number, records or why they are none).

A record is a dict of fields; a line of txt is a str. Rows count from 0, bad ones included; blank lines of jsonl and csv
are no rows. Whatever the bytes, a reader goes on to the next record, and ends with DamagedShard where it cannot.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeAlias

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .decompress import BLOCK_ROWS, DamagedShard, line_blocks
from .fields import BadRow, Fields, Written, is_text, lookup

Record: TypeAlias = "dict[str, object] | str"
Records: TypeAlias = "Iterator[tuple[int, list[Record | BadRow]]]"

# A line of jsonl or a record of csv may hold much beside its text; what is longer is not even gathered.
RECORD_BYTES = 16 << 20
# What the rows of a Parquet batch should take at most, as far as the file's own figures tell.
BATCH_BYTES = 16 << 20
_LINE, _AGAIN = 64, 64 << 20  # the price of a line beside its bytes, and what lines read again may cost at any rate


def _too_long(limit: int, what: str = "record") -> BadRow:
    return BadRow("too long", f"the {what} is over {limit:,} bytes")


def _not_utf8(line: bytes) -> BadRow | None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return BadRow("not UTF-8", f"byte {error.start} of the line cannot be decoded", text=_shown(line))
    return None


def _shown(line: bytes) -> str:
    return line[:1000].decode("utf-8", "backslashreplace")


def _decoded(block: list[bytes | None]) -> list[str] | None:
    """The lines as text, where all are there and UTF-8."""
    try:
        return b"\n".join(block).decode().split("\n")  # type: ignore[arg-type]  # None is what the except is for
    except (UnicodeDecodeError, TypeError):
        return None


def read_txt(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """A line a row."""
    row = 0
    for block in line_blocks(handle, compression, limit):
        texts = _decoded(block)
        if texts is not None:
            yield row, [text.removesuffix("\r") for text in texts]
        else:
            yield row, [_line(line, limit) for line in block]
        row += len(block)


def _line(line: bytes | None, limit: int) -> Record | BadRow:
    if line is None:
        return _too_long(limit, "line")
    return _not_utf8(line) or line.decode().removesuffix("\r")


def read_jsonl(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """A JSON object a line."""
    row = 0
    for block in line_blocks(handle, compression, RECORD_BYTES):
        filled = [line for line in block if line is None or (line and not line.isspace())]
        records = _objects(filled, fields) or [_object(line, fields) for line in filled]
        yield row, records
        row += len(records)


def _objects(block: list[bytes | None], fields: Fields) -> list[Record | BadRow] | None:
    """All lines of a block as objects, where nothing is wrong with any and no id needs its digits."""
    try:
        records = [orjson.loads(line) for line in block]  # type: ignore[arg-type]  # None is what the except is for
    except orjson.JSONDecodeError:
        return None
    if any(type(record) is not dict for record in records):
        return None
    if fields.id is not None and any(isinstance(lookup(record, fields.id), float) for record in records):
        return None
    return records


def _object(line: bytes | None, fields: Fields) -> Record | BadRow:
    if line is None:
        return _too_long(RECORD_BYTES)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = "not UTF-8" if "surrogate" in str(error) else "malformed record"
        return _not_utf8(line) or BadRow(reason, str(error), text=_shown(line))  # type: ignore[arg-type]
    if not isinstance(record, dict):
        return BadRow("malformed record", "the line is JSON, but no object", text=_shown(line))
    if fields.id is not None and isinstance(lookup(record, fields.id), float):
        try:
            written = json.loads(line, parse_float=Written, parse_int=Written)
        except RecursionError:  # json gives up a little before orjson does
            return BadRow("malformed record", "the line is nested too deep", text=_shown(line))
        return {**record, fields.id: lookup(written, fields.id)}
    return record


class _Unending(Exception):
    """A csv record that is not read any further."""


class _Delimited:
    """Records of csv: of a block of lines at once where no quotes are in it, else one by one.

    One by one, the lines of the record in the making are held, to go back to the line behind its first where it fails.
    """

    def __init__(self, blocks: Iterator[list[bytes | None]], delimiter: str) -> None:
        self.blocks, self.delimiter = blocks, delimiter
        self.waiting, self.held, self.bytes = list[bytes | None](), list[bytes](), 0  # waiting: last line first
        self.fresh, self.again = 0, 0  # what was read, and what of it was read again
        self.damage: DamagedShard | None = None

    def records(self) -> Iterator[list[list[str] | BadRow]]:
        """Blocks of records, a blank line as []; DamagedShard at the end where the lines ended with it."""
        while self._fill():
            at_once = self._at_once()
            if at_once is not None:
                yield at_once
                continue
            self.reader = self._reader()
            while self.waiting:
                yield [self._record() for _ in range(BLOCK_ROWS) if self.waiting]
        if self.damage:
            raise self.damage

    def _fill(self) -> bool:
        """Have the next block wait, unless the lines are at an end."""
        try:
            self.waiting = next(self.blocks, [])[::-1]
        except DamagedShard as damage:  # told when the lines that a record in the making had taken are read
            self.damage = damage
        self.fresh += sum(_LINE + len(line or b"") for line in self.waiting)
        return bool(self.waiting)

    def _at_once(self) -> list[list[str] | BadRow] | None:
        lines = _decoded(self.waiting[::-1])
        if lines is None or '"' in "".join(lines):
            return None
        try:
            found: list[list[str] | BadRow] = list(csv.reader(lines, delimiter=self.delimiter, strict=True))
        except csv.Error:
            return None
        self.waiting = []
        return found

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self, delimiter=self.delimiter, strict=True)

    def __iter__(self) -> _Delimited:
        return self

    def __next__(self) -> str:
        """The reader's next line."""
        if not self.waiting and not self._fill():
            raise StopIteration
        line = self.waiting[-1]
        if line is None:
            raise _Unending(f"a line of the record is over {RECORD_BYTES:,} bytes")
        self.waiting.pop()
        self.held.append(line)
        self.bytes += len(line)
        if self.bytes > RECORD_BYTES:
            raise _Unending(f"the record is over {RECORD_BYTES:,} bytes: is a quote left open?")
        return line.decode("utf-8", "surrogateescape") + "\n"

    def _record(self) -> list[str] | BadRow:
        if self.waiting[-1] is None:
            self.waiting.pop()
            return _too_long(RECORD_BYTES)
        found: list[str] | BadRow
        try:
            found = next(self.reader)
        except (csv.Error, _Unending) as error:
            found = BadRow("malformed record", str(error), text=_shown(self.held[0]))
            self.again += sum(_LINE + len(line) for line in self.held)
            if self.again > _AGAIN + 8 * self.fresh:  # lines can be made such that each one opens a quote to the end
                raise DamagedShard("too many quotes are left open") from None
            self.waiting.extend(reversed(self.held[1:]))
            self.reader = self._reader()
        self.held, self.bytes = [], 0
        return found


def read_delimited(delimiter: str) -> Callable[[IO[bytes], str | None, Fields, int], Records]:
    """The reader of csv (",") or tsv ("\\t"): quoted as RFC 4180 has it, the first record names the fields."""

    def read(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
        csv.field_size_limit(2 * RECORD_BYTES)
        row, names = 0, list[str]()
        for found in _Delimited(line_blocks(handle, compression, RECORD_BYTES), delimiter).records():
            found = [values for values in found if values]
            if not names and found:
                header = found.pop(0)
                if isinstance(header, BadRow):
                    raise DamagedShard(f"csv: the header cannot be read: {header.detail}")
                names = [_readable(name)[0] for name in header]
            yield row, [bad if isinstance(bad, BadRow) else _named(names, bad, delimiter) for bad in found]
            row += len(found)

    return read


def _named(names: list[str], values: list[str], delimiter: str) -> Record | BadRow:
    if len(values) != len(names):
        detail = f"{len(values)} fields, the header has {len(names)}"
        return BadRow("malformed record", detail, text=_readable(delimiter.join(values)[:1000])[0])
    if not all(map(str.isascii, values)):
        for name, value in zip(names, values, strict=True):
            shown, clean = _readable(value)
            if not clean:
                return BadRow("not UTF-8", f"field {name!r} cannot be decoded", text=shown[:1000])
    return dict(zip(names, values, strict=True))


def _readable(value: str) -> tuple[str, bool]:
    """(`value` with undecodable bytes spelled out, whether there were none)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), False
    return value, True


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


READERS: dict[str, Callable[[IO[bytes], str | None, Fields, int], Records]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_delimited(","),
    "tsv": read_delimited("\t"),
    "parquet": read_parquet,
}
