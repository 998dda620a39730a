"""The RunInference model handlers: texts to predictions, and record batches to embedded batches.

Both put one TextEncoder into a process, whatever the number of steps that use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from ...model.encoder import TextEncoder
from ...model.settings import check_options, fingerprint, join_and_prompt
from ...model.tokenizer import ClipTokenizer
from ..io.local_cache import local_copy
from ..metrics import NAMESPACE
from .embed_batch import embed_batch
from .shared_encoder import Contents, EncoderSettings, ModelInfo, describe_model, load_encoder, vocabulary_path

RESOURCE_HINTS = {"min_ram": "4GB"}


def resource_hints(accelerator: str | None) -> dict[str, str]:
    """Beam's hints for the steps that run the model: memory, and a card of the kind named, as in "nvidia-l4"."""
    card = {"accelerator": f"type:{accelerator};count:1;install-nvidia-driver"} if accelerator else {}
    return RESOURCE_HINTS | card


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
        check_options(prompt=prompt, on_long=on_long, dtype=dtype)
        self._settings = EncoderSettings(path, device, dtype, tokenizer_path, prompt, on_long, normalize)

    def update_model_path(self, model_path: str | None = None) -> None:
        """The checkpoint to load from now on, as RunInference's model updates give it."""
        if model_path:
            self._settings = replace(self._settings, path=model_path)

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

    def describe(self) -> ModelInfo:
        """Read checkpoint and vocabulary, say what they are, and tie this handler's workers to them.

        Raises ValueError or OSError, with a text for people, where they cannot be used.
        """
        model, self._contents, self._context = describe_model(self._settings)
        self._fingerprint = model.fingerprint
        parts = model.fingerprint_parts | {"stored": self._stored}
        return replace(model, fingerprint=fingerprint(parts), fingerprint_parts=parts)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the model would read of `texts`, start and end included."""
        if self._counting is None:
            self._counting = ClipTokenizer(local_copy(vocabulary_path(self._settings), self._contents[1]))
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
