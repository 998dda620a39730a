"""The RunInference model handlers: texts to predictions, and record batches to embedded batches.

The only file of this room that imports the model's. Both handlers put one TextEncoder into a process, whatever the
number of steps that use it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from numpy.typing import NDArray

from ..model.checkpoint import load_checkpoint
from ..model.encoder import VOCABULARY, EncodeStats, TextEncoder
from ..model.settings import check_options, fingerprint, fingerprint_parts, join_and_prompt
from ..model.tokenizer import ClipTokenizer
from .metrics import NAMESPACE
from .records import vector_type

RESOURCE_HINTS = {"min_ram": "4GB"}

# A batch of this many different texts that fail without exception says that the model is broken, not that its rows are.
ALL_FAILED = 8

CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class EncoderSettings:
    """What TextEncoder.load takes: picklable, and the key under which a process keeps its encoder."""

    path: str
    device: str = "auto"
    dtype: str = "float32"
    tokenizer_path: str | None = None
    prompt: str = "{}"
    on_long: str = "truncate"
    normalize: bool = False


_lock = threading.Lock()
_loaded: dict[EncoderSettings, TextEncoder] = {}


def load_encoder(settings: EncoderSettings) -> TextEncoder:
    """This process's encoder for `settings`; an encoder of other settings gives way to it."""
    with _lock:
        if settings not in _loaded:
            _loaded.clear()
            arguments = asdict(settings)
            _loaded[settings] = TextEncoder.load(arguments.pop("path"), **arguments)
        return _loaded[settings]


class TextEmbeddingHandler(ModelHandler[str, PredictionResult, TextEncoder]):  # type: ignore[misc]
    """RunInference handler from texts to PredictionResults whose `inference` is a float32 [dim] vector.

    Takes the keyword arguments of `TextEncoder.load`; `large_model` and `model_copies` share one model across the
    worker processes of a machine, as for Beam's own handlers.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        tokenizer_path: str | None = None,
        prompt: str = "{}",
        on_long: str = "truncate",
        normalize: bool = False,
        min_batch_size: int = 64,
        max_batch_size: int = 4096,
        large_model: bool = False,
        model_copies: int | None = None,
    ) -> None:
        super().__init__(
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            large_model=large_model,
            model_copies=model_copies,
        )
        self._settings = EncoderSettings(path, device, dtype, tokenizer_path, prompt, on_long, normalize)

    def load_model(self) -> TextEncoder:
        """This process's encoder."""
        return load_encoder(self._settings)

    def run_inference(
        self, batch: Sequence[str], model: TextEncoder, inference_args: dict[str, object] | None = None
    ) -> list[PredictionResult]:
        """One PredictionResult a text, in order; `model_id` is the checkpoint given."""
        if inference_args:
            raise ValueError(f"TextEmbeddingHandler takes no inference_args, got {sorted(inference_args)}")
        vectors = model.encode(batch)
        return [
            PredictionResult(text, vector, self._settings.path) for text, vector in zip(batch, vectors, strict=True)
        ]

    def get_num_bytes(self, batch: Sequence[str]) -> int:
        """UTF-8 bytes of the texts."""
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in batch)

    def get_metrics_namespace(self) -> str:
        """The namespace that all of this project's metrics share."""
        return NAMESPACE

    def get_resource_hints(self) -> dict[str, str]:
        """Memory for the weights, torch and a batch."""
        return RESOURCE_HINTS

    def validate_inference_args(self, inference_args: Mapping[str, object] | None) -> None:
        """Refuse inference_args before the job starts."""
        if inference_args:
            raise ValueError(f"TextEmbeddingHandler takes no inference_args, got {sorted(inference_args)}")


@dataclass(frozen=True)
class ModelCard:
    """What a job says of its model: all that a launcher must know without building the tower."""

    name: str
    sha256: str
    untrained: bool
    dim: int
    fingerprint: str
    fingerprint_parts: dict[str, str]

    @property
    def weights(self) -> str:
        """What a reader of the output must know: "trained" or "untrained"."""
        return "untrained" if self.untrained else "trained"


class RecordBatchHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, TextEncoder]):  # type: ignore[misc]
    """RunInference handler from hashed row batches to the same rows with the model's columns behind them.

    The added columns are `n_tokens`, `truncated`, `embedding` (dictionary-encoded: equal texts share one vector), and
    `reason` and `detail`, null where the row was embedded. What the model did stands in the schema's metadata as
    `stats`.
    """

    def __init__(self, settings: EncoderSettings, stored: str = "float32") -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._settings = settings
        self._stored = stored
        self._fingerprint: str | None = None
        self._counting: ClipTokenizer | None = None

    def describe(self) -> ModelCard:
        """Read checkpoint and vocabulary, say what they are, and tie this handler's workers to them.

        Raises ValueError or OSError, with a text for people, where they cannot be used.
        """
        chosen = self._settings
        check_options(prompt=chosen.prompt, on_long=chosen.on_long, dtype=chosen.dtype)
        checkpoint = load_checkpoint(chosen.path)
        parts = fingerprint_parts(
            checkpoint,
            self._tokenizer().sha256,
            prompt=chosen.prompt,
            on_long=chosen.on_long,
            normalize=chosen.normalize,
            dtype=chosen.dtype,
        )
        self._fingerprint = fingerprint(parts)
        parts["stored"] = self._stored
        dim = checkpoint.state["text_projection"].shape[1]
        return ModelCard(checkpoint.name, checkpoint.sha256, checkpoint.untrained, dim, fingerprint(parts), parts)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the model would read of `texts`, start and end included."""
        if self._counting is None:
            self._counting = self._tokenizer()
        lengths = (len(self._counting.encode(join_and_prompt(text, self._settings.prompt))) + 2 for text in texts)
        return sum(min(length, CONTEXT_LENGTH) for length in lengths)

    def _tokenizer(self) -> ClipTokenizer:
        return ClipTokenizer(self._settings.tokenizer_path or VOCABULARY)

    def load_model(self) -> TextEncoder:
        """This process's encoder; ValueError where it is not what `describe` found when the job was started."""
        encoder = load_encoder(self._settings)
        if self._fingerprint not in (None, encoder.fingerprint):
            raise ValueError(
                f"{self._settings.path} on this worker has fingerprint {encoder.fingerprint[:8]}, the job was started "
                f"with {self._fingerprint[:8]}: give every worker the same checkpoint and vocabulary"
            )
        return encoder

    def run_inference(
        self, batch: Sequence[pa.RecordBatch], model: TextEncoder, inference_args: dict[str, object] | None = None
    ) -> list[pa.RecordBatch]:
        """One embedded batch a row batch, with the same rows in the same order."""
        return [embed_batch(rows, model, self._stored) for rows in batch]

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Bytes of the batches' columns."""
        return sum(rows.nbytes for rows in batch)

    def get_metrics_namespace(self) -> str:
        """The namespace that all of this project's metrics share."""
        return NAMESPACE

    def get_resource_hints(self) -> dict[str, str]:
        """Memory for the weights, torch and a batch."""
        return RESOURCE_HINTS


@dataclass
class _Outcome:
    """What became of some texts: arrays of their length, and the failures among them by position."""

    vectors: NDArray[np.float32]
    n_tokens: NDArray[np.int16]
    truncated: NDArray[np.bool_]
    failed: dict[int, str]
    stats: list[EncodeStats]


def embed_batch(rows: pa.RecordBatch, encoder: TextEncoder, stored: str = "float32") -> pa.RecordBatch:
    """`rows` with the model's columns behind them, as RecordBatchHandler describes."""
    texts = rows.column("text").dictionary_encode()
    words = texts.dictionary.to_pylist()
    outcome = _encode_each(words, encoder)
    if len(outcome.failed) == len(words) >= ALL_FAILED:
        raise RuntimeError(f"the model failed on all {len(words)} texts of a batch; the last said {outcome.failed[0]}")
    reasons: list[str | None] = [None] * len(words)
    details: list[str | None] = [None] * len(words)
    for place in np.flatnonzero(~np.isfinite(outcome.vectors).all(axis=1)).tolist():
        if place in outcome.failed:
            reasons[place], details[place] = "model error", outcome.failed[place]
        elif encoder.on_long == "reject" and outcome.truncated[place]:
            reasons[place] = "too long"
            details[place] = f"{outcome.n_tokens[place]} tokens, the context holds {encoder.tower.context_length}"
        else:
            reasons[place], details[place] = "non-finite vector", "the model gave a vector with NaN or infinity"
    dim = outcome.vectors.shape[1]
    numbers = pa.array(outcome.vectors.astype(stored, copy=False).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(numbers, type=vector_type(dim, stored))
    made = {
        "n_tokens": pa.array(outcome.n_tokens).take(texts.indices),
        "truncated": pa.array(outcome.truncated).take(texts.indices),
        "embedding": pa.DictionaryArray.from_arrays(texts.indices, vectors),
        "reason": pa.array(reasons, pa.string()).take(texts.indices),
        "detail": pa.array(details, pa.string()).take(texts.indices),
    }
    batch = pa.RecordBatch.from_arrays([*rows.columns, *made.values()], names=[*rows.schema.names, *made])
    return batch.replace_schema_metadata({"stats": json.dumps(_summed(outcome.stats, len(words)))})


def _encode_each(texts: list[str], encoder: TextEncoder) -> _Outcome:
    """Encode `texts`; where that fails, halve until the texts that the model cannot take stand alone."""
    try:
        encoding = encoder.encode_rows(texts)
        if len(encoding.vectors) != len(texts):
            raise RuntimeError(f"the encoder gave {len(encoding.vectors)} vectors for {len(texts)} texts")
        return _Outcome(encoding.vectors, encoding.n_tokens, encoding.truncated, {}, [encoding.stats])
    except Exception as error:
        if len(texts) == 1:
            lost = np.full((1, encoder.dim), np.nan, np.float32)
            what = f"{type(error).__name__}: {error}"[:1000]
            return _Outcome(lost, np.zeros(1, np.int16), np.zeros(1, np.bool_), {0: what}, [])
    half = len(texts) // 2
    left, right = _encode_each(texts[:half], encoder), _encode_each(texts[half:], encoder)
    return _Outcome(
        np.concatenate([left.vectors, right.vectors]),
        np.concatenate([left.n_tokens, right.n_tokens]),
        np.concatenate([left.truncated, right.truncated]),
        left.failed | {half + place: what for place, what in right.failed.items()},
        left.stats + right.stats,
    )


def _summed(parts: list[EncodeStats], texts: int) -> dict[str, float]:
    total: dict[str, float] = {"model_texts": texts}
    for part in parts:
        for name, value in asdict(part).items():
            total[name] = total.get(name, 0) + value
    return total
