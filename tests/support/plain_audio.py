"""The audio head in its plainest form: the oracle of its tests, one track at a time, nothing folded, packed or fused."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from audioclip_beam.model import load_checkpoint
from audioclip_beam.model.audio import AudioEncoder, Track
from audioclip_beam.model.audio.settings import AudioSettings

State = Mapping[str, Tensor]


@functools.cache
def encoder(variant: str = "audioclip", dtype: str = "float32") -> AudioEncoder:
    """Return the encoder of random weights, one for all tests of a process."""
    return AudioEncoder(
        load_checkpoint("untrained", "audio"), AudioSettings("untrained", "cpu", dtype, variant=variant)
    )


@functools.cache
def untrained() -> dict[str, Tensor]:
    """Return the random weights, without the prefix of their names."""
    return {name.removeprefix("audio."): t for name, t in load_checkpoint("untrained", "audio").state.items()}


def difference(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return |actual - expected| / |expected|."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def plain_samples(track: Track, jina: bool) -> list[NDArray[np.float32]]:
    """Return the channels that the network hears, at 44.1 kHz."""
    x = track.samples if track.samples.ndim == 2 else track.samples[None]
    x = x.astype(np.float32) / np.float32(32768) if x.dtype == np.int16 else x.astype(np.float32)
    if not (jina and len(x) <= 2):
        mean = x[0].copy()
        for channel in x[1:]:
            mean += channel
        x = (mean / np.float32(len(x)))[None]
    channels = [soxr.resample(np.ascontiguousarray(c), track.sample_rate, 44100, quality="HQ") for c in x]
    return [channel if jina else channel * np.float32(32768) for channel in channels]


@functools.cache
def plain_rows() -> tuple[Tensor, Tensor]:
    """Return the real and the imaginary rows [1025, 2048] of the filter bank, float32, by the formula of the original."""
    state = untrained()
    m, fb, fc = (state[f"fbsp.{name}"][:, None] for name in ("m", "fb", "fc"))
    t = math.pi * torch.linspace(-1, 1, 2048) + 1e-8
    a = fb * t / (m + 1e-8)
    u = torch.where(a == 0, 1.0, a.sin() / a)
    envelope = torch.polar(u.abs() ** m, torch.where(u >= 0, 0.0, math.pi) * m)
    carrier = torch.complex((fc * t).cos(), -(fc * t).sin())
    rows = fb.sqrt() * envelope * carrier / math.sqrt(2048)
    return rows.real.contiguous(), rows.imag.contiguous()


def plain_spectrogram(samples: NDArray[np.float32], backward: bool = False) -> Tensor:
    """Return the spectrogram [3, 341, frames] of a channel; `backward` adds up products in another order."""
    x = (torch.from_numpy(samples) + 32768) * 2 / 65535 - 1
    frames = 1 if len(x) <= 1654 else 1 + math.ceil((len(x) - 1654) / 561)
    missing = (frames - 1) * 561 + 1654 - len(x)
    x = F.pad(x, (missing // 2, missing - missing // 2))
    cut = torch.stack([x[k * 561 : k * 561 + 1654] for k in range(frames)]) * untrained()["window"]
    cut = F.pad(cut, (197, 197))  # [frames, 2048]
    order = slice(None)
    if backward:
        cut, order = cut.flip(1), torch.arange(2047, -1, -1)
    real, imaginary = (cut @ rows[:, order].T for rows in plain_rows())
    power = real**2 + imaginary**2
    power = torch.where(power > 0, power, 1e-18)
    return (10 * power.log10())[:, :1023].reshape(frames, 3, 341).permute(1, 2, 0)


def plain_features(spectrogram: Tensor, by_track: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the pooled features [2048] of a channel; `by_track` normalizes by the statistics of the track."""
    state = {name: tensor.to(dtype) for name, tensor in untrained().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        moments = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if by_track else None
        mean, variance = moments or (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def conv(x: Tensor, name: str, **kwargs: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **kwargs)

    def gate(z: Tensor, stage: int, size: tuple[int, int]) -> Tensor:
        depth = F.adaptive_max_pool2d(z, size)
        padding = {1: (1, 0), 3: (1, 0), 2: (0, 2), 4: (0, 2), 5: (1, 2)}[stage]
        depth = conv(depth, f"att{stage}.conv_depth", padding=padding, groups=depth.shape[1])
        return norm(conv(depth, f"att{stage}.conv_point"), f"att{stage}.bn").sigmoid()

    x = spectrogram[None].to(dtype)
    x = F.max_pool2d(norm(conv(x, "conv1", stride=2, padding=3), "bn1").relu(), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        z = x
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", stride=stride, padding=1, groups=32), f"{name}.bn2").relu()
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = norm(conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
            x = (x + y).relu()
        x = x * gate(z, stage, (x.shape[2], x.shape[3]))
    return (x.mean((2, 3)) * gate(x, 5, (1, 1))[:, :, 0, 0])[0]


def plain_vector(
    track: Track, jina: bool = False, backward: bool = False, dtype: torch.dtype = torch.float32
) -> NDArray[Any]:
    """Return the vector of a track; its network computes in `dtype`."""
    with torch.inference_mode():
        channels = [plain_spectrogram(c, backward) for c in plain_samples(track, jina)]
        features = torch.stack([plain_features(c, jina, dtype) for c in channels]).sum(0)
        vector: NDArray[Any] = (
            untrained()["fc.weight"].to(dtype) @ features + untrained()["fc.bias"].to(dtype)
        ).numpy()
    return vector


def spread(track: Track, jina: bool = False) -> float:
    """Return how far two orders of summation in the spectrogram move the vector: no implementation is closer."""
    return difference(plain_vector(track, jina, backward=True), plain_vector(track, jina))


def rounding(track: Track, jina: bool = False) -> float:
    """Return how far rounding to float32 in the network moves the vector.

    It counts for a track of few samples whose own statistics normalize it, since they are those of a near constant.
    """
    return difference(plain_vector(track, jina), plain_vector(track, jina, dtype=torch.float64))
