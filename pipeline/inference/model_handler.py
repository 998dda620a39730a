"""The model handlers for RunInference: texts to predictions, and, for whole pipelines, record batches and the canary.

All use the one encoder of the process, however many steps use it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from ...model.fingerprint import describe_changes
from ...model.head import DeviceError, Encoder, EncoderSettings, InstallationError, describe, is_row
from ...model.heads import find_head
from ...model.text.settings import TextSettings
from ...model.text.texts import join
from ..canary import Canary
from ..embedded_batch import EmbeddedBatch
from ..metrics import NAMESPACE
from ..remote.decoder_watch import end_watch
from ..remote.worker_reports import RunReports
from .content_reader import ContentReader
from .embed_batch import embed_batch, embed_canary
from .shared_encoder import ModelDescription, load_encoder, note_on_gpu

if TYPE_CHECKING:
    from ...model.text.encoder import TextEncoder


LOG_SECONDS = 5.0  # in which what was logged reaches the runner, at most

_LOGGER = logging.getLogger(__name__)


class EncoderHandler(ModelHandler[Any, Any, Any]):  # type: ignore[misc]
    """What the RunInference handlers for pipelines of users share: the encoder of a head, by its settings, and batches.

    `max_batch_weight` and `element_size_fn` of Beam's ModelHandler are not among the arguments: RunInference passes them on
    to a transform that takes neither.

    Args:
        settings: What the encoder is loaded from.
        min_batch_size: The fewest elements of a batch.
        max_batch_size: The most elements of a batch.
        max_batch_duration_secs: How long a streaming pipeline waits for a batch.
        batch_length_fn: The length of an element, for batches of elements of similar length.
        batch_bucket_boundaries: The lengths at which these batches are cut.
        large_model: Whether the worker processes of a machine share one model.
        model_copies: How many models they share.
        env_vars: Environment variables that are set before the model is loaded.
    """

    head_name = ""

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        min_batch_size: int,
        max_batch_size: int,
        max_batch_duration_secs: int | None = None,
        batch_length_fn: Callable[[Any], int] | None = None,
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
        settings.check()
        self._settings = settings

    @property
    def model_path(self) -> str:
        """Path of the checkpoint, the `model_id` of predictions."""
        return self._settings.path

    def update_model_path(self, model_path: str | None = None) -> None:
        """Use the checkpoint at `model_path` from now on; RunInference calls this when a model is updated."""
        if model_path:
            self._settings = replace(self._settings, path=model_path)

    def load_model(self) -> Encoder:
        """Return this process's encoder. Warn about a head that is not AudioCLIP's, and a GPU that torch does not see."""
        encoder = load_encoder(find_head(self.head_name), self._settings)
        for note in filter(None, (encoder.info.notice, note_on_gpu(self._settings))):
            warnings.warn(note, stacklevel=2)
        return encoder

    def get_metrics_namespace(self) -> str:
        """Return the namespace of all metrics of this project."""
        return NAMESPACE


class TextEmbeddingHandler(EncoderHandler):
    """RunInference handler from texts to PredictionResults, whose `inference` is a float32 [dim] vector.

    An element is a str, or a list[str], which is one text; anything else is a TypeError before the model runs.

    Args:
        path: A released .pt, a text-only .safetensors, "full", "partial" or "untrained".
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or, on CUDA, "float16".
        tokenizer_path: The BPE vocabulary; by default the one that `audioclip fetch` writes.
        prompt: A template for each text, with {} for the text.
        on_long: "truncate", "reject" or "error", for texts longer than the context.
        normalize: Whether to scale vectors to length 1.
        min_batch_size: The fewest texts of a batch.
        max_batch_size: The most texts of a batch.
        batching: Arguments of EncoderHandler: max_batch_duration_secs, batch_length_fn, batch_bucket_boundaries,
            large_model, model_copies, env_vars.
    """

    head_name = "text"

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
        **batching: Any,
    ) -> None:
        settings = TextSettings(
            path,
            device=device,
            dtype=dtype,
            normalize=normalize,
            tokenizer_path=tokenizer_path,
            prompt=prompt,
            on_long=on_long,
        )
        super().__init__(settings, min_batch_size=min_batch_size, max_batch_size=max_batch_size, **batching)

    def run_inference(
        self, batch: Sequence[str | list[str]], model: TextEncoder, inference_args: dict[str, object] | None = None
    ) -> list[PredictionResult]:
        """Return one PredictionResult per text, in order; `model_id` is the path of the checkpoint."""
        self.validate_inference_args(inference_args)
        for element in batch:
            check_element(element)
        vectors = model.encode(batch)  # [len(batch), dim]
        return [PredictionResult(text, vector, self.model_path) for text, vector in zip(batch, vectors, strict=True)]

    def get_num_bytes(self, batch: Sequence[str | list[str]]) -> int:
        """Return the size of the texts in UTF-8."""
        return sum(len(join(text).encode("utf-8", "surrogatepass")) for text in batch)

    def validate_inference_args(self, inference_args: Mapping[str, object] | None) -> None:
        """Raise ValueError for any inference_args, before the job starts."""
        if inference_args:
            raise ValueError(
                f"TextEmbeddingHandler takes no inference_args, got {sorted(inference_args)}: give settings to the handler"
            )


def check_element(element: object) -> None:
    """Raise TypeError if an element of RunInference is neither a str nor a list[str]; the message says what to write."""
    if isinstance(element, str) or (isinstance(element, list) and all(isinstance(part, str) for part in element)):
        return
    remedy = "give str or list[str]"
    if is_row(element):
        text = "row['text']" if isinstance(element, Mapping) else "row.text"
        remedy += f", as beam.Map(lambda row: {text}) makes it"
    elif isinstance(element, tuple):
        remedy += ", or wrap the handler for (key, text): KeyedModelHandler(TextEmbeddingHandler(...))"
    raise TypeError(f"TextEmbeddingHandler got {describe(element)}, which is not a text: {remedy}")


@contextmanager
def end_if_broken(reports: RunReports) -> Iterator[None]:
    """End this process if its device is broken: a remote runner starts another one, whose device works. Else raise.

    Retries go to any process, and one that lives with a broken device would fail them all. With an InstallationError each
    new one would fail, too.
    """
    try:
        yield
    except DeviceError as error:
        if isinstance(error, InstallationError) or not reports.in_worker_process:
            raise
        _end_process(error, reports)


def _end_process(error: DeviceError, reports: RunReports) -> NoReturn:
    """End this process, with the reason in the runner's log, on stderr, and for the launcher."""
    message = f"{error}; this worker process ends, and the runner starts another one"

    def send() -> None:
        _LOGGER.critical(message)
        logging.shutdown()  # Beam's handler sends what it has
        reports.report_end(f"a worker ended: {error}")

    thread = threading.Thread(target=send, daemon=True)  # the network may be at fault
    thread.start()
    with suppress(Exception):
        print(f"audioclip: error: {message}", file=sys.stderr, flush=True)  # to which Beam's workers do not log
    thread.join(LOG_SECONDS)
    end_watch()  # no file that is decoded now is at fault
    os._exit(1)


