"""Recordings of files that libsndfile decodes, and the error of those that nothing decodes."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..head import ContentError
from ..messages import printable

Samples = NDArray[np.float32]

WAV_HEADER_BYTES = 1 << 16  # in which the samples of a WAV file begin
PREROLL = 16_384  # samples in front of a place in Ogg: those right behind it depend on what was decoded before
MP3_HEADER_BYTES = 1 << 12  # in which the tag of LAME is, behind a tag of ID3


class AudioError(ValueError):
    """A recording, or a part of one, that cannot be embedded.

    Args:
        reason: Why, as rejected rows have it.
        detail: The same for people, with what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, printable(detail)
        super().__init__(f"{reason}: {self.detail}")

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


class BorrowedFile(io.RawIOBase):
    """A file that is not closed with what reads it; libsndfile asks damaged ones for places in front of their beginning."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        file.seek(0)

    def readinto(self, buffer: Any) -> int:
        """Read bytes."""
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek as the file does, at most to the beginning."""
        return self.file.seek(max(0, offset) if whence == 0 else offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self.file.tell()

    def fileno(self) -> int:
        """Return the file's descriptor. Raise OSError or AttributeError if it has none."""
        return self.file.fileno()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


class _UnfinishedWav(BorrowedFile):
    """A WAV file whose header has no lengths, with those that mean that the samples go on to its end.

    Args:
        file: The file.
        places: Where the header has the lengths of the file and of its samples.
    """

    def __init__(self, file: BinaryIO, places: tuple[int, int]) -> None:
        super().__init__(file)
        self.places = places

    def readinto(self, buffer: Any) -> int:
        """Read bytes."""
        start = self.file.tell()
        data = bytearray(self.file.read(len(buffer)))
        for place in self.places:
            for each in range(max(place, start), min(place + 4, start + len(data))):
                data[each - start] = 0xFF
        buffer[: len(data)] = data
        return len(data)


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
            self.file = _open(opened, _finish_wav(opened))
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

    @property
    def _is_mp3(self) -> bool:
        return bool(self.file.format == "MP3")

    def keeps_promise(self) -> bool:
        """Return whether the file is long enough for the samples that its header promises. The position is then lost."""
        if self._is_mp3:
            return _has_whole_mp3(self.opened)
        try:
            self.file.seek(self.promised - 1)
            return len(self.read(1)) == 1
        except (soundfile.LibsndfileError, AudioError):
            return False

    def seek(self, first: int) -> bool:
        """Move to a sample; return False if the format must be decoded from its start: MP3 is not exact elsewhere."""
        if self._is_mp3:
            return False
        start = max(0, first - PREROLL) if self.file.format == "OGG" else first
        try:
            self.file.seek(start)
        except soundfile.LibsndfileError as error:
            raise _not_decodable(error) from None
        if start < first:
            self.read(first - start)
        return True

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self.opened.close()


def _open(opened: BinaryIO, file: BinaryIO | _UnfinishedWav) -> _File:
    """Return a file, opened by libsndfile."""
    if file is not opened:
        return _File(file)
    try:
        descriptor = opened.fileno()
        os.lseek(descriptor, 0, os.SEEK_SET)
    except (AttributeError, OSError):  # it is not a file of this machine
        return _File(file)
    return _File(descriptor, closefd=False)  # libsndfile reads it by itself, without a call of Python for each block


def _has_whole_mp3(file: BinaryIO) -> bool:
    """Return whether an MP3 file has all the bytes that its tag of LAME counts; False without a tag that counts them."""
    position = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(10)
        start = 10 + id3_bytes(head) if head[:3] == b"ID3" and len(head) == 10 else 0
        file.seek(start)
        head = file.read(MP3_HEADER_BYTES)
    finally:
        file.seek(position)
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0 or len(head) < place + 16 or not head[place + 7] & 2:
        return False
    place += 12 if head[place + 7] & 1 else 8
    return 0 < int.from_bytes(head[place : place + 4], "big") <= size - start


def id3_bytes(head: bytes) -> int:
    """Return the bytes of a tag of ID3 behind its first ten, which are given."""
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(reversed(head[6:10])))


def _not_decodable(error: soundfile.LibsndfileError) -> AudioError:
    return AudioError("not decodable", f"libsndfile: {error.error_string.strip().rstrip('.')}")
