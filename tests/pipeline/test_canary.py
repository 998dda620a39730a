"""The canary: which vectors of the fixed texts count as those of the same encoder."""

from __future__ import annotations

import base64

import numpy as np
import pyarrow as pa
import pytest

from audioclip_beam.pipeline.canary import CANARY_TEXTS, Canary, canaries_agree, canary_batch, canary_from_batch
from audioclip_beam.pipeline.errors import SnapshotError


def canary_of(cosine: float, texts: tuple[str, ...] = CANARY_TEXTS) -> Canary:
    """Return a canary; the last of its vectors has this cosine to that of `canary_of(1)`, all others are equal."""
    vectors = np.tile(np.array([3, 0], "<f4"), (len(texts), 1))
    vectors[-1] = 3 * cosine, 3 * np.sqrt(1 - cosine**2)
    return {"texts": list(texts), "vectors": base64.b64encode(vectors.tobytes()).decode()}


@pytest.mark.parametrize(
    ("cosine", "dtype", "same"),
    [
        (0.99995, "float32", True),
        (0.9998, "float32", False),
        (0.9998, "bfloat16", True),
        (0.9998, "float16", True),
        (0.9993, "bfloat16", False),
    ],
)
def test_one_vector_that_differs_decides(cosine: float, dtype: str, same: bool) -> None:
    assert canaries_agree(canary_of(cosine), canary_of(1), dtype) == same


def test_vectors_of_other_texts_are_not_compared() -> None:
    assert not canaries_agree(canary_of(1), canary_of(1, (*CANARY_TEXTS[:-1], "another text")), "float32")


def test_a_text_on_which_the_model_failed_is_an_error() -> None:
    """Its vector is not a canary's."""
    batch = canary_batch()
    details = pa.array(["", "", "RuntimeError: out of memory", *[""] * (len(CANARY_TEXTS) - 3)])
    with pytest.raises(
        SnapshotError, match="the model failed on 1 of the 16 canary texts; the first error is: Runtime"
    ):
        canary_from_batch(batch.append_column("detail", details))
