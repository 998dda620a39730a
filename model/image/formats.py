"""The formats of pictures that are opened, and their headers. Imports no torch."""

from __future__ import annotations

import re
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

AVIF_HEADER_BYTES = 64 << 10  # in which its properties are


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
    if beginning[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        reasons = reasons or ["HEIC is not read: convert it to JPEG, as with heif-convert"]
    detail = "; ".join(reasons) or f"it is not one of {', '.join(FORMATS)}; it begins with {beginning[:8]!r}"
    raise BadRow("not decodable", detail)


def check_size(size: int, settings: ImageSettings) -> None:
    """Raise BadRow if a file of `size` bytes is empty or too large."""
    if not size:
        raise BadRow("empty file", "it has 0 bytes")
    if size > settings.max_image_bytes:
        raise BadRow("too large", f"{size:,} bytes, over {settings.max_image_bytes:,} (max_image_bytes)")


def check_pixels(width: int, height: int, settings: ImageSettings) -> None:
    """Raise BadRow if a picture has too many pixels."""
    if width * height > settings.max_pixels:
        raise BadRow(
            "too large",
            f"{width:,} x {height:,} pixels are {width * height:,}, over {settings.max_pixels:,} (max_pixels)",
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


def count_pixels_in_header(stream: IO[bytes], size: int, settings: ImageSettings) -> int:
    """Return what count_pixels does; of WebP and AVIF, too, no more than the beginning is read.

    Pillow reads files of these formats to their end.
    """
    check_size(size, settings)
    stream.seek(0)
    head = stream.read(AVIF_HEADER_BYTES) if stream.read(12)[4:8] == b"ftyp" else b""
    stream.seek(0)
    found = _avif_size(head) if head else _webp_size(stream.read(30))
    if found is None:
        return count_pixels(stream, size, settings)
    check_pixels(*found, settings)
    return found[0] * found[1]


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Return the width and height in the first 30 bytes of a WebP file; None if they are not such a file's."""
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[12:16] == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _avif_size(head: bytes) -> tuple[int, int] | None:
    """Return the width and height of the largest image that the header of an AVIF file has; None if it has none."""
    places = [match.end() for match in re.finditer(rb"\0\0\0\x14ispe\0\0\0\0", head) if match.end() + 8 <= len(head)]
    sizes = [struct.unpack_from(">II", head, place) for place in places]
    return max(sizes, key=lambda found: found[0] * found[1], default=None)


def not_decodable(error: Exception) -> BadRow:
    """Return the rejection of a picture that Pillow cannot open or decode."""
    words = " ".join(str(error).split())[:300]
    return BadRow(
        "not decodable", words if isinstance(error, OSError) and words else f"{type(error).__name__}: {words}"
    )
