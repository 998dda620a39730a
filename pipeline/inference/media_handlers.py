"""The RunInference handlers of pictures and recordings: files by path or URI, bytes, and arrays to vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import PredictionResult
from PIL import Image

from ...model.audio.recordings import Track, check_rate
from ...model.audio.settings import AudioSettings
from ...model.head import ContentError, DeviceError, Encoder, EncoderSettings, is_row
from ...model.heads import find_head
from ...model.image.settings import MAX_IMAGE_BYTES, MAX_PIXELS, ImageSettings
from ...model.messages import printable
from ..flags import READ_TIMEOUT
from ..io.file_io import FileIO
from .embed_batch import MODEL_ERROR, check_encoder
from .fetch_content import Fetcher, content_bytes, content_name
from .model_handler import EncoderHandler

MAX_AUDIO_BYTES = 1 << 30  # a file is in memory while it is decoded; five minutes are smaller in nearly every form
BATCH_BYTES = 64 << 20  # of contents in a batch, as far as `min_batch_size` allows

# What RunInference raises for a content, by reason; ValueError for all others.
_ERRORS: dict[str, type[Exception]] = {
    "wrong type": TypeError,
    "missing file": FileNotFoundError,
    "non-finite vector": RuntimeError,
    MODEL_ERROR: RuntimeError,
}

Outcome = np.ndarray | ContentError  # a vector, float32 [dim], or the reason for its lack


class MediaHandler(EncoderHandler):
    """What the handlers of pictures and of recordings have in common.

    Args:
        settings: What the encoder is loaded from.
        max_bytes: Larger files are not read.
        read_timeout: Seconds to wait for data of a read.
        min_batch_size: The fewest elements of a batch.
        max_batch_size: The most elements of a batch.
        batching: Other arguments of EncoderHandler.
    """

    item = ""  # what a content is, as messages name it
    kinds: tuple[type, ...] = ()  # what a content may be besides a path and bytes
    forms = ""  # the same in words

    def __init__(
        self,
        settings: EncoderSettings,
        max_bytes: int,
        read_timeout: float,
        *,
        min_batch_size: int = 8,
        max_batch_size: int = 64,
        **batching: Any,
    ) -> None:
        super().__init__(settings, min_batch_size=min_batch_size, max_batch_size=max_batch_size, **batching)
        self._max_bytes, self._read_timeout = max_bytes, read_timeout
        self._largest, self._share = min_batch_size, max(1, BATCH_BYTES // max(1, max_batch_size))

    def run_inference(
        self, batch: Sequence[Any], model: Encoder, inference_args: dict[str, object] | None = None
    ) -> list[Any]:
        """Return one PredictionResult per element, in order; `model_id` is the path of the checkpoint."""
        self.validate_inference_args(inference_args)
        for element in batch:
            if fault := self.fault(element):
                raise TypeError(f"{type(self).__name__}: {fault}")
        outcomes = self.outcomes(batch, model)
        for element, outcome in zip(batch, outcomes, strict=True):
            if error := error_of(element, outcome):
                raise error
        return [
            PredictionResult(element, vector, self.model_path) for element, vector in zip(batch, outcomes, strict=True)
        ]

    def fault(self, content: object) -> str:
        """Return why a value cannot be a content, with a remedy, or ""."""
        if isinstance(content, (str, os.PathLike, bytes, bytearray, memoryview, *self.kinds)):
            return ""
        remedy = f"give a path or URI, bytes, or {self.forms}"
        if hasattr(content, "metadata") and hasattr(content, "read"):  # Beam's ReadableFile
            remedy += ", as beam.Map(lambda file: file.metadata.path) makes it"
        elif isinstance(content, tuple) and not is_row(content):
            remedy += f"; RunInference takes (key, {self.item}) with KeyedModelHandler({type(self).__name__}(...))"
        elif is_row(content):
            field = "row['file']" if isinstance(content, Mapping) else "row.file"
            remedy += f", as beam.Map(lambda row: {field}) makes it"
        return f"{content_name(content)} is not a {self.item}: {remedy}"

    def to_content(self, content: Any) -> Any:
        """Return a content as the encoder takes it, or why it cannot."""
        return content

    def outcomes(self, contents: Sequence[Any], model: Encoder, *, isolate: bool = False) -> list[Outcome]:
        """Return the vector of each content, or why it has none.

        Args:
            contents: The contents, of which `fault` finds none wrong.
            model: The encoder.
            isolate: Whether contents that the model fails on are halved until each one is alone.

        Raises:
            RuntimeError: With `isolate`, the model fails, and on the contents of the canary, too.
            DeviceError: This process can use its device no more.
            MemoryError: The memory is too small for a single content.
        """
        found: list[Outcome] = []
        fetcher = Fetcher(self._max_bytes, f"max_{self.head_name}_bytes", FileIO(self._read_timeout))
        for group in fetcher.groups(contents):
            group = [each if isinstance(each, ContentError) else self.to_content(each) for each in group]
            good = iter(_encode([each for each in group if not isinstance(each, ContentError)], model, isolate))
            found += [each if isinstance(each, ContentError) else next(good) for each in group]
        errors = {place: each for place, each in enumerate(found) if isinstance(each, ContentError)}
        if isolate:
            check_encoder(find_head(self.head_name), model, "float32", len(found), errors)
        return found

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Return Beam's arguments for batches, in which large contents count as several elements."""
        return {**super().batch_elements_kwargs(), "element_size_fn": self.element_size}

    def element_size(self, element: object) -> int:
        """Return as how many elements one counts in a batch; more than `min_batch_size` would make empty batches."""
        size = sum(map(content_bytes, element)) if type(element) is tuple else content_bytes(element)
        return max(1, min(self._largest, size // self._share))

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return the size of the contents in memory; of a file, that of its path."""
        return sum(
            len(os.fsencode(each)) if isinstance(each, str | os.PathLike) else content_bytes(each) for each in batch
        )

    def validate_inference_args(self, inference_args: Mapping[str, object] | None) -> None:
        """Raise ValueError for any inference_args, before the job starts."""
        if inference_args:
            raise ValueError(
                f"{type(self).__name__} takes no inference_args, got {sorted(inference_args)}: give settings to the handler"
            )


class ImageEmbeddingHandler(MediaHandler):
    """RunInference handler from pictures to PredictionResults, whose `inference` is a float32 [dim] vector.

    An element is a path or URI, which is read through Beam's file systems, the bytes of a file, a PIL image, or an array
    uint8 [H, W, 3]; anything else is a TypeError before the model runs. One picture that cannot be embedded fails its
    batch: EmbedImage rejects it alone.

    Args:
        path: A released .pt, an image-only .safetensors, "full", "partial" or "untrained".
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or, on CUDA, "float16".
        variant: "audioclip", or "jina" for the vectors of Jina's executor.
        normalize: Whether to scale vectors to length 1.
        max_image_bytes: Larger files are not read.
        max_pixels: Pictures of more pixels are not decoded.
        read_timeout: Seconds to wait for data of a read.
        batching: Arguments of EncoderHandler: min_batch_size, max_batch_size, max_batch_duration_secs, batch_length_fn,
            batch_bucket_boundaries, large_model, model_copies, env_vars.
    """

    head_name, item = "image", "picture"
    kinds = (Image.Image, np.ndarray)
    forms = "a PIL image, or an array uint8 [H, W, 3]"

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        variant: str = "audioclip",
        normalize: bool = False,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        max_pixels: int = MAX_PIXELS,
        read_timeout: float = READ_TIMEOUT,
        **batching: Any,
    ) -> None:
        settings = ImageSettings(path, device, dtype, normalize, variant, max_image_bytes, max_pixels)
        super().__init__(settings, max_image_bytes, read_timeout, **batching)


class AudioEmbeddingHandler(MediaHandler):
    """RunInference handler from recordings to PredictionResults, whose `inference` is a float32 [dim] vector.

    An element is a path or URI, which is read through Beam's file systems, the bytes of a file, a Track, or an array [n] or
    [channels, n] of int16 or of floats whose full scale is 1; anything else is a TypeError before the model runs. Each is
    embedded as a whole; AudioEncoder.windows cuts those of over five minutes. One recording that cannot be embedded fails
    its batch: EmbedAudio rejects it alone.

    Args:
        path: A released .pt, an audio-only .safetensors, "full", "partial" or "untrained".
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or, on CUDA, "float16".
        variant: "audioclip", or "jina" for the vectors of Jina's executor.
        normalize: Whether to scale vectors to length 1.
        sample_rate: Samples per second of arrays; files and Tracks have their own.
        max_audio_bytes: Larger files are not read.
        read_timeout: Seconds to wait for data of a read.
        batching: Arguments of EncoderHandler: min_batch_size, max_batch_size, max_batch_duration_secs, batch_length_fn,
            batch_bucket_boundaries, large_model, model_copies, env_vars.
    """

    head_name, item = "audio", "recording"
    kinds = (Track, np.ndarray)
    forms = "a Track, or an array [n] or [channels, n] with the setting sample_rate"

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        variant: str = "audioclip",
        normalize: bool = False,
        sample_rate: int | None = None,
        max_audio_bytes: int = MAX_AUDIO_BYTES,
        read_timeout: float = READ_TIMEOUT,
        **batching: Any,
    ) -> None:
        settings = AudioSettings(path, device, dtype, normalize, variant)
        super().__init__(settings, max_audio_bytes, read_timeout, **batching)
        self._sample_rate = None if sample_rate is None else check_rate(sample_rate)

    def to_content(self, content: Any) -> Any:
        """Return an array as a Track of the setting `sample_rate`, and any other content as it is."""
        if isinstance(content, np.ndarray) and self._sample_rate is not None:
            return Track(content, self._sample_rate)
        if isinstance(content, Track):
            try:
                check_rate(content.sample_rate)
            except (TypeError, ValueError) as error:
                return ContentError("wrong type", str(error))
        return content


def error_of(content: object, outcome: Outcome) -> Exception | None:
    """Return the error that RunInference raises for the outcome of a content, or None for a vector."""
    if not isinstance(outcome, ContentError):
        return None
    kind = _ERRORS.get(outcome.reason, ValueError)
    return kind(printable(f"{content_name(content)}: {outcome.reason}: {outcome.detail}"))


def _encode(contents: list[Any], model: Encoder, isolate: bool) -> list[Outcome]:
    """Return the outcomes of contents that are in memory; with `isolate` those that the model fails on are alone."""
    if not contents:
        return []
    try:
        encoding = model.encode_rows(contents)
    except DeviceError:
        raise
    except Exception as error:
        # Too little memory for one content is a fault of the machine, not of the content.
        if not isolate or (len(contents) == 1 and isinstance(error, MemoryError)):
            raise
        if len(contents) == 1:
            return [ContentError(MODEL_ERROR, f"{type(error).__name__}: {error}"[:1000])]
        half = len(contents) // 2
        return _encode(contents[:half], model, isolate) + _encode(contents[half:], model, isolate)
    fault = ContentError("non-finite vector", "the model gave a vector that contains NaN or infinity")
    return [
        encoding.errors.get(place) or (vector if np.isfinite(vector).all() else fault)
        for place, vector in enumerate(encoding.vectors)
    ]
