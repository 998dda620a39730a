"""The tracks of the audio goldens: synthetic, a function of their parameters alone, rounded to a grid."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audioclip_beam.model.audio import Track

Floats = NDArray[np.float64]


def uniform(n: int, *key: object) -> Floats:
    """Return float64 in [0, 1) with 24 random bits."""
    stream = np.random.PCG64([zlib.crc32(repr(part).encode()) for part in key])
    return np.asarray((stream.random_raw(max(n, 1))[:n] >> np.uint64(40)) / float(1 << 24))


def wave(kind: str, n: int, rate: int, seed: int) -> Floats:
    """Return n samples, mostly within [-1, 1]."""
    t = np.arange(n) / rate
    a, b, c = uniform(3, "wave", kind, seed)
    if kind == "silence":
        return np.zeros(n)
    if kind == "noise":
        return np.asarray(uniform(n, "white", seed) - 0.5)
    if kind == "hush":  # noise at -80 dB
        return np.asarray((uniform(n, "white", seed) - 0.5) * 2e-4)
    if kind == "tone":
        return np.asarray(0.6 * np.sin(2 * np.pi * (100 + 2000 * a) * t))
    if kind == "chirp":  # up to a little under half the rate
        end = 0.45 * rate
        return np.asarray(0.7 * np.sin(2 * np.pi * (100 * (1 + a) * t + 0.5 * (end - 100) / max(t[-1], 1e-3) * t * t)))
    if kind == "clicks":
        alternating = np.where(np.arange(n) % 2, 1, -1)
        return np.asarray(np.where(uniform(n, "click", seed) > 1 - 20 / rate, 0.9, 0.0) * alternating)
    if kind == "offset":
        return np.asarray(0.25 + 0.3 * np.sin(2 * np.pi * (300 + 500 * a) * t))
    if kind == "loud":  # beyond full scale
        return np.asarray(2.5 * np.sin(2 * np.pi * (200 + 300 * a) * t) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t)))
    pitch = 90 + 150 * a  # voice: harmonics that come and go
    level = 0.5 - 0.5 * np.cos(2 * np.pi * (1.5 + 2 * b) * t)
    return np.asarray(0.35 * level * sum(np.sin(2 * np.pi * pitch * k * t + 6 * c * k) / k for k in range(1, 13)))


def track(kind: str, samples: int, rate: int, channels: int, dtype: str, seed: int) -> Track:  # noqa: PLR0917
    """Return a track of [channels, samples], int16 or float32."""
    x = np.stack([wave(kind, samples, rate, seed + 100 * c) for c in range(channels)])
    y: NDArray[Any]
    if dtype == "int16":
        y = np.clip(np.rint(x * 32767), -32768, 32767).astype(np.int16)
    else:
        y = (np.rint(x * (1 << 20)) / (1 << 20)).astype(np.float32)
    return Track(y, rate)


TRACKS = {  # name: arguments of track(); samples, not seconds, so that edge cases are exact
    "chirp_5s": ("chirp", 220500, 44100, 1, "int16", 1),
    "noise_5s": ("noise", 220500, 44100, 1, "int16", 2),
    "silence_5s": ("silence", 220500, 44100, 1, "int16", 3),
    "clicks_5s": ("clicks", 220500, 44100, 1, "int16", 4),
    "voice_5s": ("voice", 220500, 44100, 1, "int16", 5),
    "chirp_50ms": ("chirp", 2205, 44100, 1, "float32", 6),
    "tone_20ms": ("tone", 882, 44100, 1, "float32", 7),
    "voice_1654": ("voice", 1654, 44100, 1, "float32", 8),
    "noise_1655": ("noise", 1655, 44100, 1, "float32", 9),
    "tone_2215": ("tone", 2215, 44100, 1, "float32", 10),
    "chirp_10s": ("chirp", 441000, 44100, 1, "float32", 11),
    "voice_30s": ("voice", 1323000, 44100, 1, "int16", 12),
    "noise_2s_8k": ("noise", 16000, 8000, 1, "int16", 13),
    "chirp_3s_16k": ("chirp", 48000, 16000, 1, "int16", 14),
    "voice_4s_48k": ("voice", 192000, 48000, 1, "int16", 15),
    "chirp_4s_stereo": ("chirp", 176400, 44100, 2, "int16", 16),
    "noise_3s_48k_stereo": ("noise", 144000, 48000, 2, "float32", 17),
    "voice_2s_stereo": ("voice", 88200, 44100, 2, "float32", 18),
    "clicks_1s_22k": ("clicks", 22050, 22050, 1, "int16", 19),
    "loud_2s": ("loud", 88200, 44100, 1, "float32", 20),
    "hush_2s": ("hush", 88200, 44100, 1, "float32", 21),
    "offset_1s5": ("offset", 66150, 44100, 1, "int16", 22),
    "voice_odd": ("voice", 321931, 44100, 1, "int16", 23),
    "chirp_1s_96k": ("chirp", 96000, 96000, 1, "float32", 24),
    "noise_1s_11k": ("noise", 11025, 11025, 1, "int16", 25),
}
