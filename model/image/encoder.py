"""ImageEncoder: pictures to float32 vectors, in the order given."""

from __future__ import annotations

import functools
import operator
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import Checkpoint, load_checkpoint
from ..device import TORCH_DTYPES, HostCopy, current_device, launching, pick_device, stack_on_device
from ..head import BadRow, ContentError, Encoding, ModelInfo, Work
from ..loaded import LoadedEncoder
from ..memory import BatchSize
from ..messages import plural
from ..streams import map_in_streams
from .pictures import Picture, Prepared, list_pictures, prepare
from .probes import decoder_parts
from .settings import MAX_IMAGE_BYTES, MAX_PIXELS, ImageSettings
from .shapes import sizes_of
from .tower import TOGETHER, ImageTower

# Per micro-batch. The CPU's was measured: attention pooling reads 28 MB of weights, whatever the number of pictures. CUDA's
# is reasoned: its convolutions have rows for every multiprocessor.
MAX_PICTURES = {"cpu": 16, "cuda": 64}
AHEAD = 2  # micro-batches that a CUDA device computes before the vectors of the first one are needed
WINDOW = 512  # pictures that are prepared for a CUDA device while it computes: 300 MB


class ImageError(ValueError):
    """A picture that cannot be embedded; the message names its position and the reason."""


def model_info(checkpoint: Checkpoint, settings: ImageSettings) -> ModelInfo:
    """Return what the encoder of a checkpoint and settings is; no tower is built. Raise ValueError for unknown settings."""
    settings.check()
    return checkpoint.info(sizes_of(checkpoint.state)[2], {**settings.fingerprint_parts(), **decoder_parts()})


@dataclass
class _Result:
    """What became of some pictures of a call.

    Attributes:
        places: Of the pictures in the call.
        vectors: [pictures without an error, dim], on their way from the device.
        sizes: Width and height of these pictures.
        errors: By place in the call.
        work: The cost.
    """

    places: Sequence[int]
    vectors: HostCopy | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    errors: dict[int, ContentError] = field(default_factory=dict)
    work: Work = field(default_factory=Work)


