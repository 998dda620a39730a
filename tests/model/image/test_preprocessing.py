"""From a picture to the network's input: any size and mode, compared with torch's own resize of the whole picture."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from audioclip_beam.model.image import jpeg
from audioclip_beam.model.image.pictures import prepare
from audioclip_beam.model.image.settings import ImageSettings
from audioclip_beam.model.media import VARIANTS
from tests.support.paths import ROOT
from tests.support.plain_image import plain_input, plain_pixels

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16")
FORMATS = {  # what each format can store of these
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "JPEG": {"L", "RGB", "CMYK"},
    "TIFF": {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"},
    "WEBP": {"RGB", "RGBA"},
    "GIF": {"1", "L", "P", "RGB"},
    "BMP": {"1", "L", "P", "RGB", "RGBA"},
}


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of random pixels."""
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width), np.uint16))
    rgb = Image.fromarray(random.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
    return rgb if mode == "RGBA" else rgb.convert("RGB").convert(mode)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the difference's root mean square, relative to the expected one or, if that is smaller, to one deviation."""
    return float((actual - expected).norm() / max(expected.norm(), expected.numel() ** 0.5))


SIZES = st.one_of(st.integers(1, 40), st.integers(200, 260), st.integers(1, 900))


@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(SIZES, SIZES).filter(lambda size: max(size) <= 60 * min(size)),
    kind=st.sampled_from([(name, mode) for name, modes in FORMATS.items() for mode in sorted(modes)]),
    orientation=st.integers(0, 9),
    variant=st.sampled_from(VARIANTS),
)
def test_any_picture(size: tuple[int, int], kind: tuple[str, str], orientation: int, variant: str) -> None:
    """Size, mode, format and orientation are those of a file; only what the crop needs is computed."""
    file_format, mode = kind
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if file_format in ("GIF", "BMP", "TIFF") else {"exif": exif}
    content = encoded(picture(mode, *size), file_format, **options)
    prepared = prepare(content, ImageSettings("untrained", variant=variant))
    pixels = plain_pixels(content, variant)
    assert (prepared.height, prepared.width) == pixels.shape[:2]
    assert difference(prepared.pixels, plain_input(pixels, variant)) < 4e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_is_converted_as_pillow_does(mode: str) -> None:
    """Alpha is dropped, and 16-bit grey is a share of 65,535."""
    image = picture(mode, 300, 230)
    pixels = (
        np.repeat(np.asarray(image).astype(np.float32)[:, :, None] / 65535, 3, 2)
        if mode == "I;16"
        else np.asarray(image.convert("RGB")).astype(np.float32) / 255
    )
    assert difference(prepare(image, ImageSettings("untrained")).pixels, plain_input(pixels)) < 4e-6


@pytest.mark.parametrize(("turn", "variant"), list(itertools.product(range(4), VARIANTS)))
def test_an_array_is_taken_as_it_is(turn: int, variant: str) -> None:
    """Of any strides, read-only too."""
    array = np.rot90(np.asarray(picture("RGB", 301, 257)), turn)
    expected = plain_input(array.astype(np.float32) / 255, variant)
    assert difference(prepare(array, ImageSettings("untrained", variant=variant)).pixels, expected) < 4e-6


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (2, 9_000), (1, 1), (3, 2)])
def test_extreme_shapes_compute_the_crop_alone(size: tuple[int, int]) -> None:
    """The resized picture would have up to a billion pixels. Its middle is made of the source's middle."""
    array = np.asarray(picture("RGB", *size))
    prepared = prepare(array, ImageSettings("untrained"))
    width, height = size
    half = 20  # pixels around the middle, more than the crop is made of
    crop = array[max(0, height // 2 - half) : height // 2 + half, max(0, width // 2 - half) : width // 2 + half]
    assert difference(prepared.pixels, plain_input(crop.astype(np.float32) / 255)) < 2e-3
    assert (prepared.width, prepared.height) == size


def test_strips_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is read in many strips gives the same as one that is read in one."""
    array = np.asarray(picture("RGB", 700, 500))
    whole = prepare(array, ImageSettings("untrained")).pixels
    for size in (1, 3, 100, 10_000):
        monkeypatch.setattr("audioclip_beam.model.image.resize.MIN_STRIP", size)
        assert difference(prepare(array, ImageSettings("untrained")).pixels, whole) < 1e-6


PEAK = """
import sys, numpy as np
from audioclip_beam.model.image import jpeg
from audioclip_beam.model.image.pictures import prepare
from audioclip_beam.model.image.settings import ImageSettings
from tests.support.memory import peak
prepare(np.zeros((300, 300, 3), np.uint8), ImageSettings("untrained"))
before = peak()
prepared = prepare(sys.argv[1], ImageSettings("untrained"))
print((peak() - before) * 1024 / (prepared.width * prepared.height))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "size", "bytes_per_pixel"), [("L", (12_300, 12_200), 1), ("RGB", (5_000, 4_000), 4), ("L", (1, 65_000), 1)]
)
def test_memory_is_bounded_by_decoded_pixels(
    tmp_path: Path, mode: str, size: tuple[int, int], bytes_per_pixel: int
) -> None:
    """Beside the decoded picture, as Pillow stores it, preparing takes less than a third of it, or 64 MB."""
    path = tmp_path / "a.jpg"
    Image.new(mode, size, 77 if mode == "L" else (1, 2, 3)).save(path)
    command = [sys.executable, "-c", PEAK, str(path)]
    growth = float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    pixels = size[0] * size[1]
    assert growth * pixels < max(1.33 * bytes_per_pixel * pixels, bytes_per_pixel * pixels + (64 << 20))


def test_pixels_of_one_value_keep_it() -> None:
    """The weights of every output pixel add up to one."""
    array: npt.NDArray[np.uint8] = np.full((333, 777, 3), 255, np.uint8)
    for variant in VARIANTS:
        pixels = prepare(array, ImageSettings("untrained", variant=variant)).pixels
        assert float((pixels - pixels[:, :1, :1]).abs().max()) < 1e-5


def test_jpeg_files_are_decoded_as_pillow_decodes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster decoder gives the same bits; damaged files, and those in CMYK, are left to Pillow."""
    contents = [
        encoded(
            picture(mode, 90 + seed, 61, seed), "JPEG", quality=30 + 9 * seed, progressive=bool(seed % 2), **options
        )
        for seed, (mode, options) in enumerate(
            itertools.product(("RGB", "L", "CMYK"), ({}, {"subsampling": "4:4:4"}, {"subsampling": "4:1:1"}))
        )
    ]
    contents.append(encoded(picture("RGB", 50, 40), "JPEG", keep_rgb=True))
    contents.append(contents[0] + b"more")
    assert jpeg.agrees()
    assert [jpeg.decode_jpeg(content, "CMYK") for content in contents[6:9]] == [None] * 3
    assert jpeg.decode_jpeg(contents[0][:-400], "RGB") is None
    fast = [prepare(content, ImageSettings("untrained")).pixels for content in contents]
    monkeypatch.setattr("audioclip_beam.model.image.pictures.decode_jpeg", lambda content, mode: None)
    for content, pixels in zip(contents, fast, strict=True):
        assert difference(pixels, prepare(content, ImageSettings("untrained")).pixels) < 1e-6
