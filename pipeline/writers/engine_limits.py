"""What the engines of docs/reading.md refuse in a part file: types and names of kept fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa

from ..readers.field_types import is_uuid

_SPARK, _DATASETS, _LANCE = "Spark 3.5", "Hugging Face datasets", "LanceDB"


class _Refusal(NamedTuple):
    """Types that engines refuse; `remedy` is the type of --keep_fields that mends it, or ""."""

    refuses: Callable[[pa.DataType], bool]
    engines: tuple[str, ...]
    remedy: str = ""


def _has_unit(test: Callable[[pa.DataType], bool], unit: str) -> Callable[[pa.DataType], bool]:
    return lambda kind: bool(test(kind) and kind.unit == unit)


# In the order in which they are looked at: all that are true of a type count.
REFUSALS = (
    _Refusal(_has_unit(pa.types.is_timestamp, "ns"), (_SPARK,), "timestamp_us"),
    _Refusal(pa.types.is_time, (_SPARK,), "string"),
    _Refusal(_has_unit(pa.types.is_time, "ns"), ("pandas",), "time_us"),
    _Refusal(pa.types.is_float16, (_SPARK,), "float"),
    _Refusal(pa.types.is_time32, ("Daft",), "time_us"),
    _Refusal(pa.types.is_decimal256, (_SPARK, "Polars", "Daft")),
    _Refusal(pa.types.is_decimal32, (_DATASETS, _LANCE, "Daft")),
    _Refusal(pa.types.is_map, (_DATASETS,)),
    _Refusal(is_uuid, (_SPARK, _DATASETS)),
)


def engine_notes(kept: pa.Schema, columns: list[str], paths: Mapping[str, str]) -> list[str]:
    """Return a note on each kept field with which engines open no part file at all, or not its column.

    Args:
        kept: The kept fields.
        columns: The names of all columns of part files.
        paths: The paths of the kept fields by name.
    """
    notes, times = [], Counter(name.lower() for name in columns)
    for field in kept:
        found = [refusal for kind in _types_in(field.type) for refusal in REFUSALS if refusal.refuses(kind)]
        engines = dict.fromkeys(engine for refusal in found for engine in refusal.engines)
        if engines:
            remedy = next((refusal.remedy for refusal in found if refusal.remedy), "")
            source = paths[field.name] if paths[field.name] == field.name else f"{field.name}={paths[field.name]}"
            mended = f"--keep_fields {source}:{remedy}" if remedy and not pa.types.is_nested(field.type) else ""
            notes.append(
                f"{', '.join(engines)} cannot read part files with the kept field {field.name!r}, which is {field.type}: "
                f"{mended or 'leave it out'} if they must"
            )
        engines = dict.fromkeys(engine for refuses, engine in _NAMES if refuses(field.name, times))
        if engines:
            notes.append(
                f"{', '.join(engines)} cannot read part files with the name of the kept field {field.name!r}: give it "
                f"another, as in --keep_fields NAME={paths[field.name]}, if they must"
            )
    return notes


def _types_in(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type and all types inside of it."""
    yield kind
    for number in range(kind.num_fields):
        yield from _types_in(kind.field(number).type)


# What is refused by its name, given how often each name occurs if case does not count.
_NAMES: tuple[tuple[Callable[[str, Counter[str]], bool], str], ...] = (
    (lambda name, times: times[name.lower()] > 1, _SPARK),
    (lambda name, times: "." in name or "`" in name or not name, _LANCE),
)
