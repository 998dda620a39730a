"""A model that takes no CPU time, to measure the pipeline around it. In a module: Beam pickles local classes whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from audioclip_beam.model.head import Encoding, Work
from tests.support.stub import StubEncoder, StubHead

DIM = 1024


@cache
def noise() -> NDArray[np.float32]:
    """Return vectors for up to 16,384 texts; called once before the measurement."""
    return np.random.default_rng(0).standard_normal((16384, DIM), np.float32)


class InstantEncoder(StubEncoder):
    """An encoder that returns noise for any texts, `delay` seconds per text later, as a device would."""

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        """Return vectors [n, 1024] of n texts."""
        time.sleep(self.delay * len(texts))  # other threads go on
        lengths = np.full(len(texts), 18, np.int16)
        columns = {"n_tokens": lengths, "truncated": lengths > 77}
        return Encoding(noise()[: len(texts)], columns, {}, Work(len(texts), 18 * len(texts)))


class InstantHead(StubHead):
    """A StubHead with an InstantEncoder."""

    def encoder(self) -> StubEncoder:
        """Return a new encoder."""
        return InstantEncoder(self.info(), self.delay)
