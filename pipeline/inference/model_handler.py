"""The model handlers for RunInference: texts to predictions, and record batches to embedded batches.

Both use the one TextEncoder of the process, however many steps use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from numpy.typing import NDArray

from ...model.fingerprint import describe_changes, fingerprint
from ...model.settings import check_options, join_and_prompt
from ...model.text.encoder import TextEncoder, model_row
from ...model.text.tokenizer import ClipTokenizer
from ..io.local_cache import local_copy
from ..metrics import NAMESPACE
from ..remote.worker_reports import report_errors, start_reporting
from .embed_batch import embed_batch
from .encoder_settings import EncoderSettings, ModelInfo
from .shared_encoder import Contents, describe_model, load_encoder


class TextEmbeddingHandler(ModelHandler[str, PredictionResult, TextEncoder]):  # type: ignore[misc]
    """RunInference handler from texts to PredictionResults, whose `inference` is a float32 [dim] vector.

    Takes the arguments of `TextEncoder.load`, and those of Beam's ModelHandler: sizes of batches, how long a streaming
    pipeline waits for one, batches of texts of similar length, `env_vars` that are set before the model is loaded, and
    `large_model` or `model_copies`, with which the worker processes of a machine share the model. `max_batch_weight` and
    `element_size_fn` are not among them: RunInference passes them on to a transform that takes neither.
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
        max_batch_duration_secs: int | None = None,
        batch_length_fn: Callable[[str], int] | None = None,
        batch_bucket_boundaries: list[int] | None = None,
        large_model: bool = False,
        model_copies: int | None = None,
        env_vars: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            max_batch_duration_secs=max_batch_duration_secs,
            batch_length_fn=batch_length_fn,
            batch_bucket_boundaries=batch_bucket_boundaries,
            large_model=large_model,
            model_copies=model_copies,
            env_vars=dict(env_vars or {}),
        )
        check_options(prompt=prompt, on_long=on_long, dtype=dtype)
        self._settings = EncoderSettings(path, device, dtype, tokenizer_path, prompt, on_long, normalize)

    def update_model_path(self, model_path: str | None = None) -> None:
        """Use the checkpoint at `model_path` from now on; RunInference calls this when a model is updated."""
        if model_path:
            self._settings = replace(self._settings, path=model_path)

    def load_model(self) -> TextEncoder:
        """Return this process's encoder. Warn about a text head that is not AudioCLIP's."""
        encoder = load_encoder(self._settings)
        if encoder.notice:
            warnings.warn(encoder.notice, stacklevel=2)
        return encoder

    def run_inference(
        self, batch: Sequence[str], model: TextEncoder, inference_args: dict[str, object] | None = None
    ) -> list[PredictionResult]:
        """Return one PredictionResult per text, in order; `model_id` is the path of the checkpoint."""
        self.validate_inference_args(inference_args)
        vectors = model.encode(batch)  # [len(batch), dim]
        return [
            PredictionResult(text, vector, self._settings.path) for text, vector in zip(batch, vectors, strict=True)
        ]

    def get_num_bytes(self, batch: Sequence[str]) -> int:
        """Return the size of the texts in UTF-8."""
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in batch)

    def get_metrics_namespace(self) -> str:
        """Return the namespace of all metrics of this project."""
        return NAMESPACE

    def validate_inference_args(self, inference_args: Mapping[str, object] | None) -> None:
        """Raise ValueError for any inference_args, before the job starts."""
        if inference_args:
            raise ValueError(
                f"TextEmbeddingHandler takes no inference_args, got {sorted(inference_args)}: give settings to the handler"
            )


class RecordBatchHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, TextEncoder]):  # type: ignore[misc]
    """RunInference handler from hashed row batches to the same rows with the model's columns appended.

    These are `n_tokens`, `truncated`, `embedding` (dictionary-encoded: equal texts share one vector), and `reason` and
    `detail`, which are null if the row was embedded. The schema's metadata contains the model's counts as `stats`.
    """

    def __init__(self, settings: EncoderSettings, stored: str = "float32") -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._settings = settings
        self._stored = stored
        self._parts: dict[str, str] | None = None  # of the fingerprint when the job was started
        self._contents = Contents()
        self._context_length = 0
        self._tokenizer: ClipTokenizer | None = None
        self.threads: int | None = None  # of the model on a CPU; None: a share of the machine's cores
        self.reports_to: str | None = None  # the run directory of a remote job, in which its launcher looks for errors

    def describe(self) -> ModelInfo:
        """Read checkpoint and vocabulary, return what they are, and bind this handler's workers to them.

        Raises ValueError or OSError, worded for users, if they cannot be used.
        """
        info, self._contents, self._context_length = describe_model(self._settings)
        self._parts = info.fingerprint_parts
        parts = info.fingerprint_parts | {"stored": self._stored}
        return replace(info, fingerprint=fingerprint(parts), fingerprint_parts=parts)

    def count_tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.bool_], int]:
        """Return which of n texts have more tokens than the model reads, bool [n], and how many tokens it would get.

        These are counted as a call of the encoder counts them: with start and end, after truncation, and once for texts of
        equal tokens.
        """
        if self._tokenizer is None:
            self._tokenizer = ClipTokenizer(local_copy(self._settings.vocabulary_path, self._contents.vocabulary))
        too_long, rows = np.zeros(len(texts), np.bool_), set[tuple[int, ...]]()
        for index, text in enumerate(texts):
            tokens = self._tokenizer.encode(join_and_prompt(text, self._settings.prompt))
            too_long[index] = len(tokens) + 2 > self._context_length
            if not (too_long[index] and self._settings.on_long == "reject"):
                rows.add(tuple(model_row(tokens, self._context_length)))
        return too_long, sum(map(len, rows))

    def load_model(self) -> TextEncoder:
        """Return this process's encoder. Raise ValueError if it is not the one that `describe` described."""
        if self.reports_to:
            start_reporting(self.reports_to)
        with report_errors(self.reports_to):
            return self._load_model()

    def _load_model(self) -> TextEncoder:
        encoder = load_encoder(self._settings, self._contents, self.threads)
        if self._parts is not None and self._parts != encoder.fingerprint_parts:
            raise ValueError(
                f"{self._settings.path} on this worker gives other vectors than the launcher (launcher -> worker: "
                f"{describe_changes(encoder.fingerprint_parts, self._parts)}): give every worker the same checkpoint, "
                f"vocabulary and versions of packages"
            )
        return encoder

    def run_inference(
        self, batch: Sequence[pa.RecordBatch], model: TextEncoder, inference_args: dict[str, object] | None = None
    ) -> list[pa.RecordBatch]:
        """Return one embedded batch per row batch, with the same rows in the same order."""
        return [embed_batch(rows, model, self._stored, self.reports_to) for rows in batch]

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Return the size of the batches' columns."""
        return sum(rows.nbytes for rows in batch)

    def get_metrics_namespace(self) -> str:
        """Return the namespace of all metrics of this project."""
        return NAMESPACE
