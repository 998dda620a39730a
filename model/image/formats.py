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
