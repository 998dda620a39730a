"""Pictures, and files of them as bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 60, height: int = 50) -> Image.Image:
    """Return a picture of large random squares."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BOX)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Return a file of a picture."""
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()
