"""Records of csv and tsv, whose first record names the fields."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from typing import IO

from ...model.head import BadRow
from ...model.messages import plural
from .compression import BadHeader, DamagedShard, line_blocks
from .csv_records import RecordParser, Syntax
from .fields import Fields
from .notes import ShardNotes
from .reader import EXCERPT, RecordReader, some_of
from .shard import RECORD_BYTES, Record, Records, Shard

_SEPARATOR_LINE = re.compile(rb'"?sep=([^"\r\n]{1,4})"?\r?', re.IGNORECASE)  # as Excel has it, in front of the header

_COMMENT = re.compile(r"#|//|--|%|;")


def _csv_blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int, notes: ShardNotes) -> Records:
    return _blocks(handle, shard, fields, shard.delimiter or ",", notes, is_csv=True)


def _tsv_blocks(handle: IO[bytes], shard: Shard, fields: Fields, limit: int, notes: ShardNotes) -> Records:
    return _blocks(handle, shard, fields, "\t", notes, is_csv=False)


def _blocks(
    handle: IO[bytes], shard: Shard, fields: Fields, delimiter: str, notes: ShardNotes, *, is_csv: bool
) -> Records:
    csv.field_size_limit(2 * RECORD_BYTES)
    row, names, lines = 0, list[str](), line_blocks(handle, shard, RECORD_BYTES, notes)
    first = next(lines, [])
    separator = _separator(first[0] or b"") if first else None
    if separator and is_csv and shard.delimiter not in (None, separator):
        raise BadHeader(
            f"the first line says sep={separator}, and --delimiter is {shard.delimiter!r}: leave --delimiter out"
        )
    delimiter, skipped = separator or delimiter, int(separator is not None)
    lines = itertools.chain([first[skipped:]] if first[skipped:] else [], lines)
    syntax = Syntax(delimiter, shard.quoting or ("minimal" if is_csv else "none"), shard.escape)
    for block in RecordParser(lines, syntax, notes, 1 + skipped).records():
        records = [values for values in block if values]
        if not names and records:
            names = _names(records.pop(0), shard, fields, delimiter, is_csv=is_csv)
        yield row, [bad if isinstance(bad, BadRow) else _named(names, bad, syntax) for bad in records]
        row += len(records)


def _separator(line: bytes) -> str | None:
    """Return the separator that a line names, if it names nothing else."""
    found = _SEPARATOR_LINE.fullmatch(line)
    separator = found[1].decode("utf-8", "replace") if found else ""
    return separator if len(separator) == 1 else None


def _names(header: list[str] | BadRow, shard: Shard, fields: Fields, delimiter: str, *, is_csv: bool) -> list[str]:
    """Return the names of the fields. Raises DamagedShard if the header is not text, BadHeader if it cannot name them."""
    if isinstance(header, BadRow):
        raise DamagedShard(f"{shard.format}: the header cannot be read: {header.detail}")
    line = delimiter.join(header)
    if not _printable(line)[1] or "\0" in line:
        raise DamagedShard(
            f"the header '{_printable(line)[0][:EXCERPT]}' is not text in UTF-8: convert the file, as in "
            f"iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW, or leave it out"
        )
    if _COMMENT.match(header[0]) and not {*header} & {*fields.columns}:
        raise BadHeader(
            f"the header is {some_of(header)}, which seems to be a comment: remove the lines in front of the names of the "
            f"fields"
        )
    if len(header) == 1 and header[0] not in fields.columns:
        _check_delimiter(header[0], shard, delimiter, is_csv=is_csv)
    # Without a name, as in the index of pandas and in trailing separators, a field cannot be asked for.
    repeated = sorted(name for name, times in Counter(header).items() if times > 1 and name.strip())
    if repeated:
        raise BadHeader(f"the header has the field {some_of(repeated)} more than once: rename the others")
    return header


def _check_delimiter(name: str, shard: Shard, delimiter: str, *, is_csv: bool) -> None:
    """Raise BadHeader if the only name of a header seems to be several with another delimiter."""
    other = next((other for other in ";\t|," if other != delimiter and other in name), None)
    if other:
        rest = " without --delimiter" if shard.delimiter else ""
        if other == "," and is_csv:
            remedy = "leave --delimiter out"
        elif other in ",\t":
            remedy = f"try --input_format {'csv' if other == ',' else 'tsv'}{rest}"
        else:
            remedy = f"try {'' if is_csv else '--input_format csv '}--delimiter '{other}'"
        raise BadHeader(f"the header {name[:EXCERPT]!r} is a single field that contains {other!r}: {remedy}")


def _named(names: list[str], values: list[str], syntax: Syntax) -> Record | BadRow:
    if len(values) != len(names):
        detail = f"{plural(len(values), 'field')}, the header has {len(names)}{_cause(values, syntax)}"
        return BadRow("malformed record", detail, excerpt=_printable(syntax.delimiter.join(values)[:1000])[0])
    if not all(map(str.isascii, values)):
        for name, value in zip(names, values, strict=True):
            text, is_utf8 = _printable(value)
            if not is_utf8:
                return BadRow("not UTF-8", f"field {name!r} cannot be decoded", excerpt=text[:1000])
    return dict(zip(names, values, strict=True))


def _cause(values: list[str], syntax: Syntax) -> str:
    """Return what may have cut a record into too many or too few fields, with the flag that reads it."""
    if syntax.quoting == "none":
        quotes = any(value.count('"') % 2 for value in values)
        return ": if a quoted field contains a separator or a line end, give --quoting minimal" if quotes else ""
    if not syntax.escape and any(value.endswith("\\") for value in values[:-1]):
        return r": if a backslash escapes quotes, give --escape '\'"
    return ""


def _printable(value: str) -> tuple[str, bool]:
    """Return `value` with bytes that are not UTF-8 spelled out, and whether there are none of them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), False
    return value, True


CSV = RecordReader(_csv_blocks, has_delimiter=True, quoting="minimal")
TSV = RecordReader(_tsv_blocks, quoting="none")
