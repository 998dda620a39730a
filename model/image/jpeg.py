"""JPEG files without Pillow's copies, which take as long as decoding, if the pixels are the same bit for bit."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

SPACES = {"RGB": "RGB", "L": "GRAY"}  # simplejpeg's names of Pillow's modes; Pillow converts others differently


def decode_jpeg(content: bytes, mode: str) -> npt.NDArray[np.uint8] | None:
    """Return the pixels [height, width, 3 or 1] of a JPEG file that Pillow would decode to `mode`.

    Returns None if Pillow must decode it: if it has another mode or any damage, which Pillow judges, or if the two decode
    the example below differently.
    """
    if mode not in SPACES or not agrees():
        return None
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(content, SPACES[mode])
    except (ValueError, RuntimeError):
        return None
    return pixels


@functools.cache
def agrees() -> bool:
    """Return whether Pillow and simplejpeg, which have a libjpeg-turbo each, decode pictures with random pixels alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((83, 67), Image.Resampling.BILINEAR)
    options: list[dict[str, Any]] = [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 1, "progressive": True}]
    for each in options:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=70, **each)
        with Image.open(out) as opened:
            expected = np.asarray(opened)
        if not np.array_equal(simplejpeg.decode_jpeg(out.getvalue(), "RGB"), expected):
            return False
    return True
