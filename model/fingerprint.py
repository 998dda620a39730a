"""Fingerprints: one hash of everything that decides a vector, by parts, and how two of them differ. Without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

# Raised when the meaning of the parts changes, or which contents have a vector: earlier ones are then not reused.
SCHEME = "2"

REQUIRED_PARTS = ("head", "normalize", "dtype", "stored")  # of every head

PROVENANCE_PARTS = ("dtype", "normalize")  # of every head, which part files name

_DIGESTS = ("weights", "vocabulary")  # parts whose values mean nothing to a reader


def fingerprint(parts: Mapping[str, str]) -> str:
    """Return the sha256 of the parts in hex."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def changed_parts(parts: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the names of the parts that differ from `expected`, or that only one of the two has."""
    return [name for name in {**parts, **expected} if parts.get(name) != expected.get(name)]


def describe_changes(parts: Mapping[str, str], earlier: Mapping[str, str]) -> str:
    """Return what changed since `earlier`, as in "weights, dtype float32 -> bfloat16, ftfy 6.3.0 -> 6.3.1"."""
    return ", ".join(
        name if name in _DIGESTS else f"{name} {earlier.get(name, 'unknown')} -> {parts.get(name, 'unknown')}"
        for name in changed_parts(parts, earlier)
    )
