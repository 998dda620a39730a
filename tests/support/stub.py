"""A model handler whose encoder is arithmetic: the pipeline's tests and benchmarks need no weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from audioclip_beam.model.fingerprint import SCHEME, fingerprint, tokenizer_versions
from audioclip_beam.model.text.encoder import EncodeStats, Encoding
from audioclip_beam.pipeline.inference.encoder_settings import EncoderSettings, ModelInfo
from audioclip_beam.pipeline.inference.model_handler import RecordBatchHandler


class StubEncoder:
    """An encoder whose vectors are a function of the text alone; `calls` lists the texts of each call."""

    on_long = "truncate"
    tower = SimpleNamespace(context_length=77)

    def __init__(self, dim: int, fingerprint: str, delay: float = 0.0) -> None:
        self.dim, self.fingerprint, self.delay = dim, fingerprint, delay
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
        stats = EncodeStats(len(texts), tokens, nodes=tokens, slots=tokens, micro_batches=1, model_seconds=0.001)
        return Encoding(vectors, lengths, lengths > 77, stats)


ENCODERS: dict[str, StubEncoder] = {}


class StubHandler(RecordBatchHandler):
    """RecordBatchHandler over a StubEncoder; `name` stands for the text head, `sha256` for the checkpoint's file."""

    def __init__(self, dim: int = 8, name: str = "stub", delay: float = 0.0, sha256: str = "0" * 64) -> None:
        super().__init__(EncoderSettings(name))
        self.dim, self.name, self.delay, self.sha256 = dim, name, delay, sha256

    def describe(self) -> ModelInfo:
        parts = {"scheme": SCHEME, "weights": self.name, "vocabulary": "v", "prompt": "{}"}
        parts |= {"on_long": "truncate", "normalize": "false", "dtype": "float32", "stored": self._stored}
        parts |= tokenizer_versions()
        return ModelInfo(self.name, self.sha256, True, self.dim, fingerprint(parts), parts)

    def load_model(self) -> StubEncoder:  # type: ignore[override]
        return ENCODERS.setdefault(f"{self.name}/{self.dim}", StubEncoder(self.dim, self.name, self.delay))

    def count_tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.bool_], int]:
        lengths = np.array([len(text.split()) + 2 for text in texts])
        return lengths > StubEncoder.tower.context_length, int(lengths.sum())


class OtherEncoder(StubEncoder):
    """An encoder that gives other vectors than its fingerprint promises."""

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        encoding = super().encode_rows(texts)
        return replace(encoding, vectors=-encoding.vectors[:, ::-1])


class OtherHandler(StubHandler):
    """A handler with the fingerprint of StubHandler and other vectors."""

    def load_model(self) -> StubEncoder:  # type: ignore[override]
        return ENCODERS.setdefault("other", OtherEncoder(self.dim, self.name))
