"""infer_kept_schema: checks before a run that the given fields exist, and which types the kept ones have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ...model.head import Head
from ..flags import KEPT_TYPES
from ..io.file_io import FileIO
from ..io.retries import StoreError
from ..schemas import UNSETTLED, part_schema, rejected_schema, row_schema
from .compression import BadHeader, DamagedShard, WrongEncoding
from .fields import Fields
from .kept_types import Kind, common_type, given_type
from .reader import FieldSummary, some_of
from .registry import READERS
from .shard import InputError, Shard
from .shard_table import ShardTable

PEEKED_SHARDS = 16

FOOTERS_AT_ONCE = 32

_FORMATS_WITH_FOOTERS = [name for name, reader in READERS.items() if reader.has_row_groups]


def output_columns(head: Head) -> frozenset[str]:
    """Return the names of the columns that rows of a head have beside the kept fields."""
    return frozenset(
        {
            *row_schema(head).names,
            UNSETTLED.name,
            *part_schema(head, 1).names,
            *rejected_schema(head).names,
        }
    )


@dataclass(frozen=True)
class KeptTypes:
    """The types of the kept fields, as far as they are known before a run.

    Attributes:
        schema: The columns of the kept fields while rows are read and shuffled; null if no value is known.
        open: The kinds that are known so far of the fields whose values in text formats may still widen the type.
        stored: The columns in the files that are carried over; None if none are.
        missing: Names of fields that no record has, as far as records were looked at.
        names: The fields that these have, for messages.
    """

    schema: pa.Schema
    open: Mapping[str, Mapping[Kind, str]] = field(default_factory=dict)
    stored: pa.Schema | None = None
    missing: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()

    @property
    def final(self) -> pa.Schema:
        """The columns of the part files, if no value widens them: a field without any value has strings."""
        return pa.schema([each.with_type(pa.string()) if pa.types.is_null(each.type) else each for each in self.schema])


def infer_kept_schema(
    shards: Sequence[Shard], head: Head, fields: Fields, file_io: FileIO = FileIO(), known: pa.Schema | None = None
) -> pa.Schema:
    """Return the columns of the kept fields in part files, as far as they are known before a run; see `infer_kept_types`."""
    return infer_kept_types(shards, head, fields, file_io, known).final


def infer_kept_types(
    shards: Sequence[Shard], head: Head, fields: Fields, file_io: FileIO = FileIO(), known: pa.Schema | None = None
) -> KeptTypes:
    """Return the types of the kept fields: by the footers of all Parquet shards, and the first records of some others.

    `known` has the types of shards that are not given, in which the fields exist, null if these have no value: a type is
    then that of `known` if the values of these shards fit it.

    Raises InputError if no record has a field (the message names those that exist), if a field has a type or a name that
    it must not have, if fields are given and no shard has any, if a header cannot name fields, if no shard is UTF-8,
    and if a shard cannot be opened or gives no byte for as long as `file_io` waits.
    """
    _check_names(head, fields)
    table = shards if isinstance(shards, ShardTable) else ShardTable.of(shards)
    with_fields = table.with_formats(name for name, reader in READERS.items() if reader.has_fields)
    if not with_fields and known is None:
        _check_no_fields(head, fields)
    summary = _look_at(with_fields, fields, file_io)
    if summary.encoding and not summary.names and known is None:
        raise InputError(summary.encoding)
    unknown = list[str]()
    if summary.names and known is None:
        unknown = [path for path in fields.columns if path not in summary.paths]
        late = fields.kept_paths if summary.has_more else frozenset()
        if not late.issuperset(unknown):
            raise no_field(unknown, tuple(summary.names))
    columns, still_open = list[pa.Field](), dict[str, Mapping[Kind, str]]()
    is_open = len(with_fields.with_formats(_FORMATS_WITH_FOOTERS)) < len(with_fields)
    for each in fields.kept:
        earlier = {} if known is None else {known.field(each.name).type: "the current snapshot"}
        kinds = {**earlier, **summary.kinds.get(each.path, {})}
        kind = given_type(each, kinds) if each.type else common_type(each, kinds, more=is_open)
        columns.append(pa.field(each.name, kind))
        if is_open and not each.type and kind != pa.string():
            still_open[each.name] = kinds
    missing = frozenset(each.name for each in fields.kept if each.path in unknown and each.name in still_open)
    return KeptTypes(pa.schema(columns), still_open, missing=missing, names=tuple(summary.names))


def no_field(paths: Sequence[str], names: Sequence[str]) -> InputError:
    """Return the error that no record has the fields at these paths; `names` are the fields that there are."""
    types = f"; types are {', '.join(KEPT_TYPES)}" if any(":" in path for path in paths) else ""
    for name in names:
        path, _, kind = name.rpartition(":")
        if path in paths and kind in KEPT_TYPES:
            types = f"; the last colon gives a type: for the field {name!r} write {name}:{kind}"
    return InputError(
        f"no record has the field {', '.join(map(repr, paths))}; the fields are {some_of(names, paths)}{types}"
    )


def _look_at(shards: ShardTable, fields: Fields, file_io: FileIO) -> FieldSummary:
    """Return the fields of shards: of up to PEEKED_SHARDS, and the types of kept fields of all whose footer has them."""
    step = max(1, len(shards) // PEEKED_SHARDS)
    places, summary = np.arange(len(shards)), FieldSummary()
    some = places[::step][:PEEKED_SHARDS]
    for shard in shards.take(some):
        _peek(shard, fields, summary, file_io)
    others = shards.take(np.setdiff1d(places, some) if fields.keep else some[:0])
    footers = others.with_formats(_FORMATS_WITH_FOOTERS)
    summary.has_more |= len(footers) < len(others)

    def footer(shard: Shard) -> FieldSummary:
        found = FieldSummary()
        _peek(shard, fields, found, file_io)
        return found

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        for found in pool.map(footer, footers):
            summary.paths |= found.paths
            for path, kinds in found.kinds.items():
                for kind, place in kinds.items():
                    summary.add_kind(path, kind, place)
    return summary


def _check_names(head: Head, fields: Fields) -> None:
    through = [field.path for field in fields.kept if "[]" in field.path]
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
    repeated = [name for name, times in Counter(field.name for field in fields.kept).items() if times > 1]
    if repeated:
        raise InputError(
            f"--keep_fields {','.join(fields.keep)}: {', '.join(repeated)} occurs twice: name each field once"
        )
    clash = [field for field in fields.kept if field.name in output_columns(head)]
    if clash:
        form = ",".join(f"NAME={field.path}{f':{field.type}' if field.type else ''}" for field in clash)
        names = ",".join(field.name for field in clash)
        what, them = ("a column of that name", "it") if len(clash) == 1 else ("columns of these names", "them")
        raise InputError(
            f"--keep_fields {names}: the output has {what} already; rename {them}, as in --keep_fields {form}, or leave "
            f"{them} out"
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
        if head.by_reference:
            raise InputError(f"{flags}: files of {head.items} have no fields: leave the flag out")
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
