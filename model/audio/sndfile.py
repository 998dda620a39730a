"""Recordings of files that libsndfile decodes, and the error of those that nothing decodes."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..head import ContentError

Samples = NDArray[np.float32]

WAV_HEADER_BYTES = 1 << 16  # in which the samples of a WAV file begin


class AudioError(ValueError):
    """A recording, or a part of one, that cannot be embedded.

    Args:
        reason: Why, as rejected rows have it.
        detail: The same for people, with what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.detail)

    @property
    def content_error(self) -> ContentError:
        """The same, as an encoding has it."""
        return ContentError(self.reason, self.detail)


class _File(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read forward only: SoundFile seeks after each block, which for MP3 is not exact."""

    def seekable(self) -> bool:
        return False


class FileOfBytes(io.BytesIO):
    """Bytes for libsndfile, which asks damaged files for places in front of their beginning."""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek, at most to the beginning."""
        return super().seek(max(0, offset) if whence == 0 else offset, whence)


class _UnfinishedWav(io.RawIOBase):
    """A WAV file whose header has no lengths, with those that mean that the samples go on to its end.

    Args:
        file: The file.
        places: Where the header has the lengths of the file and of its samples.
    """

    def __init__(self, file: BinaryIO, places: tuple[int, int]) -> None:
        self.file, self.places = file, places

    def readinto(self, buffer: Any) -> int:
        """Read bytes."""
        start = self.file.tell()
        data = bytearray(self.file.read(len(buffer)))
        for place in self.places:
            for each in range(max(place, start), min(place + 4, start + len(data))):
                data[each - start] = 0xFF
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek as the file does."""
        return self.file.seek(max(0, offset) if whence == 0 else offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self.file.tell()


def _finish_wav(file: BinaryIO) -> BinaryIO | _UnfinishedWav:
    """Return a file, at its beginning; a WAV file that was written to a pipe, without lengths, with these."""
    head, size = file.read(WAV_HEADER_BYTES), file.seek(0, os.SEEK_END)
    file.seek(0)
    place = 12
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return file
    while place + 8 <= len(head):
        length = int.from_bytes(head[place + 4 : place + 8], "little")
        if head[place : place + 4] == b"data":
            end = place + 8
            following, rest = head[end : end + 4], int.from_bytes(head[end + 4 : end + 8], "little")
            is_empty = end == size or (following.isalnum() and following.isascii() and end + 8 + rest <= size)
            return file if length or is_empty else _UnfinishedWav(file, (4, place + 4))
        place += 8 + length + length % 2
    return file


class SndfileRecording:
    """A recording of a file or of its bytes, decoded by libsndfile."""

    def __init__(self, opened: BinaryIO) -> None:
        self.opened = opened
        try:
            file = _finish_wav(opened)
            # libsndfile reads a descriptor by itself, without a call of Python for each block.
            is_plain = file is opened and not isinstance(opened, io.BytesIO)
            self.file = _File(opened.fileno(), closefd=False) if is_plain else _File(file)
        except BaseException as error:
            opened.close()
            if isinstance(error, soundfile.LibsndfileError):
                raise _not_decodable(error) from None
            raise
        self.rate, self.channels, self.promised = self.file.samplerate, self.file.channels, self.file.frames

    def read(self, n: int) -> Samples:
        """Return the next n samples, float32 [n, channels], and fewer at the end. Raise AudioError for damaged ones."""
        try:
            samples: Samples = self.file.read(n, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _not_decodable(error) from None
        return samples

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self.opened.close()


def _not_decodable(error: soundfile.LibsndfileError) -> AudioError:
    return AudioError("not decodable", f"libsndfile: {error.error_string.strip().rstrip('.')}")
