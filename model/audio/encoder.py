"""AudioEncoder: recordings to float32 vectors, in the order given."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import Checkpoint, load_checkpoint
from ..device import TORCH_DTYPES, HostCopy, current_device, launching, pick_device, to_device
from ..head import ContentError, Encoding, ModelInfo, Work
from ..loaded import LoadedEncoder
from ..memory import BatchSize
from ..streams import map_in_streams
from .prepare import Prepared, prepare
from .probes import decoder_parts
from .recordings import Track, check_rate, cut_windows, open_recording
from .settings import DEFAULT_WINDOW, AudioSettings
from .sndfile import AudioError
from .spectrogram import Spectrogram
from .tower import AudioTower

# Frames per micro-batch. The CPU's is that of five seconds: with more, tensors are over 32 MB, which glibc gives back to the
# kernel after every layer. CUDA's is reasoned: tensors of some 2 GB in float32.
MAX_FRAMES = {"cpu": 400, "cuda": 16384}
GROUP_BYTES = 1 << 28  # of prepared tracks that are sorted together

Recorded = str | os.PathLike[str] | bytes | npt.NDArray[Any] | Track


def model_info(checkpoint: Checkpoint, settings: AudioSettings) -> ModelInfo:
    """Return what the encoder of a checkpoint and settings is; no tower is built. Raise ValueError for unknown settings."""
    settings.check()
    dim = checkpoint.state["audio.fc.weight"].shape[0]  # [dim, 2048]
    return checkpoint.info(dim, {**settings.fingerprint_parts(), **decoder_parts()})


@dataclass
class _Call:
    """What a call has found so far, by place; a place that repeats an earlier content refers to that one's place."""

    same_as: list[int] = field(default_factory=list)
    vectors: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    tracks: dict[int, tuple[int, float, int, int]] = field(default_factory=dict)  # as the columns are
    errors: dict[int, ContentError] = field(default_factory=dict)
    work: Work = field(default_factory=Work)


