"""Recordings: what is decoded of files, bytes and arrays, read block by block, and their windows."""

from __future__ import annotations

import io
import operator
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..head import type_name
from .ffmpeg import FFmpegRecording, demuxer_of
from .settings import DEFAULT_WINDOW, check_window
from .sndfile import AudioError, BorrowedFile, FileOfBytes, Samples, SndfileRecording

MIN_RATE, MAX_RATE = 1_000, 768_000  # samples per second
MAX_CHANNELS = 8  # of an array: more are more likely samples
MAX_LEVEL = 256.0  # 1 is full scale: a float above this one is an integer that was not divided
BLOCK_SAMPLES = 1 << 15  # of all channels, per step of decoding: damage costs the rest of its block


@dataclass(frozen=True, eq=False)
class Track:
    """Samples, with what they are: a recording, or a window of one.

    Attributes:
        samples: [n] or [channels, n], floats whose full scale is 1, or int16.
        sample_rate: Samples per second.
        first: The number of the first sample in the recording.
    """

    samples: NDArray[Any] = field(repr=False)
    sample_rate: int
    first: int = 0

    @property
    def start(self) -> float:
        """Its beginning in the recording, in seconds."""
        return self.first / self.sample_rate

    @property
    def end(self) -> float:
        """Its end in the recording, in seconds."""
        return (self.first + int(self.samples.shape[-1])) / self.sample_rate


class Recording(Protocol):
    """Samples that are read from the first to the last.

    Attributes:
        rate: Samples per second.
        channels: How many there are.
        promised: How many samples of each channel there are, as the header says, which may be wrong; None if it does not.
    """

    rate: int
    channels: int
    promised: int | None

    def read(self, n: int) -> Samples:
        """Return the next n samples, float32 [n, channels], and fewer at the end. Raise AudioError for damaged ones."""

    def keeps_promise(self) -> bool:
        """Return whether the promised samples are there; False if only decoding tells. The position is then lost."""

    def seek(self, first: int) -> bool:
        """Move to a sample; return False if the format must be decoded from its start. Raise AudioError."""

    def close(self) -> None:
        """Close the file."""


class _Array:
    """A recording of samples in memory."""

    def __init__(self, samples: NDArray[Any], rate: int) -> None:
        samples, self.rate = np.asarray(samples), rate
        kind = samples.dtype
        if not (kind.kind == "f" or (kind.kind == "i" and kind.itemsize == 2)):
            raise AudioError("wrong type", f"the samples are {kind}: pass int16, or floats whose full scale is 1")
        if samples.ndim not in (1, 2):
            raise AudioError("wrong type", f"the array has shape {list(samples.shape)}, not [n] or [channels, n]")
        samples = samples[None] if samples.ndim == 1 else samples
        if len(samples) > MAX_CHANNELS:
            raise AudioError(
                "wrong type",
                f"the array has {len(samples):,} channels, at most {MAX_CHANNELS} are read: arrays are [channels, n], so "
                f"pass array.T if it is [n, channels], as soundfile returns it",
            )
        self.samples, self.channels, self.promised, self.position = samples, len(samples), samples.shape[1], 0

    def read(self, n: int) -> Samples:
        part = self.samples[:, self.position : self.position + n]
        self.position += part.shape[1]
        with np.errstate(over="ignore"):  # infinity is found later
            block = part.T.astype(np.float32)
        return np.divide(block, np.float32(32768), out=block) if part.dtype.kind == "i" else block

    def keeps_promise(self) -> bool:
        return True

    def seek(self, first: int) -> bool:
        self.position = first
        return True

    def close(self) -> None:
        pass


def open_recording(content: object, sample_rate: int | None = None) -> Recording:
    """Return the recording of a path, bytes, an opened file, an array of that sample rate, or a Track. Raise AudioError.

    An opened file is not closed with the recording.
    """
    recording = _open(content, sample_rate)
    if not (MIN_RATE <= recording.rate <= MAX_RATE and recording.channels):
        recording.close()
        if not recording.channels:
            raise AudioError("too short", "it has no channel")
        raise AudioError(
            "not decodable", f"a sample rate of {recording.rate:,} Hz: {MIN_RATE:,} to {MAX_RATE:,} Hz can be read"
        )
    return recording


