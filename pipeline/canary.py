"""The canary: fixed contents of a head whose vectors show whether an encoder still computes the same vectors."""

from __future__ import annotations

import base64
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Canary(TypedDict):
    """The vectors of fixed contents, as base64 of little-endian float32 [contents, dim], and the names of the contents."""

    contents: list[str]
    vectors: str


def make_canary(contents: list[str], vectors: NDArray[np.floating]) -> Canary:
    """Return the canary of contents with these names and vectors [contents, dim]."""
    return {"contents": contents, "vectors": base64.b64encode(vectors.astype("<f4").tobytes()).decode()}


def _vectors_of(canary: Canary) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(canary["vectors"], validate=True), "<f4")  # [contents * dim]


def canary_fault(canary: Canary, dim: int) -> str | None:
    """Return what is wrong with a canary that was read from a file, of vectors of `dim` numbers; None if nothing is."""
    contents = canary["contents"]
    try:
        numbers = _vectors_of(canary)
    except ValueError as error:
        return f"cannot be decoded: {error}"
    if not contents or numbers.size != len(contents) * dim:
        return f"has {numbers.size:,} numbers for {len(contents):,} contents"
    return None if np.isfinite(numbers).all() else "contains NaN or infinity"


def canaries_agree(now: Canary, before: Canary | None, dtype: str) -> bool:
    """Return whether two canaries have equal vectors: cosines of at least 0.9999, or 0.9995 in reduced precision."""
    if before is None:
        return True
    if now["contents"] != before["contents"]:
        return False
    old, new = (_vectors_of(canary).reshape(len(canary["contents"]), -1) for canary in (before, now))
    if old.shape != new.shape:
        return False
    cosine = (old * new).sum(1) / np.maximum(np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1), 1e-30)
    return bool((cosine >= (0.9999 if dtype == "float32" else 0.9995)).all())
