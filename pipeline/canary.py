"""The canary: 16 fixed texts whose vectors show whether an encoder still computes the same vectors."""

from __future__ import annotations

import base64
from typing import TypedDict

import numpy as np
import pyarrow as pa

from .errors import SnapshotError
from .schemas import ROW

CANARY_TEXTS = (
    "dog barking",
    "rain on a tin roof",
    "a choir singing in a cathedral",
    "glass breaking, then footsteps running away",
    "thunder",
    "Coffee machine grinding beans; cups clinking in the background",
    "an old steam train leaving the station",
    "1, 2, 3, 4 - count-in with drum sticks",
    "le vent dans les arbres",
    "Möwen über dem Hafen",
    "猫がのどを鳴らす",
    "шум прибоя",
    "a",
    "people laughing & applauding (crowd)",
    "slow piano music with a crackling vinyl noise, recorded from far away in a large empty hall",
    "🎸 solo",
)


class Canary(TypedDict):
    """The vectors of the fixed texts, as base64 of little-endian float32 [16, dim]."""

    texts: list[str]
    vectors: str


def canary_batch() -> pa.RecordBatch:
    """Return CANARY_TEXTS as one row batch."""
    places = list(range(len(CANARY_TEXTS)))
    columns = {"shard": ["canary"] * len(places), "row": places, "id": list(map(str, places)), "text": CANARY_TEXTS}
    return pa.RecordBatch.from_pydict(columns, schema=ROW)


def canary_from_batch(batch: pa.RecordBatch) -> Canary:
    """Return the canary of an embedded batch of CANARY_TEXTS.

    Raises:
        SnapshotError: The model failed on one of the texts.
    """
    failed = [detail for detail in batch.column("detail").to_pylist() if detail]
    if failed:
        raise SnapshotError(
            f"the model failed on {len(failed)} of the {len(CANARY_TEXTS)} canary texts; the first error is: "
            f"{failed[0]}; check the checkpoint, the device and its driver"
        )
    vectors = batch.column("embedding").dictionary_decode().values.to_numpy(zero_copy_only=False)
    return {
        "texts": batch.column("text").to_pylist(),
        "vectors": base64.b64encode(vectors.astype("<f4").tobytes()).decode(),
    }


def canary_fault(canary: Canary, dim: int) -> str | None:
    """Return what is wrong with a canary that was read from a file, of vectors of `dim` numbers; None if nothing is."""
    texts = canary["texts"]
    try:
        numbers = np.frombuffer(base64.b64decode(canary["vectors"], validate=True), "<f4")  # [texts * dim]
    except ValueError as error:
        return f"cannot be decoded: {error}"
    if not texts or numbers.size != len(texts) * dim:
        return f"has {numbers.size:,} numbers for {len(texts):,} texts"
    return None if np.isfinite(numbers).all() else "contains NaN or infinity"


def canaries_agree(now: Canary, before: Canary | None, dtype: str) -> bool:
    """Return whether two canaries have equal vectors: cosines of at least 0.9999, or 0.9995 in reduced precision."""
    if before is None:
        return True
    if now["texts"] != before["texts"]:
        return False
    old, new = (
        np.frombuffer(base64.b64decode(canary["vectors"]), "<f4").reshape(len(canary["texts"]), -1)
        for canary in (before, now)
    )
    if old.shape != new.shape:
        return False
    cosine = (old * new).sum(1) / np.maximum(np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1), 1e-30)
    return bool((cosine >= (0.9999 if dtype == "float32" else 0.9995)).all())
