"""A model that answers at once, for measuring what is around it; in a module, because Beam pickles local classes whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from audioclip_text.model.encoder import EncodeStats, Encoding
from tests.support.stub import StubEncoder, StubHandler

DIM = 1024


@cache
def noise() -> NDArray[np.float32]:
    """Vectors for up to 16,384 texts; made before the clock runs."""
    return np.random.default_rng(0).standard_normal((16384, DIM), np.float32)


class InstantEncoder(StubEncoder):
    """Gives noise, whatever the texts."""

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        """Vectors [n, 1024] of n texts."""
        lengths = np.full(len(texts), 18, np.int16)
        stats = EncodeStats(texts=len(texts), tokens=18 * len(texts))
        return Encoding(noise()[: len(texts)], lengths, lengths > 77, stats)


class InstantHandler(StubHandler):
    """StubHandler over an InstantEncoder."""

    def load_model(self) -> StubEncoder:
        """A new one costs nothing."""
        return InstantEncoder(DIM, "stub")
