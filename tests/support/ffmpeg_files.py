"""Sound files in FFmpeg's formats, made by PyAV."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

# A container and a codec in it for each suffix; AAC is in m4a, mp4 and aac, Opus and FLAC are in webm and mka.
FORMATS = {
    "m4a": ("ipod", "aac"),
    "mp4": ("mp4", "aac"),
    "aac": ("adts", "aac"),
    "wma": ("asf", "wmav2"),
    "webm": ("webm", "libopus"),
    "mka": ("matroska", "flac"),
}


def tone(samples: int, channels: int = 1, rate: int = 48000) -> NDArray[np.float32]:
    """Return float32 [channels, samples]: a tone per channel, which comes and goes."""
    k = np.arange(samples)
    level = 0.3 * np.sin(2 * np.pi * 3 * k / rate)
    return np.stack([level * np.sin(2 * np.pi * (300 + 200 * n) * k / rate) for n in range(channels)]).astype(
        np.float32
    )


def ffmpeg_file(suffix: str, samples: NDArray[np.float32], *, rate: int = 48000, codec: str | None = None) -> bytes:
    """Return a file of samples [1 or 2 channels, n] in the format of a suffix."""
    import av

    container, usual = FORMATS[suffix]
    layout, file = "mono" if len(samples) == 1 else "stereo", io.BytesIO()
    with av.open(file, "w", format=container) as opened:
        stream = opened.add_stream(codec or usual, rate=rate, layout=layout, options={"b": "128000"})
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for each in (frame, None):
            opened.mux(stream.encode(each))
    return file.getvalue()
