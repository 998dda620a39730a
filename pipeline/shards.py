"""Which shards a job reads and what their fields are: found, named and looked into before anything starts."""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from .decompress import SUFFIXES, DamagedShard
from .fields import MISSING, BadRow, Fields, is_text, lookup, texts_at
from .formats import READERS
from .pages import open_parquet
from .parquet import arrow_damage
from .reading import READ_TIMEOUT, open_to_read
from .stores import StoreError, match, retried

PEEKED_SHARDS, PEEKED_RECORDS = 16, 1000
OWN_COLUMNS = ("id", "text", "text_hash", "n_tokens", "truncated", "embedding", "shard", "row", "reason", "detail")


class InputError(ValueError):
    """The input cannot be read as it was named; the text says what is there and what to do."""


@dataclass(frozen=True)
class Shard:
    """One file of input; `name` is its path below the fixed part of the glob, as it stands in ids."""

    path: str
    name: str
    format: str
    compression: str | None
    bytes: int


def find_shards(patterns: Sequence[str], input_format: str | None = None) -> list[Shard]:
    """The shards that the globs match, by path; each once. Raises InputError where one matches nothing usable."""
    found: dict[str, tuple[str, int]] = {}
    for pattern in patterns:
        for path, size in _match(pattern):
            found.setdefault(path, (_below(pattern, path), size))
    names = Counter(name for name, _ in found.values())
    shards = []
    for path, (name, size) in sorted(found.items()):
        form, compression = format_of(path, input_format)
        shards.append(Shard(path, _text(name if names[name] == 1 else path), form, compression, size))
    return shards


def state_of(shard: Shard) -> tuple[int, float]:
    """(bytes, time of last change) of a shard now; InputError where it is gone or not as large as the job found it.

    Shards are one version of the corpus: what is still being written, or replaced under the reader, is none.
    """
    try:
        now = retried(shard.path, "found", lambda: FileSystems.get_filesystem(shard.path).metadata(shard.path))
    except OSError as error:
        raise InputError(
            f"{shard.path} was there when the run began and cannot be read now ({error}): nothing was published; bring "
            f"it back or leave it out, and run again"
        ) from error
    if now.size_in_bytes != shard.bytes:
        raise changed(shard, f"from {shard.bytes:,} bytes to {now.size_in_bytes:,}")
    return now.size_in_bytes, now.last_updated_in_seconds or 0.0


def changed(shard: Shard, how: str = "while it was read") -> InputError:
    """The error for a shard that did not stay as it was."""
    return InputError(
        f"{shard.path} changed {how} during the run: nothing was published; run again once it is complete, and what is "
        f"finished is reused"
    )


