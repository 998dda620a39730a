"""Checks that parsed JSON has the type that annotations say: scalars, lists, dicts, fixed-length tuples and TypedDicts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

_CLASSES: dict[object, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    list: ((list,), "a list"),
    tuple: ((list,), "a list"),
    dict: ((dict,), "an object"),
    type(None): ((type(None),), "null"),
}


def key_faults(value: Mapping[str, object], kind: type, keys: Collection[str], prefix: str = "") -> Iterator[str]:
    """Yield what is wrong with some keys of an object.

    Args:
        value: The object.
        kind: Its TypedDict; a key that is not in it may have any value.
        keys: The keys that are looked at.
        prefix: The path of the object, as in "files[0].".
    """
    for key, inner in _hints(kind).items():
        if key not in keys:
            continue
        if key in value:
            yield from _type_faults(value[key], inner, f"{prefix}{key}")
        elif key in kind.__required_keys__:  # type: ignore[attr-defined]
            yield f"{prefix}{key} is missing"


def _type_faults(value: Any, kind: object, path: str) -> Iterator[str]:
    outer, arguments = get_origin(kind) or kind, get_args(kind)
    if outer is object:
        return
    choices = [_CLASSES[dict if is_typeddict(one) else one] for one in (arguments if outer is UnionType else (outer,))]
    if isinstance(value, bool) or not any(isinstance(value, classes) for classes, _ in choices):
        yield f"{path} is {value!r:.80}, expected {' or '.join(name for _, name in choices)}"
    elif is_typeddict(kind):
        yield from key_faults(value, kind, _hints(kind), f"{path}.")  # type: ignore[arg-type]
    elif outer is dict:
        for key, inner in value.items():
            yield from _type_faults(inner, arguments[1], f"{path}.{key:.80}")
    elif outer is list:
        for number, inner in enumerate(value):
            yield from _type_faults(inner, arguments[0], f"{path}[{number}]")
    elif outer is tuple and len(value) != len(arguments):
        yield f"{path} is {value!r:.80}, expected a list of {len(arguments)}"
    elif outer is tuple:
        for number, (inner, one) in enumerate(zip(value, arguments, strict=True)):
            yield from _type_faults(inner, one, f"{path}[{number}]")


@cache
def _hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind)
