"""The canary: which vectors of the fixed texts count as those of the same encoder."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import pytest

from audioclip_beam.model.head import Encoding
from audioclip_beam.model.text.head import CANARY_TEXTS
from audioclip_beam.pipeline.canary import Canary, canaries_agree
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.flags import defaults
from audioclip_beam.pipeline.inference.embed_batch import embed_canary
from audioclip_beam.pipeline.inference.shared_encoder import describe_model
from tests.support.stub import StubEncoder, StubHead


def canary_of(cosine: float, texts: tuple[str, ...] = CANARY_TEXTS) -> Canary:
    """Return a canary; the last of its vectors has this cosine to that of `canary_of(1)`, all others are equal."""
    vectors = np.tile(np.array([3, 0], "<f4"), (len(texts), 1))
    vectors[-1] = 3 * cosine, 3 * np.sqrt(1 - cosine**2)
    return {"contents": list(texts), "vectors": base64.b64encode(vectors.tobytes()).decode()}


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
    model = describe_model(StubHead(), StubHead().settings(defaults() | {"checkpoint": "untrained"}))

    class Failing(StubEncoder):
        def encode_rows(self, texts: Sequence[str]) -> Encoding:
            if CANARY_TEXTS[2] in texts:
                raise RuntimeError("out of memory")
            return super().encode_rows(texts)

    with pytest.raises(
        SnapshotError, match="the model failed on 1 of the 16 canary texts; the first error is: Runtime"
    ):
        embed_canary(model, Failing(model.info))
