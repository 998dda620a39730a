"""From recordings to the samples that the spectrogram reads: mixed, resampled to 44.1 kHz, in the network's range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from torch import Tensor

from .recordings import blocks, open_recording
from .settings import MAX_SECONDS, RATE, frame_count
from .sndfile import AudioError, Samples

FULL_SCALE = np.float32(32768)


@dataclass
class Prepared:
    """A recording as the model reads it.

    Attributes:
        samples: float32 [c, n] at 44,100 Hz.
        frames: Frames of the spectrogram.
        duration: Seconds.
        sample_rate: The recording's own.
        channels_of_file: The recording's own.
        spectrograms: [c, 341, frames, 3] if they are computed.
    """

    samples: Samples
    frames: int
    duration: float
    sample_rate: int
    channels_of_file: int
    channels: int
    spectrograms: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.samples.nbytes + (0 if self.spectrograms is None else self.spectrograms.nbytes)

    @property
    def row(self) -> tuple[int, float, int, int]:
        """The model columns."""
        return self.frames, self.duration, self.sample_rate, self.channels_of_file


def prepare(content: object, sample_rate: int | None, jina: bool) -> Prepared:
    """Return a recording, whole, as the model reads it. Raise AudioError.

    Channels are averaged, and samples have the range of 16-bit integers. With `jina` two channels stay apart, and the full
    scale of samples is 1.
    """
    recording = open_recording(content, sample_rate)
    rate, channels = recording.rate, recording.channels
    keep = channels if jina and channels <= 2 else 1
    mixed, n = [], 0
    try:
        for block in blocks(recording):
            n += len(block)
            if n > MAX_SECONDS * rate:
                raise AudioError(
                    "too long",
                    f"it has more than {MAX_SECONDS // 60} minutes: embed windows of it, as AudioEncoder.windows cuts",
                )
            mixed.append(block.T.copy() if keep > 1 else _mean(block)[None])
    finally:
        recording.close()
    if not n:
        raise AudioError("too short", "it has no sample")
    samples = np.concatenate(mixed, axis=1)
    del mixed
    if rate != RATE:
        samples = np.stack([soxr.resample(channel, rate, RATE, quality="HQ") for channel in samples])
        if not samples.shape[1]:
            raise AudioError("too short", f"its {n} samples at {rate:,} Hz are less than one at {RATE:,} Hz")
    if not jina:
        samples *= FULL_SCALE
    return Prepared(samples, frame_count(samples.shape[1]), n / rate, rate, channels, len(samples))


def _mean(block: Samples) -> Samples:
    """Return the mean of the channels of a block [n, channels], added in their order."""
    total: Samples = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    if block.shape[1] > 1:
        total /= np.float32(block.shape[1])
    return total
