"""Small pictures for pages. Imports no torch."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from ..head import BadRow
from .formats import not_decodable, open_header

SIDE = 160  # pixels at most
MAX_PIXELS = 1 << 26  # of a picture: some JPEG files are decoded as a whole, whatever size is asked for
MAX_DECODED = 1 << 25  # pixels in memory

_QUALITIES = (60, 40, 20, 5)


def thumbnail(content: bytes, max_bytes: int) -> bytes:
    """Return a picture, upright and without its metadata, as a WebP file of at most `max_bytes`, of which 100 are enough.

    Raises BadRow: It cannot be decoded, or has too many pixels to be decoded for that.
    """
    try:
        with open_header(BytesIO(content)) as opened:
            small = _shrink(opened)
    except BadRow:
        raise
    except Exception as error:  # damaged bytes lead Pillow anywhere: OSError, ValueError, KeyError, ...
        raise not_decodable(error) from error
    while True:
        for quality in _QUALITIES:
            out = BytesIO()
            small.save(out, "WEBP", quality=quality, method=6)
            if out.tell() <= max_bytes:
                return out.getvalue()
        small = small.resize((max(1, small.width // 2), max(1, small.height // 2)))


def _shrink(opened: Image.Image) -> Image.Image:
    """Return a picture that was not decoded yet, upright, as RGB of at most SIDE pixels of width and height."""
    width, height = opened.size
    opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # of JPEG files few coefficients are decoded
    if width * height > MAX_PIXELS or opened.width * opened.height > MAX_DECODED:
        raise BadRow("too large", f"{width:,} x {height:,} pixels are too many for a small picture")
    picture: Image.Image = opened
    with suppress(Exception):  # damaged EXIF data; damaged pixels are an error below
        picture = ImageOps.exif_transpose(opened)
    picture.info.clear()  # alpha is dropped, as for the model; a color profile may be large
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    return picture
