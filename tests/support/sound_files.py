"""Sound files as bytes, whole and damaged."""

from __future__ import annotations

import io

import numpy as np
import soundfile


def sound_file(
    kind: str = "WAV", subtype: str | None = None, *, samples: int = 4410, channels: int = 1, rate: int = 44100
) -> bytes:
    """Return a file of noise in a format of libsndfile."""
    file = io.BytesIO()
    noise = np.random.default_rng(samples).random((samples, channels)) * 0.5 - 0.25
    soundfile.write(file, noise, rate, format=kind, subtype=subtype)
    return file.getvalue()


def endless_flac() -> bytes:
    """Return a FLAC file whose header claims 2^36 - 1 samples."""
    data = bytearray(sound_file("FLAC"))
    data[18:26] = (int.from_bytes(data[18:26], "big") | (1 << 36) - 1).to_bytes(8, "big")
    return bytes(data)


def with_wav_lengths(data: bytes, length: int) -> bytes:
    """Return a WAV file whose header has samples of so many bytes."""
    place, lengths = data.index(b"data") + 4, length.to_bytes(4, "little")
    return data[:4] + lengths + data[8:place] + lengths + data[place + 4 :]
