"""A model that takes no CPU time, to measure the pipeline around it. In a module: Beam pickles local classes whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audioclip_beam.model.head import EncoderSettings, Encoding, ModelInfo, Work
from tests.support.stub import StubEncoder, StubHead
from tests.support.stub_media import DIM as DIGEST_DIM
from tests.support.stub_media import StubMediaEncoder, StubPictures, StubSounds, vector_of

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


class InstantMediaEncoder(StubMediaEncoder):
    """An encoder that returns noise for any pictures or sounds; for vectors of 8 numbers, digests of them."""

    def encode_rows(self, contents: Sequence[Any]) -> Encoding:
        """Return vectors [n, dim] of n contents."""
        n = len(contents)
        self.on_progress(n)
        size = np.full(n, 4, np.int32)
        vectors = np.stack(list(map(vector_of, contents))) if self.dim == DIGEST_DIM else noise()[:n]
        return Encoding(vectors, {"width": size, "height": size}, {}, Work(n, n))


class _Instant:
    """What both heads have instead of a model; `dim` numbers per vector."""

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), self.dim))

    def describe(self, settings: EncoderSettings, files: Any) -> ModelInfo:
        """Return what the encoder is."""
        return replace(super().describe(settings, files), dim=self.dim)  # type: ignore[misc]

    def load(self, settings: EncoderSettings, files: Any, device: str) -> InstantMediaEncoder:
        """Return the encoder."""
        return InstantMediaEncoder(self.describe(settings, files))


class InstantPictures(_Instant, StubPictures):
    """The image head over an InstantMediaEncoder: headers are read, and nothing is decoded."""


class InstantSounds(_Instant, StubSounds):
    """The audio head over an InstantMediaEncoder: sounds are decoded, and not resampled."""