class ImageEncoder(LoadedEncoder):
    """AudioCLIP's image head with its preprocessing, on one device; usually created by `load`."""

    settings: ImageSettings

    def __init__(self, checkpoint: Checkpoint, settings: ImageSettings) -> None:
        info = model_info(checkpoint, settings)
        self._start(info, settings, pick_device(settings.device, settings.dtype))
        self.tower = ImageTower(checkpoint.state, device=self.device, dtype=TORCH_DTYPES[settings.dtype])
        self.pictures = BatchSize(MAX_PICTURES[self.device.type])  # of a micro-batch
        self._ahead = 0 if self.device.type == "cpu" else AHEAD

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "float32",
        variant: str = "audioclip",
        normalize: bool = False,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> ImageEncoder:
        """Return the encoder of an image head.

        Warns about an image head that is not AudioCLIP's.

        Args:
            path: A released .pt, an image-only .safetensors, "full", "partial" or "untrained".
            device: "auto" (CUDA if available, else CPU), "cpu", "cuda" or "cuda:N".
            dtype: "float32", "bfloat16" or, on CUDA, "float16": the type in which the network computes.
            variant: "audioclip", or "jina" for the vectors of Jina's executor.
            normalize: Whether to scale vectors to length 1.
            max_image_bytes: Larger files are errors instead of being decoded.
            max_pixels: Pictures of more pixels are errors instead of being decoded.

        Raises:
            ValueError: An argument has another value, or the checkpoint cannot be used.
            RuntimeError: The device does not exist.
        """
        settings = ImageSettings(
            os.fspath(path),
            device=device,
            dtype=dtype,
            normalize=normalize,
            variant=variant,
            max_image_bytes=max_image_bytes,
            max_pixels=max_pixels,
        )
        return cls._load(settings)

    @classmethod
    def _read(cls, settings: ImageSettings) -> ImageEncoder:
        return cls(load_checkpoint(settings.path, "image"), settings)

    def encode(self, images: Iterable[Picture]) -> npt.NDArray[np.float32]:
        """Return the vectors of n pictures, float32 [n, dim], in their order.

        A picture is a path, the bytes of a file, a PIL image, or an array uint8 [H, W, 3] in the order RGB. Files and bytes
        are turned upright as their EXIF data say; PIL images and arrays are taken as they are. Of an animation or a stack
        the first frame is embedded. Raises TypeError for anything else, and ImageError, a ValueError, for a picture that is
        missing, empty, too large or not decodable; `encode_rows` goes on instead.
        """
        encoding = self.encode_rows(images)
        for place, error in sorted(encoding.errors.items()):
            kind = TypeError if error.reason == "wrong type" else ImageError
            raise kind(f"image {place}: {error.reason}: {error.detail}")
        return encoding.vectors

    def encode_rows(self, images: Iterable[Picture]) -> Encoding:
        """Return the vectors of n pictures, as for `encode`, with their sizes, errors by place, and the cost.

        The columns are width and height, int32 [n], of the picture as it is seen, 0 if it has an error. The reasons of
        errors are "wrong type", "missing file", "empty file", "too large" and "not decodable".
        `work.extra["animated"]` counts pictures with more frames than the first one, which is embedded.

        Raises:
            MemoryError: The memory is too small for a single picture.
            RuntimeError: This process was forked from the encoder's, and torch would wait for threads that do not exist.
        """
        pictures = list_pictures(images)
        return self._run(lambda: self._encode_rows(pictures), plural(len(pictures), "picture"))

    @torch.inference_mode()
    def _encode_rows(self, pictures: list[Picture]) -> Encoding:
        began = time.perf_counter()
        distinct = dict[object, int]()  # to the place of the first one
        same_as = [distinct.setdefault(_key(picture, place), place) for place, picture in enumerate(pictures)]
        n, work = len(pictures), Work(extra={"animated": 0})
        vectors = np.full((n, self.dim), np.nan, np.float32)
        sizes = np.zeros((n, 2), np.int32)
        errors: dict[int, ContentError] = {}
        waiting = deque[_Result]()

        def store(result: _Result) -> None:
            good = [place for place in result.places if place not in result.errors]
            if result.vectors is not None:
                vectors[good], sizes[good] = result.vectors.arrays()[0], result.sizes

        with current_device(self.device):
            for result in self._results(pictures, list(distinct.values())):
                work += result.work
                errors |= result.errors
                self.on_progress(result.work.items)
                waiting.append(result)
                if len(waiting) > self._ahead:
                    store(waiting.popleft())
            while waiting:
                store(waiting.popleft())
        seconds, busy = time.perf_counter() - began, work.seconds
        work.prepare_seconds *= seconds / busy if busy else 0.0  # streams count their times at the same time
        work.model_seconds = seconds - work.prepare_seconds
        if len(distinct) < n:
            vectors, sizes = vectors[same_as], sizes[same_as]
            errors = {place: errors[same] for place, same in enumerate(same_as) if same in errors}
        return Encoding(vectors, {"width": sizes[:, 0].copy(), "height": sizes[:, 1].copy()}, errors, work)

    def _results(self, pictures: list[Picture], places: list[int]) -> Iterator[_Result]:
        """Yield the results of micro-batches of the pictures at `places`; they do not depend on the number of cores."""
        if self.device.type == "cpu":  # each core decodes, resizes and embeds micro-batches of its own
            size = min(self.pictures.now, max(TOGETHER, len(places) // 2))  # two cores share out few pictures as well
            parts = -(-len(places) // size)
            batches = [batch.tolist() for batch in np.array_split(places, parts)] if parts else []
            yield from map_in_streams(functools.partial(self._prepare_and_embed, pictures), batches)
            return
        for start in range(0, len(places), WINDOW):  # the cores prepare pictures while the device computes
            window = places[start : start + WINDOW]
            prepared = map_in_streams(lambda place: self._prepare(pictures[place]), window)
            size = self.pictures.now
            for first in range(0, len(window), size):
                batch = window[first : first + size]
                yield self._embed(batch, [next(prepared) for _ in batch])

    @torch.inference_mode()
    def _prepare_and_embed(self, pictures: list[Picture], places: list[int]) -> _Result:
        return self._embed(places, [self._prepare(pictures[place]) for place in places])

    def _prepare(self, picture: Picture) -> tuple[Prepared | ContentError, float]:
        """Return the network's input for a picture, or why it has none, and the seconds that this took."""
        began = time.perf_counter()
        prepared: Prepared | ContentError
        try:
            with self.decoding(picture):
                prepared = prepare(picture, self.settings)
        except BadRow as error:
            prepared = ContentError(error.reason, error.detail)
        return prepared, time.perf_counter() - began

    def _embed(self, places: Sequence[int], prepared: list[tuple[Prepared | ContentError, float]]) -> _Result:
        """Return the vectors of pictures that are prepared, on the device; in parts if memory runs out."""
        began = time.perf_counter()
        result = _Result(places)
        good = [each for each, _ in prepared if isinstance(each, Prepared)]
        result.errors = {
            place: each for place, (each, _) in zip(places, prepared, strict=True) if isinstance(each, ContentError)
        }
        result.sizes = [(each.width, each.height) for each in good]
        if good:
            parts = self._embed_all([each.pixels for each in good], result.work)
            with launching(self.device):
                result.vectors = HostCopy(torch.cat(parts))
        result.work.items = len(good)
        result.work.units = sum(width * height for width, height in result.sizes)
        result.work.extra["animated"] = sum(each.animated for each in good)
        result.work.prepare_seconds = sum(seconds for _, seconds in prepared)
        result.work.model_seconds = time.perf_counter() - began
        return result

    def _embed_all(self, pixels: list[Tensor], work: Work) -> list[Tensor]:
        """Return vectors [n, dim] of n inputs [3, 224, 224], in parts, on the device; add micro-batches to work."""

        def compute(part: slice) -> Tensor:
            whole = stack_on_device(pixels[part], self.device)
            vectors = self.tower(whole.contiguous(memory_format=torch.channels_last))
            return F.normalize(vectors, dim=-1) if self.settings.normalize else vectors

        parts = self.pictures.in_parts(
            range(len(pixels)),
            self.device,
            work,
            cut=operator.add,
            compute=compute,
            describe=lambda part: (part.stop - part.start, "a single picture", "free some"),
        )
        return list(parts)


def _key(picture: object, place: int) -> object:
    """Return what is equal for pictures that are known to be equal."""
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else place