class AudioEncoder(LoadedEncoder):
    """AudioCLIP's audio head with its decoders, on one device; usually created by `load`."""

    settings: AudioSettings

    def __init__(self, checkpoint: Checkpoint, settings: AudioSettings) -> None:
        info = model_info(checkpoint, settings)
        self._start(info, settings, pick_device(settings.device, settings.dtype))
        self.jina = settings.variant == "jina"
        self.spectrogram = Spectrogram(checkpoint.state, self.device)
        self.tower = AudioTower(
            checkpoint.state, device=self.device, dtype=TORCH_DTYPES[settings.dtype], own_statistics=self.jina
        )
        self.frames = BatchSize(MAX_FRAMES[self.device.type])  # of a micro-batch

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "float32",
        variant: str = "audioclip",
        normalize: bool = False,
        window: float | None = None,
        hop: float | None = None,
    ) -> AudioEncoder:
        """Return the encoder of an audio head.

        Args:
            path: A released .pt, an audio-only .safetensors, "full", "partial" or "untrained".
            device: "auto" (CUDA if available, else CPU), "cpu", "cuda" or "cuda:N".
            dtype: "float32", "bfloat16" or, on CUDA, "float16": the type in which the network computes.
            variant: "audioclip", or "jina" for the vectors of Jina's executor.
            normalize: Whether to scale vectors to length 1.
            window: Seconds of the windows that the contents will be, as in a snapshot; it decides the fingerprint alone.
            hop: Seconds from one window to the next; None is the window.

        Raises:
            ValueError: An argument has another value, or the checkpoint cannot be used.
            RuntimeError: The device does not exist.
        """
        return cls._load(AudioSettings(os.fspath(path), device, dtype, normalize, variant, window, hop))

    @classmethod
    def _read(cls, settings: AudioSettings) -> AudioEncoder:
        return cls(load_checkpoint(settings.path, "audio"), settings)

    @staticmethod
    def windows(
        recording: Recorded, window: float = DEFAULT_WINDOW, hop: float | None = None, *, sample_rate: int | None = None
    ) -> Iterator[Track]:
        """Yield the windows of a recording that the pipeline embeds, each a Track that `encode` takes, in bounded memory.

        A recording of up to 1.1 windows is one window. A longer one is cut every `hop` seconds; the last window is pulled
        back so that it ends with the recording. The decoded length counts, not the one in the header.

        Args:
            recording: A path, bytes, an array or a Track.
            window: Seconds of each window.
            hop: Seconds from one window to the next, at most the window; None is the window.
            sample_rate: Samples per second of an array.

        Raises:
            AudioError: The recording cannot be decoded, from here on or at all.
        """
        opened = open_recording(recording, None if sample_rate is None else check_rate(sample_rate))
        try:
            yield from cut_windows(opened, window, hop)
        finally:
            opened.close()

    def encode(self, tracks: Iterable[Recorded], *, sample_rate: int | None = None) -> npt.NDArray[np.float32]:
        """Return the vectors of n recordings, float32 [n, dim], in their order.

        A recording is a path, the bytes of a file, an array [n] or [channels, n] of int16 or of floats whose full scale is
        1, or a Track. Each is embedded as a whole; those of over five minutes are errors: cut them by `windows`.

        Args:
            tracks: The recordings; an iterator is read as it is needed.
            sample_rate: Samples per second of the arrays; files and Tracks have their own.

        Raises:
            TypeError: Something is not a recording.
            FileNotFoundError: A file does not exist.
            AudioError: A ValueError: a recording cannot be decoded, or is too short or too long; `encode_rows` goes on.
        """
        encoding = self.encode_rows(tracks, sample_rate=sample_rate)
        for place, (reason, detail) in sorted(encoding.errors.items()):
            message = f"track {place}: {reason}: {detail}"
            if reason in ("wrong type", "missing file"):
                raise TypeError(message) if reason == "wrong type" else FileNotFoundError(message)
            raise AudioError(reason, f"track {place}: {detail}")
        return encoding.vectors

    def encode_rows(self, tracks: Iterable[Recorded], *, sample_rate: int | None = None) -> Encoding:
        """Return the vectors of n recordings, as for `encode`, with their lengths, errors by place, and the cost.

        The columns, 0 for an error, are n_frames, int32 [n], of the spectrogram; duration, float64, in seconds;
        sample_rate and channels, int32, before mixing and resampling. The reasons of errors are "wrong type", "missing
        file", "empty file", "not decodable", "too short" and "too long".

        Raises:
            MemoryError: The memory is too small for a single recording.
            RuntimeError: This process was forked from the encoder's, and torch would wait for threads that do not exist.
            TypeError, ValueError: `tracks` is not an iterable of recordings, or `sample_rate` is not a rate.
        """
        if isinstance(tracks, str | bytes | os.PathLike | np.ndarray | Tensor | Track) or not isinstance(
            tracks, Iterable
        ):
            raise TypeError(f"tracks must be a list of recordings, not {type(tracks).__name__}: write [track]")
        rate = None if sample_rate is None else check_rate(sample_rate)
        return self._run(lambda: self._encode_rows(tracks, rate), "these recordings")

    @torch.inference_mode()
    def _encode_rows(self, tracks: Iterable[Recorded], rate: int | None) -> Encoding:
        began, call = time.perf_counter(), _Call()
        with current_device(self.device):
            group, size = list[tuple[int, Prepared]](), 0
            for place, prepared in self._prepared(tracks, rate, call):
                group.append((place, prepared))
                size += prepared.nbytes
                if size >= GROUP_BYTES:
                    self._embed(group, call)
                    group, size = [], 0
            self._embed(group, call)
        n, work = len(call.same_as), call.work
        vectors = np.full((n, self.dim), np.nan, np.float32)
        for place, same in enumerate(call.same_as):
            if same in call.vectors:
                vectors[place] = call.vectors[same]
        rows = [call.tracks.get(same, (0, 0.0, 0, 0)) for same in call.same_as]
        types = {"n_frames": np.int32, "duration": np.float64, "sample_rate": np.int32, "channels": np.int32}
        columns = {name: np.array([row[i] for row in rows], kind) for i, (name, kind) in enumerate(types.items())}
        errors = {place: call.errors[same] for place, same in enumerate(call.same_as) if same in call.errors}
        work.prepare_seconds = time.perf_counter() - began - work.model_seconds
        return Encoding(vectors, columns, errors, work)

    def _prepared(self, tracks: Iterable[Recorded], rate: int | None, call: _Call) -> Iterator[tuple[int, Prepared]]:
        """Yield the different contents that can be embedded, by place, decoded on all cores while others are embedded."""
        threads, places = torch.get_num_threads(), dict[object, int]()
        waiting = deque[tuple[int, Future[Prepared]]]()

        def take() -> Iterator[tuple[int, Prepared]]:
            place, future = waiting.popleft()
            try:
                prepared = future.result()
            except AudioError as error:
                call.errors[place] = error.content_error
                return
            call.tracks[place] = prepared.row
            yield place, prepared

        with _single_threads(threads) as pool:
            for place, track in enumerate(tracks):
                first = places.setdefault(_key(track, place), place)
                call.same_as.append(first)
                if first == place:
                    waiting.append((place, pool.submit(self._prepare, track, rate)))
                while len(waiting) > 2 * threads:
                    yield from take()
            while waiting:
                yield from take()

    @torch.inference_mode()
    def _prepare(self, track: Recorded, rate: int | None) -> Prepared:
        """Return what the model needs of a recording: samples, and on a CPU its spectrograms. Raise AudioError."""
        prepared = prepare(track, rate, self.jina)
        if self.device.type == "cpu":
            prepared.spectrograms = self._spectrograms(prepared)
            prepared.samples = prepared.samples[:, :0]
        return prepared

    def _spectrograms(self, prepared: Prepared) -> Tensor:
        """Return the spectrograms of a track, [c, 341, t, 3]; it keeps its samples, for when memory runs out behind them."""
        samples = to_device(prepared.samples, self.device)
        return torch.stack([self.spectrogram(channel) for channel in samples])

    def _embed(self, group: list[tuple[int, Prepared]], call: _Call) -> None:
        """Compute the vectors of tracks; those of equal length and channels share micro-batches."""
        began = time.perf_counter()
        batches = []
        for (frames, channels), same in groupby(sorted(group, key=_length), _length):
            places = list(same)
            size = max(1, self.frames.now // (frames * channels))
            parts = [places[start : start + size] for start in range(0, len(places), size)]
            self.tower.expect(frames, len(parts))
            batches += parts
        results = (
            map_in_streams(self._embed_batch, batches) if self.device.type == "cpu" else map(self._embed_batch, batches)
        )
        features = dict[int, list[Tensor]]()  # by channels
        for batch, (computed, work) in zip(batches, results, strict=True):
            call.work += work
            self.on_progress(len(batch))
            features.setdefault(batch[0][1].channels, []).append(computed)
        for channels, computed_parts in features.items():
            with launching(self.device):
                vectors = self.tower.project(torch.cat(computed_parts), channels)
                if self.settings.normalize:
                    vectors = F.normalize(vectors, dim=-1)
                copied = HostCopy(vectors)
            embedded = [place for batch in batches for place, prepared in batch if prepared.channels == channels]
            call.vectors.update(zip(embedded, copied.arrays()[0], strict=True))
        call.work.model_seconds += time.perf_counter() - began

    @torch.inference_mode()
    def _embed_batch(self, batch: list[tuple[int, Prepared]]) -> tuple[Tensor, Work]:
        """Return the features of n tracks of equal length, on the device, computed in parts if memory runs out."""
        frames, channels = _length(batch[0])
        work = Work(items=len(batch), units=frames * len(batch))

        def compute(part: slice) -> Tensor:
            tracks = [prepared for _, prepared in batch[part]]
            inputs = [self._spectrograms(each) if each.spectrograms is None else each.spectrograms for each in tracks]
            return self.tower.features(torch.cat(inputs).permute(0, 3, 1, 2))

        def describe(part: slice) -> tuple[int, str, str]:
            seconds = f"a single recording of {batch[part.start][1].duration:,.1f} seconds"
            return frames * channels * (part.stop - part.start), seconds, "free some, embed windows of it"

        parts = self.frames.in_parts(
            range(len(batch)),
            self.device,
            work,
            cut=lambda start, size: start + max(1, size // (frames * channels)),
            compute=compute,
            describe=describe,
        )
        return torch.cat(list(parts)), work


def _length(place: tuple[int, Prepared]) -> tuple[int, int]:
    """Return frames and channels of a track: those that share a micro-batch have the same."""
    return place[1].frames, place[1].channels


def _key(track: object, place: int) -> object:
    """Return what is equal for contents that are known to be equal."""
    if isinstance(track, bytes | bytearray | memoryview):
        return hashlib.blake2b(track, digest_size=16).digest()
    return os.fspath(track) if isinstance(track, str | os.PathLike) else place


@contextmanager
def _single_threads(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads in each of which torch uses one thread, so that no sum depends on the number of cores."""
    pool = ThreadPoolExecutor(threads, "prepare", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # that of threads that start later; see map_in_streams
