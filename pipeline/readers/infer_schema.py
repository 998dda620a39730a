"""A look into some shards before anything starts: whether the named fields are there, and the types of the kept ones."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from ..io.file_io import FileIO
from ..io.filesystem import StoreError
from .compression import DamagedShard
from .fields import MISSING, BadRow, Fields, is_text, lookup, texts_at
from .parquet import arrow_damage
from .parquet_limits import open_parquet
from .registry import READERS
from .shards import InputError, Shard

PEEKED_SHARDS, PEEKED_RECORDS = 16, 1000

OWN_COLUMNS = ("id", "text", "text_hash", "n_tokens", "truncated", "embedding", "shard", "row", "reason", "detail")


def infer_kept_schema(shards: Sequence[Shard], fields: Fields, file_io: FileIO = FileIO()) -> pa.Schema:
    """Column of each kept field, its type fixed by a look into up to 16 shards.

    Raises InputError where a field stands in none of the records looked at, naming those that do, and where a shard
    gives nothing for as long as `file_io` waits.
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
        for name, kind in _peek(shard, fields, seen, known, file_io):
            types[name].append(kind)
    if seen:
        unknown = [path for path in fields.columns if path not in known]
        if unknown:
            raise InputError(f"no record has the field {', '.join(map(repr, unknown))}; there are {', '.join(seen)}")
    return pa.schema([pa.field(name, _common(name, kinds)) for name, kinds in types.items()])


def _peek(
    shard: Shard, fields: Fields, seen: dict[str, None], known: set[str], file_io: FileIO
) -> list[tuple[str, pa.DataType]]:
    """Types of the kept fields in the head of a shard; notes its field names and which of ours it has."""
    kinds: list[tuple[str, pa.DataType]] = []
    try:
        with file_io.open(shard.path) as handle:
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
