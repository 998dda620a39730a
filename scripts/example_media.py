"""Make the sounds and pictures in examples/sounds and examples/pictures: synthetic, so that anyone may use them.

python scripts/example_media.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

EXAMPLES = Path(__file__).parents[1] / "examples"
RATE = 16_000

Wave = NDArray[np.float64]


def _time(seconds: float) -> Wave:
    return np.arange(round(seconds * RATE)) / RATE


def _noise(seconds: float, seed: int) -> Wave:
    return np.random.default_rng(seed).standard_normal(round(seconds * RATE))


def beeps() -> Wave:
    """Four short tones, as of an alarm."""
    t = _time(3)
    return 0.3 * np.sin(2 * np.pi * 1000 * t) * (t % 0.75 < 0.25)


def siren() -> Wave:
    """A tone that goes up and down for twelve seconds: longer than one window."""
    t = _time(12)
    return 0.3 * np.sin(2 * np.pi * (700 * t - 60 * np.cos(2 * np.pi * t / 2)))


def rain() -> Wave:
    """Soft noise with drops."""
    noise = _noise(4, 1)
    return 0.03 * noise + 0.2 * noise * (np.random.default_rng(2).random(len(noise)) > 0.999)


def surf() -> Wave:
    """Noise that swells and ebbs."""
    t = _time(6)
    return 0.1 * np.convolve(_noise(6, 3), np.ones(8) / 8, "same") * (1 + np.sin(2 * np.pi * t / 3))


def knocks() -> Wave:
    """Three knocks on wood."""
    t = _time(2)
    return sum(0.5 * np.sin(2 * np.pi * 180 * (t - at)) * np.exp(-40 * (t - at)) * (t >= at) for at in (0.2, 0.7, 1.2))


def bell() -> Wave:
    """A bell that fades."""
    t = _time(4)
    partials = zip((1.0, 2.0, 2.7, 4.1), (1.0, 0.6, 0.4, 0.2), strict=True)
    return 0.2 * np.exp(-1.2 * t) * sum(level * np.sin(2 * np.pi * 440 * ratio * t) for ratio, level in partials)


SOUNDS: dict[str, Callable[[], Wave]] = {
    "beeps.wav": beeps, "siren.ogg": siren, "rain.ogg": rain, "surf.mp3": surf, "knocks.flac": knocks, "bell.ogg": bell
}  # fmt: skip


def _canvas(color: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (320, 240), color)
    return picture, ImageDraw.Draw(picture)


def sun() -> Image.Image:
    """The sun over the sea."""
    picture, draw = _canvas("#9fd3f2")
    draw.ellipse((120, 30, 200, 110), "#ffd23f")
    draw.rectangle((0, 150, 320, 240), "#1f6fa8")
    return picture


def house() -> Image.Image:
    """A house with a red roof."""
    picture, draw = _canvas("#d8f0d0")
    draw.rectangle((90, 110, 230, 220), "#f2e2c4")
    draw.polygon([(75, 110), (160, 40), (245, 110)], "#b03030")
    draw.rectangle((145, 160, 175, 220), "#70481c")
    return picture


def tree() -> Image.Image:
    """A tree on a hill."""
    picture, draw = _canvas("#c4e4fa")
    draw.ellipse((-80, 150, 400, 400), "#5aa02c")
    draw.rectangle((150, 110, 170, 190), "#70481c")
    draw.ellipse((110, 40, 210, 130), "#2e7d32")
    return picture


def moon() -> Image.Image:
    """The moon and stars at night."""
    picture, draw = _canvas("#0b1033")
    draw.ellipse((190, 40, 260, 110), "#f4f1d0")
    draw.ellipse((175, 30, 240, 100), "#0b1033")
    for x, y in np.random.default_rng(4).integers(0, (320, 240), (40, 2)).tolist():
        draw.point((x, y), "white")
    return picture


def rainbow() -> Image.Image:
    """A rainbow."""
    picture, draw = _canvas("#bcd9ee")
    for number, color in enumerate(("#e53935", "#fb8c00", "#fdd835", "#43a047", "#1e88e5", "#8e24aa")):
        inset = 20 + 12 * number
        draw.arc((inset, inset, 320 - inset, 420 - inset), 180, 360, color, 12)
    return picture


def chessboard() -> Image.Image:
    """A chessboard."""
    picture, draw = _canvas("#f0d9b5")
    for row in range(8):
        for column in range(row % 2, 8, 2):
            draw.rectangle((40 + 30 * column, 30 * row, 69 + 30 * column, 30 * row + 29), "#b58863")
    return picture


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "sun.jpg": sun, "house.png": house, "tree.webp": tree, "moon.png": moon, "rainbow.jpg": rainbow,
    "chessboard.gif": chessboard,
}  # fmt: skip


def main() -> None:
    """Write all files."""
    for name, wave in SOUNDS.items():
        path = EXAMPLES / "sounds" / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.clip(wave(), -1, 1), RATE)
    for name, draw in PICTURES.items():
        path = EXAMPLES / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        draw().save(path)


if __name__ == "__main__":
    main()
