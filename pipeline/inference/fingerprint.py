"""Fingerprints: one hash of everything that determines a vector, by parts, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping


def fingerprint_of(parts: dict[str, str]) -> str:
    """Return the fingerprint of these parts."""
    from ...model.settings import fingerprint  # imports torch, which `log` and the like do not need

    return fingerprint(parts)


def changed_parts(parts: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the names of the parts that differ from `expected`, or that only one of the two has."""
    return [name for name in {**parts, **expected} if parts.get(name) != expected.get(name)]


def describe_changes(parts: Mapping[str, str], earlier: Mapping[str, str]) -> str:
    """Return what changed since `earlier`, as in "weights, dtype float32 -> bfloat16, ftfy 6.3.0 -> 6.3.1"."""
    hashes = ("weights", "vocabulary")  # their values mean nothing to a reader
    return ", ".join(
        name if name in hashes else f"{name} {earlier.get(name, 'unknown')} -> {parts.get(name, 'unknown')}"
        for name in changed_parts(parts, earlier)
    )