class JobHandler(ModelHandler[Any, Any, Any]):  # type: ignore[misc]
    """RunInference handler of a whole pipeline: its model is the encoder that the launcher described.

    Args:
        model: What the launcher knows of the encoder.
        threads: How many threads it computes with on a CPU; by default a share of the machine's cores.
        reports: Where errors are reported that no retry repairs.
    """

    def __init__(self, model: ModelDescription, threads: int | None = None, reports: RunReports = RunReports()) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self.model, self.threads, self.reports = model, threads, reports

    def load_model(self) -> Encoder:
        """Return this process's encoder. Raise ValueError if it is not the one that the launcher described."""
        self.reports.start()
        with end_if_broken(self.reports), self.reports.errors():
            encoder = self._load_model()
        if self.reports.in_worker_process and (note := note_on_gpu(self.model.settings)):
            _LOGGER.warning(note)  # of a local run the launcher has printed it
        return encoder

    def _load_model(self) -> Encoder:
        described, settings = self.model, self.model.settings
        encoder = load_encoder(described.head, settings, described.contents, self.threads)
        parts = encoder.info.storing(described.stored).fingerprint_parts
        if parts != described.info.fingerprint_parts:
            raise ValueError(
                f"{settings.path} on this worker gives other vectors than the launcher (launcher -> worker: "
                f"{describe_changes(parts, described.info.fingerprint_parts)}): give every worker the same files of the "
                f"model and versions of packages"
            )
        return encoder

    def get_metrics_namespace(self) -> str:
        """Return the namespace of all metrics of this project."""
        return NAMESPACE


class RecordBatchHandler(JobHandler):
    """RunInference handler from hashed row batches to embedded batches of the same rows.

    The rows get the head's model columns, `embedding` (dictionary-encoded: equal contents share one vector), and `reason`
    and `detail`, which are null if the row was embedded.

    Args:
        model: As for JobHandler.
        threads: As for JobHandler.
        reports: As for JobHandler.
        reader: What reads the contents that rows have references to; None if they have the contents.
    """

    def __init__(
        self,
        model: ModelDescription,
        threads: int | None = None,
        reports: RunReports = RunReports(),
        reader: ContentReader | None = None,
    ) -> None:
        super().__init__(model, threads, reports)
        self.reader = reader

    def run_inference(
        self, batch: Sequence[pa.RecordBatch], model: Encoder, inference_args: dict[str, object] | None = None
    ) -> list[EmbeddedBatch]:
        """Return one embedded batch per row batch, with the same rows in the same order."""
        with end_if_broken(self.reports):
            return [embed_batch(rows, self.model, model, self.reports, self.reader) for rows in batch]

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Return the size of the batches' columns."""
        return sum(rows.nbytes for rows in batch)


class CanaryHandler(JobHandler):
    """RunInference handler from any element to the canary of the encoder."""

    def run_inference(
        self, batch: Sequence[object], model: Encoder, inference_args: dict[str, object] | None = None
    ) -> list[Canary]:
        """Return one canary per element."""
        with end_if_broken(self.reports):
            return [embed_canary(self.model, model) for _ in batch]

    def get_num_bytes(self, batch: Sequence[object]) -> int:
        """Return the number of elements; they have no content."""
        return len(batch)
