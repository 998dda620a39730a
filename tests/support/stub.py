"""A text head whose encoder is arithmetic: the pipeline's tests and benchmarks need no weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from audioclip_beam.model.fingerprint import SCHEME
from audioclip_beam.model.head import EncoderSettings, Encoding, Measure, ModelInfo, Work
from audioclip_beam.model.text.head import TextHead, TextSettings

LIMIT = 77  # tokens that the stub reads


class StubEncoder:
    """An encoder whose vectors are a function of the text alone; `calls` lists the texts of each call."""

    device_type = ""

    def __init__(self, info: ModelInfo, delay: float = 0.0) -> None:
        self.info, self.dim, self.delay = info, info.dim, delay
        self.on_progress: Callable[[int], object] = lambda items: None
        self.run_call: Callable[[Callable[[], Any]], Any] | None = None
        self.calls: list[list[str]] = []

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        if any("poison" in text for text in texts):
            raise RuntimeError("this text is poison")
        self.calls.append(list(texts))
        time.sleep(self.delay * len(texts))
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        vectors = np.array(seeds, np.float32)[:, None] / 2**32 + np.arange(self.dim, dtype=np.float32)
        vectors[["not a number" in text for text in texts]] = np.nan
        lengths = np.array([min(len(text.split()) + 2, 32767) for text in texts], np.int16)
        tokens = int(lengths.sum())
        work = Work(len(texts), tokens, micro_batches=1, model_seconds=0.001, extra={"nodes": tokens, "slots": tokens})
        return Encoding(vectors, {"n_tokens": lengths, "truncated": lengths > LIMIT}, {}, work)


ENCODERS: dict[str, StubEncoder] = {}


class StubHead(TextHead):
    """The text head over a StubEncoder.

    Args:
        dim: Numbers per vector.
        weights: Stands for the weights: vectors are reused only if it is the same.
        delay: Seconds that the encoder takes per text.
        sha256: Stands for the digest of the checkpoint's file.
    """

    def __init__(self, dim: int = 8, weights: str = "stub", delay: float = 0.0, sha256: str = "0" * 64) -> None:
        self.dim, self.weights, self.delay, self.sha256 = dim, weights, delay, sha256

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(repr(sorted(vars(self).items())))

    def settings(self, options: Mapping[str, Any]) -> TextSettings:
        return replace(super().settings(options), device="cpu")

    def read(self, copies: Sequence[str]) -> Any:
        return None

    def describe(self, settings: EncoderSettings, files: Any) -> ModelInfo:
        return self.info()

    def info(self) -> ModelInfo:
        parts = {"scheme": SCHEME, "head": self.name, "weights": self.weights, "vocabulary": "v", "prompt": "{}"}
        parts |= {"on_long": "truncate", "normalize": "false", "dtype": "float32", **self.versions()}
        return ModelInfo(self.name, self.weights, self.sha256, True, self.dim, parts, LIMIT)

    def load(self, settings: EncoderSettings, files: Any, device: str) -> StubEncoder:  # type: ignore[override]
        return self.encoder()

    def encoder(self) -> StubEncoder:
        """Return the encoder of this process."""
        return ENCODERS.setdefault(f"{self.info().fingerprint}/{self.dim}", self.make_encoder())

    def make_encoder(self) -> StubEncoder:
        """Return a new encoder."""
        return StubEncoder(self.info(), self.delay)

    def measurer(
        self, settings: EncoderSettings, info: ModelInfo, copy_of: Callable[[int], str]
    ) -> Callable[[Sequence[str]], Measure]:
        def measure(texts: Sequence[str]) -> Measure:
            lengths = np.array([len(text.split()) + 2 for text in texts])
            none = np.zeros(len(texts), np.bool_)
            return Measure(int(lengths.sum()), none, lengths > LIMIT if settings.forbidden else none)

        return measure


class OtherEncoder(StubEncoder):
    """An encoder that gives other vectors than its fingerprint promises."""

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        encoding = super().encode_rows(texts)
        return replace(encoding, vectors=-encoding.vectors[:, ::-1])


class OtherHead(StubHead):
    """A head with the fingerprint of StubHead and other vectors."""

    def encoder(self) -> StubEncoder:
        return ENCODERS.setdefault("other", OtherEncoder(self.info()))
