"""The fingerprint of a snapshot, computed from its parts."""

from __future__ import annotations


def fingerprint_of(parts: dict[str, str]) -> str:
    """The fingerprint that its parts add up to."""
    from ...model.settings import fingerprint

    return fingerprint(parts)
