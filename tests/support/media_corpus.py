"""Pictures and sounds by number, and what a run with a stub head makes of them, worked out without the program."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import soundfile

from tests.support.picture_files import encoded, picture
from tests.support.stub_media import StubPictures, StubSounds, vector_of

RATE = 8000
WINDOW = 2000  # samples, of 0.25 s

Key = tuple[object, ...]


class Content(NamedTuple):
    """A file by its number, and its kind: "good", "bad" for one without a header, or "broken" behind its header."""

    number: int
    kind: str = "good"


class Piece(NamedTuple):
    """What a row embeds.

    Attributes:
        fragment: What follows the file's name in the row's id.
        key: Equal for the same content.
        vector: Its vector, as bytes; None if the model rejects it.
    """

    fragment: str
    key: Key
    vector: bytes | None


Entry = tuple[float, float] | None  # offset and duration of an entry of a list, in seconds


class PictureFiles:
    """Small pictures."""

    suffix = ".png"
    head = StubPictures()
    kinds = ("good", "bad", "broken")
    options: ClassVar[dict[str, Any]] = {}

    @staticmethod
    @functools.cache
    def data(content: Content) -> bytes:
        """Return the bytes of a file."""
        if content.kind == "bad":
            return b"no picture %d" % content.number
        return encoded(picture(content.number, 8, 6)) + (b"broken" if content.kind == "broken" else b"")

    def pieces(self, content: Content, entry: Entry = None) -> list[Piece] | str:
        """Return what the rows of a file embed, or why it is rejected when it is read."""
        if content.kind == "bad":
            return "not decodable"
        vector = vector_of(self.data(content)).tobytes() if content.kind == "good" else None
        return [Piece("", content, vector)]


class SoundFiles:
    """Sounds of one to three windows."""

    suffix = ".wav"
    head = StubSounds()
    kinds = ("good", "bad")
    options: ClassVar[dict[str, Any]] = {"window": str(WINDOW / RATE)}

    @staticmethod
    def samples(number: int) -> np.ndarray[Any, np.dtype[np.int16]]:
        """Return the samples of a file."""
        n = 1500 + 700 * (number % 7)
        return (np.arange(n) * (number + 3) % 30011 - 15000).astype(np.int16)

    @classmethod
    @functools.cache
    def data(cls, content: Content) -> bytes:
        """Return the bytes of a file."""
        if content.kind == "bad":
            return b"no sound %d" % content.number
        file = io.BytesIO()
        soundfile.write(file, cls.samples(content.number), RATE, format="WAV")
        return file.getvalue()

    def pieces(self, content: Content, entry: Entry = None) -> list[Piece] | str:
        """Return what the rows of a file, or of an entry of a list, embed, or why it is rejected when it is read."""
        if content.kind == "bad":
            return "not decodable"
        samples = self.samples(content.number)
        begin, end = 0, len(samples)
        if entry is not None:
            offset, duration = entry
            if offset >= end / RATE or offset + duration > end / RATE + 0.1:
                return "too short"
            begin, end = round(offset * RATE), min(end, round((offset + duration) * RATE))
        part = None if (begin, end) == (0, len(samples)) else (begin, end)
        found = _windows(begin, end)
        return [
            Piece(
                f"#t={_seconds(first)},{_seconds(stop)}" if len(found) > 1 else "",
                (content, part, number),
                vector_of(samples[None, first:stop].astype(np.float32) / 32768).tobytes(),
            )
            for number, (first, stop) in enumerate(found)
        ]


def _windows(begin: int, end: int) -> Sequence[tuple[int, int]]:
    if end - begin <= 1.1 * WINDOW:
        return [(begin, end)]
    starts = [*range(begin, end - WINDOW, WINDOW), end - WINDOW]
    return [(start, start + WINDOW) for start in starts]


def _seconds(samples: int) -> str:
    return f"{samples / RATE:.3f}".rstrip("0").rstrip(".")
