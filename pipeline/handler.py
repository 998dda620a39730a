"""The RunInference model handlers: texts to predictions, and record batches to embedded batches.

The only file of this room that imports the model's. Both handlers put one TextEncoder into a process, whatever the
number of steps that use it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import fspath
from typing import TypeAlias

import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from ..model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from ..model.encoder import VOCABULARY, TextEncoder
from ..model.settings import check_options, fingerprint, fingerprint_parts, join_and_prompt
from ..model.text_head import check_vocabulary
from ..model.text_head import logit_scale as scale_of
from ..model.tokenizer import ClipTokenizer, TokenizerError
from .cache import Content, content_of, local_copy
from .embedding import embed_batch
from .metrics import NAMESPACE, model_ran
from .stores import is_local

RESOURCE_HINTS = {"min_ram": "4GB"}


def resource_hints(accelerator: str | None) -> dict[str, str]:
    """Beam's hints for the steps that run the model: memory, and a card of the kind named, as in "nvidia-l4"."""
    card = {"accelerator": f"type:{accelerator};count:1;install-nvidia-driver"} if accelerator else {}
    return RESOURCE_HINTS | card


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


# What checkpoint and vocabulary on a store held when the job was started.
Contents: TypeAlias = "tuple[Content | None, Content | None]"

_lock = threading.Lock()
_read: dict[tuple[str, str | None], tuple[Checkpoint, ClipTokenizer, Contents]] = {}
_loaded: dict[EncoderSettings, TextEncoder] = {}


def load_encoder(settings: EncoderSettings, contents: Contents = (None, None)) -> TextEncoder:
    """This process's encoder for `settings`; an encoder of other settings gives way to it."""
    with _lock:
        if settings not in _loaded:
            _loaded.clear()
            checkpoint, tokenizer, _ = _parts(settings, contents)
            _read.clear()
            _loaded[settings] = TextEncoder(
                checkpoint,
                tokenizer,
                device=settings.device,
                dtype=settings.dtype,
                prompt=settings.prompt,
                on_long=settings.on_long,
                normalize=settings.normalize,
            )
            _loaded[settings].on_progress = model_ran
        return _loaded[settings]


def _parts(settings: EncoderSettings, contents: Contents = (None, None)) -> tuple[Checkpoint, ClipTokenizer, Contents]:
    """What an encoder is made of, kept from its description until it is built: a local run does both."""
    key = settings.path, settings.tokenizer_path
    if key not in _read:
        _read.clear()
        given = _files(settings)
        checkpoint, vocabulary = (local_copy(file, content) for file, content in zip(given, contents, strict=True))
        held = (
            None if is_local(given[0]) else content_of(checkpoint),
            None if is_local(given[1]) else content_of(vocabulary),
        )
        try:
            _read[key] = load_checkpoint(checkpoint), ClipTokenizer(vocabulary), held
        except (CheckpointError, TokenizerError) as error:  # of copies that nobody asked for by these names
            text = str(error).replace(checkpoint, given[0]).replace(vocabulary, given[1])
            raise type(error)(text) from None
    return _read[key]


def logit_scale(settings: EncoderSettings, other: str) -> float:
    """What AudioCLIP multiplies cosines of texts with `other`, "audio" or "image", by; ValueError where it is not there."""
    with _lock:
        checkpoint, _, _ = _parts(settings)
    return scale_of(checkpoint.state, other)


def _files(settings: EncoderSettings) -> tuple[str, str]:
    """Where checkpoint and vocabulary lie."""
    return fspath(settings.path), fspath(settings.tokenizer_path or VOCABULARY)


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
        self._contents: Contents = (None, None)
        self._context = 0
        self._counting: ClipTokenizer | None = None

    def describe(self) -> ModelCard:
        """Read checkpoint and vocabulary, say what they are, and tie this handler's workers to them.

        Raises ValueError or OSError, with a text for people, where they cannot be used.
        """
        chosen = self._settings
        check_options(prompt=chosen.prompt, on_long=chosen.on_long, dtype=chosen.dtype)
        with _lock:
            checkpoint, tokenizer, self._contents = _parts(chosen)
        check_vocabulary(checkpoint.name, checkpoint.state)
        parts = fingerprint_parts(
            checkpoint,
            tokenizer.sha256,
            prompt=chosen.prompt,
            on_long=chosen.on_long,
            normalize=chosen.normalize,
            dtype=chosen.dtype,
        )
        self._context = checkpoint.state["positional_embedding"].shape[0]
        self._fingerprint = fingerprint(parts)
        parts["stored"] = self._stored
        dim = checkpoint.state["text_projection"].shape[1]
        return ModelCard(checkpoint.name, checkpoint.sha256, checkpoint.untrained, dim, fingerprint(parts), parts)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the model would read of `texts`, start and end included."""
        if self._counting is None:
            self._counting = ClipTokenizer(local_copy(_files(self._settings)[1], self._contents[1]))
        lengths = (len(self._counting.encode(join_and_prompt(text, self._settings.prompt))) + 2 for text in texts)
        return sum(min(length, self._context) for length in lengths)

    def load_model(self) -> TextEncoder:
        """This process's encoder; ValueError where it is not what `describe` found when the job was started."""
        encoder = load_encoder(self._settings, self._contents)
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
