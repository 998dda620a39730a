"""Recordings in formats that libsndfile does not read: m4a, mp4, aac, wma, webm and mka, decoded by FFmpeg through PyAV.

PyAV is the extra `ffmpeg`. Only these containers are opened, each by its own demuxer: others of FFmpeg's read further files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from .sndfile import AudioError, Samples, id3_bytes

# The demuxers, by FFmpeg's names, and what they open.
CONTAINERS = {"mov": "MPEG-4", "matroska": "Matroska", "asf": "Windows Media", "aac": "AAC"}
_MPEG4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_ZERO = {"u1": 1 << 7, "i2": 0, "i4": 0, "i8": 0}  # the integer that is silence, by the kind of sample
DETAIL_CHARACTERS = 200  # of FFmpeg's words


def demuxer_of(file: BinaryIO) -> str | None:
    """Return FFmpeg's name of the container that a file at its beginning is, or None if it is not one of these."""
    head = file.read(16)
    if head[:3] == b"ID3" and len(head) >= 10:  # a tag, which AAC may have in front, as MP3
        file.seek(10 + id3_bytes(head))
        behind = file.read(2)
        file.seek(0)
        return "aac" if _is_adts(behind) else None
    file.seek(0)
    if head[4:8] in _MPEG4_BOXES:
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:8] == bytes.fromhex("3026b2758e66cf11"):
        return "asf"
    return "aac" if _is_adts(head) else None


def _is_adts(head: bytes) -> bool:
    return len(head) >= 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


class FFmpegRecording:
    """A recording of a file, decoded from its start, frame by frame.

    Args:
        opened: The file, which is closed with the recording.
        demuxer: FFmpeg's name of the container.
    """

    def __init__(self, opened: BinaryIO, demuxer: str) -> None:
        self.opened, self.container = opened, None
        try:
            try:
                import av
            except ImportError:
                raise AudioError(
                    "not decodable",
                    f"it is {CONTAINERS[demuxer]}, which needs FFmpeg: pip install 'audioclip-beam[ffmpeg]'",
                ) from None
            self.errors: type[Exception] = av.FFmpegError
            self._start(av, demuxer)
        except BaseException:
            self.close()
            raise

    def _start(self, av: Any, demuxer: str) -> None:
        """Open the container, and decode the first frame: what the header says of rate and channels may be wrong."""
        try:
            self.container = container = av.open(self.opened, format=demuxer, metadata_errors="replace")
        except (self.errors, ValueError) as error:
            raise self._not_decodable(error) from None
        if not container.streams.audio:
            raise AudioError("not decodable", "it has no sound track")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise AudioError("not decodable", "FFmpeg has no decoder for its sound track")
        stream.codec_context.thread_count = 1
        self.rate, self.channels, self.frames = 0, 0, self._decode(stream)
        self.kept = [next(self.frames, np.empty((0, 0), np.float32))]
        if not self.channels:
            raise AudioError("too short", "it has no sample")
        length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1_000_000
        self.promised = round(length * self.rate) or None

    def _decode(self, stream: Any) -> Iterator[Samples]:
        """Yield the samples of each frame, float32 [n, channels]. Raise AudioError."""
        try:
            for frame in self.container.decode(stream):  # type: ignore[attr-defined]
                found = frame.sample_rate, frame.layout.nb_channels
                if not self.channels:
                    self.rate, self.channels = found
                elif found != (self.rate, self.channels):
                    raise AudioError(
                        "not decodable",
                        f"{self.channels} channels at {self.rate:,} Hz become {found[1]} at {found[0]:,} Hz: cut it there",
                    )
                array = frame.to_ndarray()  # [channels, n] or [1, n * channels]
                yield _floats(array.T if frame.format.is_planar else array.reshape(-1, self.channels))
        except AudioError:
            raise
        except (self.errors, ValueError) as error:
            raise self._not_decodable(error) from None

    def _not_decodable(self, error: Exception) -> AudioError:
        words = " ".join(str(getattr(error, "strerror", None) or error).split())
        return AudioError("not decodable", f"FFmpeg: {words:.{DETAIL_CHARACTERS}}")

    def read(self, n: int) -> Samples:
        """Return the next n samples, float32 [n, channels], and fewer at the end. Raise AudioError for damaged ones."""
        size = sum(map(len, self.kept))
        while size < n and (frame := next(self.frames, None)) is not None:
            self.kept.append(frame)
            size += len(frame)
        joined = np.concatenate(self.kept)
        self.kept = [joined[n:]]
        return joined[:n]

    def keeps_promise(self) -> bool:
        """Return False: containers say how long they play, not how many samples they have."""
        return False

    def seek(self, first: int) -> bool:
        """Return False: these formats are decoded from their start."""
        return False

    def close(self) -> None:
        """Close the file."""
        if self.container is not None:
            self.container.close()
        self.opened.close()


def _floats(samples: Any) -> Samples:
    """Return samples of any type of FFmpeg's as float32, full scale 1."""
    kind = samples.dtype.str[1:]
    if kind[0] == "f":
        with np.errstate(over="ignore"):  # infinity is found later
            return np.asarray(samples, np.float32)
    scale = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return np.asarray((samples.astype(np.float32) - _ZERO[kind]) / scale, np.float32)
