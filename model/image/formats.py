"""The formats of pictures that are opened, and their headers. Imports no torch."""

from __future__ import annotations

import struct
from typing import IO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..head import BadRow
from .settings import ImageSettings

# The formats that are opened, by what Pillow calls them. Others stay closed: some of Pillow's plugins run programs.
FORMATS = {
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "WEBP": WebPImagePlugin,
    "GIF": GifImagePlugin,
    "BMP": BmpImagePlugin,
    "TIFF": TiffImagePlugin,
    "AVIF": AvifImagePlugin,
}


def open_header(stream: IO[bytes]) -> Image.Image:
    """Return the picture in a file, with nothing but its header read. Raise BadRow if its format is not one of FORMATS.

    Image.open would try every plugin, and has limits of its own, which belong to the whole process.
    """
    beginning = stream.read(16)
    reasons = []
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        accepted = accept(beginning) if accept else True
        if isinstance(accepted, str):  # why this Pillow cannot open it
            reasons.append(accepted)
        elif accepted:
            stream.seek(0)
            try:
                return factory(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                reasons.append(f"damaged {name}: {error}")
    detail = "; ".join(reasons) or f"it is not one of {', '.join(FORMATS)}; it begins with {beginning[:8]!r}"
    raise BadRow("not decodable", detail)


def check_size(size: int, settings: ImageSettings) -> None:
    """Raise BadRow if a file of `size` bytes is empty or too large."""
    if not size:
        raise BadRow("empty file", "it has 0 bytes")
    if size > settings.max_image_bytes:
        raise BadRow("too large", f"{size:,} bytes, over {settings.max_image_bytes:,} (--max_image_bytes)")


def check_pixels(width: int, height: int, settings: ImageSettings) -> None:
    """Raise BadRow if a picture has too many pixels."""
    if width * height > settings.max_pixels:
        raise BadRow(
            "too large",
            f"{width:,} x {height:,} pixels are {width * height:,}, over {settings.max_pixels:,} (--max_pixels)",
        )


def count_pixels(stream: IO[bytes], size: int, settings: ImageSettings) -> int:
    """Return the pixels of the picture in a file of `size` bytes, by its header. Raise BadRow if it cannot be embedded."""
    check_size(size, settings)
    stream.seek(0)
    try:
        width, height = open_header(stream).size
        check_pixels(width, height, settings)
        return width * height
    except (BadRow, MemoryError):
        raise
    except Exception as error:  # damaged bytes lead Pillow anywhere: OSError, ValueError, KeyError, ...
        raise not_decodable(error) from error


def not_decodable(error: Exception) -> BadRow:
    """Return the rejection of a picture that Pillow cannot open or decode."""
    words = " ".join(str(error).split())[:300]
    return BadRow(
        "not decodable", words if isinstance(error, OSError) and words else f"{type(error).__name__}: {words}"
    )
