"""Records out of a shard's bytes, one format a function: (row number, record), or (row number, why it is none).

A record is a dict of fields; a line of txt is a str. Rows count from 0, bad ones included; blank lines of jsonl and csv
are no rows. Whatever the bytes, a reader goes on to the next record, and ends with DamagedShard where it cannot.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TypeAlias

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .decompress import DamagedShard, pieces
from .fields import BadRow, Fields, lookup

Record: TypeAlias = "dict[str, object] | str"
Records: TypeAlias = "Iterator[tuple[int, Record | BadRow]]"

# A line of jsonl or a record of csv may hold much beside its text; what is longer is not even gathered.
RECORD_BYTES = 16 << 20
BATCH_ROWS = 4096
_BOM = b"\xef\xbb\xbf"


class TooLong:
    """A line that was passed over because it is too long."""


def lines(handle: IO[bytes], compression: str | None, limit: int) -> Iterator[bytes | TooLong]:
    """Lines without their ends; one over `limit` bytes comes as TooLong, and is never held whole."""
    rest, skipping, first = b"", False, True
    damage: DamagedShard | None = None
    source = pieces(handle, compression)
    while True:
        try:
            piece = next(source, None)
        except DamagedShard as error:
            damage, piece = error, None
        if piece is None:
            break
        *whole, tail = piece.split(b"\n")
        for line in whole:
            line, rest = rest + line, b""
            if first:
                line, first = line.removeprefix(_BOM), False
            if skipping or len(line) > limit:
                yield TooLong()
            else:
                yield line[:-1] if line.endswith(b"\r") else line
            skipping = False
        rest = b"" if skipping else rest + tail
        if len(rest) > limit:
            rest, skipping = b"", True
    if skipping:
        yield TooLong()
    elif rest:
        yield (rest.removeprefix(_BOM) if first else rest).removesuffix(b"\r")
    if damage:
        raise damage


def _too_long(limit: int) -> BadRow:
    return BadRow("too long", f"the record is over {limit:,} bytes")


def _not_utf8(line: bytes) -> BadRow | None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        shown = line[:1000].decode("utf-8", "backslashreplace")
        return BadRow("not UTF-8", f"byte {error.start} of the line cannot be decoded", text=shown)
    return None


def read_txt(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """A line a row."""
    for row, line in enumerate(lines(handle, compression, limit)):
        if isinstance(line, TooLong):
            yield row, BadRow("too long", f"the line is over {limit:,} bytes (--max_text_bytes)")
            continue
        try:
            yield row, line.decode()
        except UnicodeDecodeError:
            yield row, _not_utf8(line) or BadRow("not UTF-8", "the line cannot be decoded")


def read_jsonl(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """A JSON object a line."""
    row = -1
    for line in lines(handle, compression, RECORD_BYTES):
        if isinstance(line, TooLong):
            row += 1
            yield row, _too_long(RECORD_BYTES)
            continue
        if not line or line.isspace():
            continue
        row += 1
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield row, _bad_json(line, error)
            continue
        if not isinstance(record, dict):
            yield row, BadRow("malformed record", "the line is JSON, but no object", text=_shown(line))
            continue
        if fields.id is not None and isinstance(lookup(record, fields.id), float):
            exact = lookup(json.loads(line, parse_float=str, parse_int=str), fields.id)
            record = {**record, fields.id: exact}  # as it was written: a float would forget digits
        yield row, record


def _bad_json(line: bytes, error: orjson.JSONDecodeError) -> BadRow:
    if "surrogate" in str(error):
        return BadRow("not UTF-8", str(error), text=_shown(line))
    return _not_utf8(line) or BadRow("malformed record", str(error), text=_shown(line))


def _shown(line: bytes) -> str:
    return line[:1000].decode("utf-8", "backslashreplace")


class _Rewindable:
    """Decoded lines for the csv reader, with those of the record in the making kept, to go back to where it fails."""

    def __init__(self, source: Iterable[bytes | TooLong]) -> None:
        self.source, self.waiting = iter(source), list[str]()
        self.held, self.bytes = list[str](), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.waiting:
            line = self.waiting.pop()
        else:
            raw = next(self.source)
            if isinstance(raw, TooLong):
                raise csv.Error(f"a line is over {RECORD_BYTES:,} bytes")
            line = raw.decode("utf-8", "surrogateescape") + "\n"
        self.held.append(line)
        self.bytes += len(line)
        if self.bytes > RECORD_BYTES:
            raise csv.Error(f"the record is over {RECORD_BYTES:,} bytes: is a quote left open?")
        return line

    def forget(self) -> None:
        """The record is complete."""
        self.held.clear()
        self.bytes = 0

    def rewind(self) -> str:
        """Go back to the line behind the first of the failed record; gives that first line."""
        first, *others = self.held or [""]
        self.waiting.extend(reversed(others))
        self.forget()
        return first


def read_delimited(delimiter: str) -> Callable[[IO[bytes], str | None, Fields, int], Records]:
    """The reader of csv (",") or tsv ("\\t"): quoted as RFC 4180 has it, the first record names the fields."""

    def read(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
        csv.field_size_limit(RECORD_BYTES)
        source = _Rewindable(lines(handle, compression, RECORD_BYTES))
        header: list[str] | None = None
        row, reader = -1, csv.reader(source, delimiter=delimiter, strict=True)
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row += header is not None
                yield max(row, 0), BadRow("malformed record", str(error), text=source.rewind().rstrip("\n")[:1000])
                reader = csv.reader(source, delimiter=delimiter, strict=True)
                continue
            source.forget()
            if not values:
                continue
            if header is None:
                header = [_readable(name)[0] for name in values]
                continue
            row += 1
            yield row, _delimited_record(header, values, delimiter)

    return read


def _delimited_record(header: list[str], values: list[str], delimiter: str) -> Record | BadRow:
    if len(values) != len(header):
        detail = f"{len(values)} fields, the header has {len(header)}"
        return BadRow("malformed record", detail, text=_readable(delimiter.join(values)[:1000])[0])
    if not all(map(str.isascii, values)):
        for name, value in zip(header, values, strict=True):
            shown, clean = _readable(value)
            if not clean:
                return BadRow("not UTF-8", f"field {name!r} cannot be decoded", text=shown[:1000])
    return dict(zip(header, values, strict=True))


def _readable(value: str) -> tuple[str, bool]:
    """(`value` with undecodable bytes spelled out, whether there were none)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), False
    return value, True


