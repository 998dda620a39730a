"""infer_kept_schema: checks before a run that the given fields exist, and which types the kept ones have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from ...model.head import Head
from ..io.file_io import FileIO
from ..io.retries import StoreError
from ..schemas import SEGMENT, part_schema, rejected_schema, row_schema
from .compression import BadHeader, DamagedShard, WrongEncoding
from .field_types import becomes_text, kept_type
from .fields import Fields
from .reader import FieldSummary, some_of
from .registry import READERS
from .shard import InputError, Shard

PEEKED_SHARDS = 16


def output_columns(head: Head) -> frozenset[str]:
    """Return the names of the columns that rows of a head have beside the kept fields."""
    return frozenset({*row_schema(head).names, SEGMENT.name, *part_schema(head, 1).names, *rejected_schema(head).names})


def infer_kept_schema(
    shards: Sequence[Shard], head: Head, fields: Fields, file_io: FileIO = FileIO(), known: pa.Schema | None = None
) -> pa.Schema:
    """Return the schema of the kept fields, with the types that they have in up to 16 shards.

    `known` is the schema of shards that are not given, in which the fields exist: a type is then that of `known` if the
    values of these shards fit it.

    Raises InputError if no record has a field (the message names those that exist), if a field has a type or a name that
    it must not have, if fields are given and no shard has any, if a header cannot name fields, if no shard is UTF-8,
    and if a shard cannot be opened or gives no byte for as long as `file_io` waits.
    """
    _check_names(head, fields)
    with_fields = [shard for shard in shards if READERS[shard.format].has_fields]
    if not with_fields and known is None:
        _check_no_fields(head, fields)
    step = max(1, len(with_fields) // PEEKED_SHARDS)
    summary = FieldSummary()
    for shard in with_fields[::step][:PEEKED_SHARDS]:
        _peek(shard, fields, summary, file_io)
    if summary.encoding and not summary.names and known is None:
        raise InputError(summary.encoding)
    if summary.names and known is None:
        unknown = [path for path in fields.columns if path not in summary.paths]
        if unknown:
            raise InputError(
                f"no record has the field {', '.join(map(repr, unknown))}; "
                f"the fields are {some_of(list(summary.names), unknown)}"
            )
    earlier = [known.field(name).type for name in fields.keep] if known is not None else [pa.null()] * len(fields.keep)
    kinds = {name: [kind, *summary.kept_types.get(name, [])] for name, kind in zip(fields.keep, earlier, strict=True)}
    return pa.schema([pa.field(name, _common(name, kinds[name])) for name in fields.keep])


def _check_names(head: Head, fields: Fields) -> None:
    through = [path for path in fields.keep if "[]" in path]
    if through:
        raise InputError(
            f"--keep_fields {','.join(through)}: only {head.field_flag} and --id_field may contain []; keep the list itself"
        )
    for content, path in fields.texts:
        if path is not None and "[]" in path and path.rpartition("[]")[0] != content.rpartition("[]")[0]:
            raise InputError(
                f"--id_field {path} goes through another list than its {head.field_flag} {content}: both must be fields of "
                f"the same elements, as chunks[].{head.content.name} and chunks[].id"
            )
    repeated = [path for path, times in Counter(field.text for field in fields.texts).items() if times > 1]
    if repeated:
        raise InputError(f"{head.field_flag} {repeated[0]} is given twice: name each field once")
    repeated = [name for name, times in Counter(fields.keep).items() if times > 1]
    if repeated:
        raise InputError(
            f"--keep_fields {','.join(fields.keep)}: {', '.join(repeated)} occurs twice: name each field once"
        )
    clash = [name for name in fields.keep if name in output_columns(head)]
    if clash:
        raise InputError(
            f"--keep_fields {','.join(clash)}: the output has columns of that name already; rename the fields, or leave "
            f"them out"
        )


def _check_no_fields(head: Head, fields: Fields) -> None:
    """Raise InputError if fields were chosen, for shards without any."""
    chosen = {
        head.field_flag: ",".join(field.text for field in fields.texts)
        if [field.text for field in fields.texts] != [head.content.name]
        else None,
        "--id_field": ",".join(field.id for field in fields.texts if field.id),
        "--keep_fields": ",".join(fields.keep),
    }
    flags = ", ".join(f"{flag} {value}" for flag, value in chosen.items() if value)
    if flags:
        raise InputError(
            f"{flags}: no shard has fields, since each line of txt is a {head.item}: leave the flag out, or give "
            f"another --input_format"
        )


def _peek(shard: Shard, fields: Fields, summary: FieldSummary, file_io: FileIO) -> None:
    """Add the fields of a shard to `summary`."""
    try:
        with file_io.open(shard.path) as handle:
            READERS[shard.format].describe_fields(handle, shard, fields, summary)
    except BadHeader as error:
        raise InputError(f"{shard.path}: {error}") from None
    except WrongEncoding as error:
        summary.encoding = summary.encoding or f"{shard.path}: {error}"
    except DamagedShard:
        pass  # the run reports it; the other shards show the types
    except StoreError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{shard.path} cannot be read: {error.strerror or error}") from None


_UNITS = ("s", "ms", "us", "ns")


def _common(name: str, kinds: list[pa.DataType]) -> pa.DataType:
    """Return the type that fits values of all `kinds`: numbers widen, times get the finest unit, others become strings."""
    plain = dict.fromkeys(kept_type(kind) or kind for kind in kinds)
    distinct = [kind for kind in plain if not pa.types.is_null(kind)]  # nulls fit any type
    if not distinct:
        return pa.string()
    if len(distinct) == 1:
        return distinct[0]
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in distinct):
        if any(map(pa.types.is_floating, distinct)):
            return pa.float64()
        return pa.uint64() if all(map(pa.types.is_unsigned_integer, distinct)) else pa.int64()
    zones = {kind.tz for kind in distinct if pa.types.is_timestamp(kind)}
    for is_kind in (pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration):
        if all(map(is_kind, distinct)) and len(zones) < 2:
            return max(distinct, key=lambda kind: _UNITS.index(kind.unit))
    if all(map(becomes_text, distinct)) and len(zones) < 2:
        return pa.string()
    raise InputError(
        f"kept field {name!r} has types without a common one: {', '.join(map(str, distinct))}; leave it out, or embed "
        f"the shards in separate runs"
    )