def _open(content: object, sample_rate: int | None) -> Recording:
    if isinstance(content, Track):
        return _Array(content.samples, check_rate(content.sample_rate))
    if isinstance(content, np.ndarray):
        if sample_rate is None:
            raise AudioError("wrong type", "an array without a sample rate: pass sample_rate, or a Track")
        return _Array(content, sample_rate)
    if isinstance(content, bytes | bytearray | memoryview):
        if not len(content):
            raise AudioError("empty file", "it has 0 bytes")
        return _decode(FileOfBytes(content))
    if isinstance(content, str | os.PathLike):
        return _decode(_open_file(os.fspath(content)))
    if isinstance(content, io.IOBase):
        return _decode(cast(BinaryIO, BorrowedFile(cast(BinaryIO, content))))
    raise AudioError("wrong type", f"it is {type_name(content)}, not a path, bytes, an array or a Track")


def _decode(opened: BinaryIO) -> Recording:
    """Return the recording of an opened file, whatever its suffix says. Raise AudioError."""
    demuxer = demuxer_of(opened)
    return FFmpegRecording(opened, demuxer) if demuxer else SndfileRecording(opened)


def _open_file(path: str | bytes) -> BinaryIO:
    """Return a regular file, opened, which libsndfile reads whatever its suffix says. Raise AudioError."""
    if isinstance(path, str) and "://" in path:
        raise AudioError("wrong type", f"{path:.200} is a URL: read it, and pass its bytes")
    try:
        # A pipe must not make this wait.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a null character
        if isinstance(error, IsADirectoryError):
            raise AudioError("not decodable", f"{os.fsdecode(path)} is a directory, not a file") from None
        words = getattr(error, "strerror", None) or error
        raise AudioError("missing file", f"{os.fsdecode(path)} cannot be opened: {words}") from None
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size:
        return file
    file.close()
    if stat.S_ISREG(found.st_mode):
        raise AudioError("empty file", "it has 0 bytes")
    raise AudioError("not decodable", "it is a pipe or a device, not a file")


def check_rate(rate: object) -> int:
    """Return a sample rate as an int. Raise TypeError or ValueError if it is not one."""
    try:
        number = operator.index(rate.__int__() if isinstance(rate, float) and rate.is_integer() else rate)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"sample_rate={rate!r} is not a whole number of samples per second") from None
    if isinstance(rate, bool) or not MIN_RATE <= number <= MAX_RATE:
        raise ValueError(f"sample_rate={rate!r}: choose {MIN_RATE} to {MAX_RATE} samples per second")
    return number


def blocks(recording: Recording) -> Iterator[Samples]:
    """Yield the samples of a recording, float32 [n, channels], all of them finite and in range. Raise AudioError."""
    size, first = max(1, BLOCK_SAMPLES // recording.channels), 0
    while len(block := recording.read(size)):
        if not max(block.max(), -block.min()) <= MAX_LEVEL:
            _raise_level_error(block, first)
        first += len(block)
        yield block


def _raise_level_error(block: Samples, first: int) -> None:
    place, channel = np.argwhere(~(np.abs(block) <= MAX_LEVEL))[0]
    value = float(block[place, channel])
    if np.isfinite(value):
        raise AudioError(
            "not decodable",
            f"sample {first + place:,} is {value:g}, and full scale is 1: pass int16, or divide by 32768",
        )
    raise AudioError("not decodable", f"sample {first + place:,} of channel {channel + 1} is {value}, not a number")


def cut_windows(recording: Recording, window: float = DEFAULT_WINDOW, hop: float | None = None) -> Iterator[Track]:
    """Yield the windows of a recording, [channels, n] in its own rate, in bounded memory.

    A recording of up to 1.1 windows is one window. A longer one is cut at round(k * hop * rate); the last window is pulled
    back so that it ends with the recording. Raises AudioError at damage, after the windows before it.
    """
    check_window(window, hop)
    rate, step = recording.rate, Fraction(str(window if hop is None else hop))
    length = max(1, round(Fraction(str(window)) * rate))
    first, end, k = 0, 0, 0  # of the samples that are kept: the number of the first one, and of the one behind the last
    kept = np.empty((0, recording.channels), np.float32)
    new: list[Samples] = []  # behind those that are kept

    def window_from(start: int, stop: int) -> Track:
        return Track(np.ascontiguousarray(kept[start - first : stop - first].T), rate, start)

    for block in blocks(recording):
        new.append(block)
        end += len(block)
        start = round(k * step * rate)
        if not (end > start + length and (k or 10 * end > 11 * length)):
            continue
        kept, new = np.concatenate([kept, *new]), []
        while end > start + length:
            yield window_from(start, start + length)
            emitted, k = start, k + 1
            start = round(k * step * rate)
        kept, first = (
            kept[emitted - first :].copy(),
            emitted,
        )  # the last window may begin right behind the last one here
    if not end:
        raise AudioError("too short", "it has no sample")
    kept = np.concatenate([kept, *new])
    yield window_from(max(0, end - length) if k else 0, end)
