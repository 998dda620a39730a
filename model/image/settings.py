"""What an ImageEncoder is loaded from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..head import EncoderSettings
from ..media import check_variant
from ..messages import WrongSettingError

MAX_IMAGE_BYTES = 256 << 20
MAX_PIXELS = 178_956_970  # above this Pillow itself opens no file


@dataclass(frozen=True)
class ImageSettings(EncoderSettings):
    """What an ImageEncoder is loaded from.

    Attributes:
        variant: "audioclip" (files upright as EXIF says, resized with antialiasing) or "jina" (the vectors of Jina's
            executor: EXIF ignored, resized without antialiasing).
        max_image_bytes: Larger files are not decoded.
        max_pixels: Pictures of more pixels are not decoded.
    """

    variant: str = "audioclip"
    max_image_bytes: int = MAX_IMAGE_BYTES
    max_pixels: int = MAX_PIXELS

    def check(self) -> None:
        """Raise ValueError for a value that the encoder does not know; the message names the known ones."""
        super().check()
        check_variant(self.variant)
        for name in ("max_image_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise WrongSettingError(name, getattr(self, name), "give a number of at least 1")

    def fingerprint_parts(self) -> dict[str, str]:
        """Return what these settings decide of a vector, by name."""
        return {"variant": self.variant, **super().fingerprint_parts()}


# Pickles name this class by its module: by the public one, which does not change.
ImageSettings.__module__ = __name__.removesuffix(".image.settings")