def _text(name: str) -> str:
    """A file's name as ids can hold it: bytes of it that are not UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def format_of(path: str, input_format: str | None = None) -> tuple[str, str | None]:
    """(format, compression) of a file by its suffixes; InputError where they name none."""
    stem, suffix = os.path.splitext(path)
    compression = SUFFIXES.get(suffix.lower())
    if compression:
        suffix = os.path.splitext(stem)[1]
    form = input_format or suffix.lower().removeprefix(".")
    if form not in READERS:
        raise InputError(
            f"{path}: {suffix or 'no suffix'} names no format; known are {', '.join(READERS)}, compressed also "
            f"{', '.join(SUFFIXES)}: say which it is with --input_format"
        )
    if form == "parquet" and compression:
        raise InputError(f"{path}: Parquet is compressed within; unpack the file, or name it .parquet if it is plain")
    return form, compression


def _match(pattern: str) -> list[tuple[str, int]]:
    try:
        found = match(pattern)
    except ValueError as error:  # no filesystem for that scheme
        raise InputError(f"{pattern} cannot be read: {error}; gs:// and s3:// need the extras gcp and aws") from None
    except StoreError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{pattern} cannot be listed: {error}") from None
    files = [(file.path, file.size_in_bytes) for file in found if not os.path.isdir(file.path)]
    if not files and os.path.isfile(pattern):  # a name with brackets in it
        files = [(pattern, os.path.getsize(pattern))]
    if "://" not in pattern:  # Beam's star stops at a backslash, which other systems separate folders with
        missed = [path for path in glob.glob(pattern, recursive=True) if "\\" in path and os.path.isfile(path)]
        missed = sorted(set(missed) - {path for path, _ in files})
        if missed:
            raise InputError(f"{missed[0]!r} has a backslash in its name, and no glob matches that: rename the file")
    if not files:
        raise InputError(f"--input {pattern} matches no file; {_what_is_there(pattern)}")
    for path, _ in files:
        if "://" not in path and not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read: permission denied")
    return files


def _what_is_there(pattern: str) -> str:
    """Words on the nearest thing that does exist."""
    if "://" in pattern:
        return "check the bucket and the path"
    if os.path.isdir(pattern):
        return f"it is a directory: name the files in it, as in '{pattern.rstrip('/')}/*'"
    folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    names = sorted(os.listdir(folder))
    near = difflib.get_close_matches(os.path.basename(pattern), names, 3) or names[:5]
    return (
        f"{folder} holds {', '.join(near)}{', ...' if len(names) > len(near) else ''}"
        if names
        else f"{folder} is empty"
    )


def _below(pattern: str, path: str) -> str:
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    return path[len(fixed) :].lstrip("/") if fixed and path.startswith(fixed) else path.rpartition("/")[2] or path


def kept_fields(shards: Sequence[Shard], fields: Fields, read_timeout: float = READ_TIMEOUT) -> pa.Schema:
    """Column of each kept field, its type fixed by a look into up to 16 shards.

    Raises InputError where a field stands in none of the records looked at, naming those that do, and where a shard
    gives nothing for `read_timeout` seconds.
    """
    through = [path for path in fields.columns[1:] if "[]" in path]
    if through:
        raise InputError(f"{', '.join(through)}: only --text_field may go through a list with []")
    twice = [name for name, times in Counter(fields.keep).items() if times > 1]
    if twice:
        raise InputError(f"--keep_fields {','.join(fields.keep)}: {', '.join(twice)} stands there twice")
    clash = [name for name in fields.keep if name in OWN_COLUMNS]
    if clash:
        raise InputError(f"--keep_fields {','.join(clash)}: the output has columns of that name itself")
    with_fields = [shard for shard in shards if shard.format != "txt"]
    step = max(1, len(with_fields) // PEEKED_SHARDS)
    types: dict[str, list[pa.DataType]] = {name: [] for name in fields.keep}
    seen: dict[str, None] = {}
    known: set[str] = set()
    for shard in with_fields[::step][:PEEKED_SHARDS]:
        for name, kind in _peek(shard, fields, seen, known, read_timeout):
            types[name].append(kind)
    if seen:
        unknown = [path for path in fields.columns if path not in known]
        if unknown:
            raise InputError(f"no record has the field {', '.join(map(repr, unknown))}; there are {', '.join(seen)}")
    return pa.schema([pa.field(name, _common(name, kinds)) for name, kinds in types.items()])


def _peek(
    shard: Shard, fields: Fields, seen: dict[str, None], known: set[str], read_timeout: float
) -> list[tuple[str, pa.DataType]]:
    """Types of the kept fields in the head of a shard; notes its field names and which of ours it has."""
    kinds: list[tuple[str, pa.DataType]] = []
    try:
        with open_to_read(shard.path, read_timeout) as handle:
            if shard.format == "parquet":
                with arrow_damage():
                    schema = open_parquet(handle)[0].schema_arrow
                seen.update(dict.fromkeys(schema.names))
                types = {path: _type_at(schema, path) for path in fields.columns}
                known.update(path for path, kind in types.items() if kind is not None)
                return [(path, types[path]) for path in fields.keep if types[path] is not None]
            blocks = READERS[shard.format](handle, shard.compression, fields, 1 << 20)
            heads = itertools.chain.from_iterable(block for _, block in blocks)
            for record in itertools.islice(heads, PEEKED_RECORDS):
                if not isinstance(record, dict):
                    continue
                seen.update(dict.fromkeys(record))
                for path in fields.columns:
                    if path not in known and _stands_in(record, path):
                        known.add(path)
                kept = [(path, lookup(record, path)) for path in fields.keep]
                kinds.extend((path, _type_of(value)) for path, value in kept if value not in (MISSING, None))
    except DamagedShard:
        pass  # its rows will be rejected; the other shards tell the types
    except StoreError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{shard.path} cannot be read: {error.strerror or error}") from None
    return kinds


def _stands_in(record: dict[str, object], path: str) -> bool:
    try:
        return any(value is not MISSING and not isinstance(value, BadRow) for _, value in texts_at(record, path))
    except BadRow as bad:
        return bad.reason != "missing field"


def _type_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    """Arrow type at a dotted path, through lists where it says so."""
    before, through, rest = path.partition("[]")
    if before not in schema.names:
        head = next((name for name in schema.names if before.startswith(f"{name}.")), None)
        if head is None or not pa.types.is_struct(schema.field(head).type):
            return None
        return _type_at(pa.schema(list(schema.field(head).type)), path.removeprefix(f"{head}."))
    kind = schema.field(before).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if through and rest and hasattr(kind, "value_type"):
        inner = kind.value_type
        return _type_at(pa.schema(list(inner)), rest.removeprefix(".")) if pa.types.is_struct(inner) else inner
    return kind


def _type_of(value: object) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _common(name: str, kinds: list[pa.DataType]) -> pa.DataType:
    """The type that takes all of `kinds`: numbers widen, what is mixed becomes text."""
    distinct = [kind for kind in dict.fromkeys(kinds) if not pa.types.is_null(kind)]  # a column of nulls fits any
    if not distinct:
        return pa.string()
    if len(distinct) == 1:
        return distinct[0]
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in distinct):
        return pa.float64() if any(map(pa.types.is_floating, distinct)) else pa.int64()
    if all(pa.types.is_primitive(kind) or is_text(kind) for kind in distinct):
        return pa.string()
    raise InputError(
        f"kept field {name!r} has types that do not go together: {', '.join(map(str, distinct))}; leave it out, or "
        f"embed the shards in separate runs"
    )