def read_parquet(handle: IO[bytes], compression: str | None, fields: Fields, limit: int) -> Records:
    """Rows of a Parquet file, as records of the columns that the fields need."""
    row = 0
    for batch in parquet_batches(handle, fields):
        for record in parquet_records(batch):
            yield row, record
            row += 1


def parquet_batches(handle: IO[bytes], fields: Fields) -> Iterator[pa.RecordBatch]:
    """Batches of the columns that the fields need; DamagedShard where the file is not Parquet or breaks off."""
    try:
        file = pq.ParquetFile(handle)
        needed = needed_columns(file.schema_arrow, fields)
        for number in range(file.num_row_groups):
            yield from file.iter_batches(BATCH_ROWS, row_groups=[number], columns=needed, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedShard(f"parquet: {str(error).splitlines()[0]}") from error


def needed_columns(schema: pa.Schema, fields: Fields) -> list[str]:
    """The columns that the fields' paths begin with."""
    return [name for name in schema.names if any(_begins(path, name) for path in fields.columns)]


def _begins(path: str, name: str) -> bool:
    return path == name or path.startswith((f"{name}.", f"{name}[]"))


def parquet_records(batch: pa.RecordBatch) -> list[dict[str, object]]:
    """A batch as records; strings that Arrow did not check come as bytes where they are not UTF-8."""
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            columns.append(column.to_pylist())
        except UnicodeDecodeError:
            columns.append(
                column.cast(pa.large_binary()).to_pylist() if _is_text(column.type) else [None] * len(column)
            )
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


READERS: dict[str, Callable[[IO[bytes], str | None, Fields, int], Records]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_delimited(","),
    "tsv": read_delimited("\t"),
    "parquet": read_parquet,
}
