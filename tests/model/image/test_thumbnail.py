"""Small pictures for pages: upright, of few bytes, without metadata, and never made of what takes much memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from audioclip_beam.model.head import BadRow
from audioclip_beam.model.image import thumbnail as module
from audioclip_beam.model.image.thumbnail import SIDE, thumbnail
from tests.support.picture_files import encoded, picture


def opened(content: bytes, max_bytes: int = 3000) -> Image.Image:
    small = thumbnail(content, max_bytes)
    assert len(small) <= max_bytes
    image = Image.open(io.BytesIO(small))
    assert image.format == "WEBP"
    assert not image.info.get("icc_profile")
    assert not image.getexif()
    return image.convert("RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format(kind: str) -> None:
    """Colors are those of the picture, whose sides keep their proportion."""
    image = opened(encoded(picture(1, 600, 300), kind))
    assert image.size == (SIDE, SIDE // 2)
    expected = picture(1, 600, 300).resize(image.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16)).mean() < 20


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode(mode: str) -> None:
    """Alpha is dropped, as for the model, and 16 bits become eight."""
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 51 << 8, np.uint16))
    else:
        image = Image.new("RGB", (40, 30), (51, 51, 51)).convert(mode)
    small = opened(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert small.size == (40, 30)
    assert mode == "1" or abs(np.asarray(small).mean() - 51) < 4


def test_pictures_are_upright_and_leave_their_metadata_behind() -> None:
    """Also with a color profile that is larger than all of the result; damaged EXIF data turns nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(2, 90, 40), "JPEG", exif=exif, icc_profile=bytes(20_000))
    assert opened(turned).size == (40, 90)
    assert opened(encoded(picture(2, 90, 40), "JPEG", exif=b"Exif\0\0nonsense")).size == (90, 40)


def test_noise_gets_less_quality_and_then_fewer_pixels() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    widths = [opened(encoded(noise), max_bytes).width for max_bytes in (20_000, 3000, 300)]
    assert widths[0] == SIDE
    assert sorted(set(widths), reverse=True) == widths


def test_what_is_not_a_picture_or_has_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage and bombs are the same error as for rows; of JPEG files fewer pixels than they have are decoded."""
    large = picture(3, 800, 800)
    for content in (b"", b"nonsense", encoded(large)[:500], encoded(large, "JPEG")[:300]):
        with pytest.raises(BadRow) as caught:
            thumbnail(content, 3000)
        assert caught.value.reason == "not decodable"
    monkeypatch.setattr(module, "MAX_DECODED", 500_000)
    assert opened(encoded(large, "JPEG")).size == (SIDE, SIDE)
    with pytest.raises(BadRow, match="800 x 800 pixels are too many"):
        thumbnail(encoded(large), 3000)
    monkeypatch.setattr(module, "MAX_PIXELS", 500_000)
    with pytest.raises(BadRow, match="800 x 800 pixels are too many"):
        thumbnail(encoded(large, "JPEG"), 3000)
