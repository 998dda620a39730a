"""The parts of recordings that are rows: which there are, without decoding, and their samples. Imports no torch."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import numpy as np

from ..head import ContentError
from ..media import Entry
from .recordings import BLOCK_SAMPLES, Recording, Track, open_recording
from .settings import MAX_SECONDS, RATE, AudioSettings
from .sndfile import AudioError, Samples

_KEY = struct.Struct("<qq")  # first sample and length of the entry, as a content hash covers them
_NUMBER = struct.Struct(">I")
SMALL_BLOCK = 256  # samples of all channels, per step of decoding, in a file that is damaged
SHORTEST_WHOLE = Fraction(11, 10)  # windows: up to so long a recording is one row


END_TOLERANCE = 0.1  # seconds by which an entry may end behind its recording: lists have rounded durations

LOWEST_BYTE_RATE = 60  # bytes per second: no format has fewer


class Span(NamedTuple):
    """Samples of a recording, in its own rate: from `first` to before `stop`."""

    first: int
    stop: int


class Heard(NamedTuple):
    """What is known of a recording without decoding all of it.

    Attributes:
        samples: Of each channel, that can be decoded.
        rate: Samples per second.
        channels: How many there are.
    """

    samples: int
    rate: int
    channels: int


def listen(opened: BinaryIO) -> Heard:
    """Return what is known of a recording. Raise AudioError if it cannot be decoded, or has no sample.

    What a header says of the length is checked, at the end of the file or by its size. A recording that has less is decoded
    to find out how much, as all formats of FFmpeg are.
    """
    recording = open_recording(opened)
    try:
        samples = recording.promised if recording.keeps_promise() else None
    finally:
        recording.close()
    if not samples:
        samples = _count(opened)
    heard = Heard(samples, recording.rate, recording.channels)
    _check_length(heard.samples, heard.rate)
    return heard


def glance(opened: BinaryIO, size: int) -> Heard:
    """Return what the header of a recording of `size` bytes says. Raise AudioError as `listen` does.

    A header that says nothing, or more than that many bytes could contain, is not believed.
    """
    recording = open_recording(opened)
    try:
        heard = Heard(recording.promised or 0, recording.rate, recording.channels)
    finally:
        recording.close()
    if not 0 < heard.samples * LOWEST_BYTE_RATE <= size * heard.rate:
        return listen(opened)
    _check_length(heard.samples, heard.rate)
    return heard


def _check_length(samples: int, rate: int, what: str = "it") -> None:
    """Raise AudioError if nothing remains of so many samples at 44.1 kHz."""
    if not (2 * samples * RATE + rate) // (2 * rate):  # as soxr rounds
        raise AudioError("too short", f"{what} has no sample")


def _count(opened: BinaryIO) -> int:
    """Return how many samples can be decoded, from the first one on."""
    samples, error = _count_by(opened, BLOCK_SAMPLES)
    if error is not None:  # damage costs the rest of its block
        samples, error = _count_by(opened, SMALL_BLOCK)
        if error is not None and not samples:
            raise error
    return samples


def _count_by(opened: BinaryIO, block: int) -> tuple[int, AudioError | None]:
    """Return how many samples can be decoded in blocks of that size, and the error that ends them."""
    recording, samples = open_recording(opened), 0
    size = max(1, block // recording.channels)
    try:
        while n := len(recording.read(size)):
            samples += n
    except AudioError as error:
        return samples, error
    finally:
        recording.close()
    return samples, None


def spans(heard: Heard, settings: AudioSettings, entry: Span | None = None) -> Iterator[Span]:
    """Yield the parts of a recording, or of an entry in it, that settings make rows of.

    A recording of up to 1.1 windows is one row. A longer one is cut at round(k * hop * rate); the last window is pulled back
    so that it ends with the recording. Raise AudioError if it has to be embedded whole and is too long for that.
    """
    begin, end = (0, heard.samples) if entry is None else entry
    rate, n = heard.rate, end - begin
    if settings.window is None:
        if n > MAX_SECONDS * rate:
            raise AudioError(
                "too long", f"it has more than {MAX_SECONDS // 60} minutes: embed windows of it (--window)"
            )
        yield Span(begin, end)
        return
    hop = settings.window if settings.hop is None else settings.hop
    length = max(1, round(Fraction(str(settings.window)) * rate))
    step, k, first = Fraction(str(hop)) * rate, 0, 0
    if n <= SHORTEST_WHOLE * length:
        yield Span(begin, end)
        return
    while n > first + length:
        yield Span(begin + first, begin + first + length)
        k += 1
        first = round(k * step)
    yield Span(end - length, end)


def entry_span(heard: Heard, entry: Entry) -> Span | None:
    """Return the samples of an entry of a list; None if these are all. Raise AudioError if the recording is too short."""
    (offset, duration), rate = entry, heard.rate
    seconds = heard.samples / rate
    if offset >= seconds or (duration is not None and offset + duration > seconds + END_TOLERANCE):
        what = (
            f"begins at {offset:g} s" if offset >= seconds or duration is None else f"ends at {offset + duration:g} s"
        )
        raise AudioError(
            "too short",
            f"the recording has {seconds:g} s, and the entry {what} (offset {offset:g}, duration "
            f"{'up to the end' if duration is None else f'{duration:g}'}): correct the list",
        )
    first = round(offset * rate)
    stop = heard.samples if duration is None else min(heard.samples, round((offset + duration) * rate))
    _check_length(max(0, stop - first), rate, "the entry")
    return Span(first, stop) if (first, stop) != (0, heard.samples) else None


def entry_key(digest: bytes, entry: Span | None) -> bytes:
    """Return the 12 bytes that the content hashes of all parts of an entry begin with."""
    first, length = (0, -1) if entry is None else (entry.first, entry.stop - entry.first)
    return hashlib.blake2b(digest + _KEY.pack(first, length), digest_size=12).digest()


def part_hash(key: bytes, number: int) -> bytes:
    """Return the content hash of a part by its number: parts of a recording are neighbours in the order of hashes."""
    return key + _NUMBER.pack(number)


def part_number(content_hash: bytes) -> int:
    """Return the number of a part by its content hash."""
    (number,) = _NUMBER.unpack(content_hash[-_NUMBER.size :])
    return int(number)


def decode_spans(opened: BinaryIO, chosen: Sequence[Span]) -> Iterator[Track | ContentError]:
    """Yield each part as a Track of [channels, n], or why it cannot be decoded; parts are in the order of their beginnings.

    If a format allows it, what is between parts is skipped; else the recording is decoded from its start, in bounded
    memory.
    """
    reader = _SpanReader(opened)
    try:
        for span in chosen:
            try:
                yield reader.read(span)
            except AudioError as error:
                yield error.content_error
    finally:
        reader.close()


class _SpanReader:
    """The samples of spans of a recording, with what may be needed again: spans overlap."""

    def __init__(self, opened: BinaryIO) -> None:
        self.opened, self.first, self.kept = opened, 0, np.empty((0, 0), np.float32)
        self.recording: Recording | None = None
        self.error: AudioError | None = None

    def read(self, span: Span) -> Track:
        """Return the samples of a span. Raise AudioError."""
        recording = self._move_to(span.first)
        size = max(1, BLOCK_SAMPLES // recording.channels)
        blocks, end = [self.kept], self.first + len(self.kept)
        try:
            while end < span.stop:
                blocks.append(self._block(recording, min(size, span.stop - end)))
                end += len(blocks[-1])
                if end < span.first:  # nothing of it is needed
                    self.first, blocks = end, [blocks[-1][:0]]
        finally:
            self.kept = np.concatenate(blocks)
        part = self.kept[span.first - self.first : span.stop - self.first]
        return Track(np.ascontiguousarray(part.T), recording.rate, span.first)

    def _block(self, recording: Recording, size: int) -> Samples:
        """Return the next samples. Raise AudioError at damage, and at the end."""
        if self.error is not None:
            raise self.error
        try:
            block = recording.read(size)
        except AudioError as error:
            self.error = error
            raise
        if not len(block):
            raise AudioError("not decodable", "it ends before this part, which its header promises")
        return block

    def _move_to(self, first: int) -> Recording:
        """Drop what is before a sample, or move there if nothing is kept and the format allows it; return the recording."""
        if self.recording is not None and first < self.first + len(self.kept):
            self.kept, self.first = self.kept[max(0, first - self.first) :], max(first, self.first)
            return self.recording
        error, self.error = self.error, None
        if self.recording is None or error is not None:  # behind damage libsndfile does not seek
            self.close()
            self.recording, self.first = open_recording(self.opened), 0
            self.kept = np.empty((0, self.recording.channels), np.float32)
        try:
            moved = self.recording.seek(first)
        except AudioError as fault:
            self.error = fault
            raise
        if moved:
            self.kept, self.first = self.kept[:0], first
        elif error is not None:  # decoding from the start would meet the same damage
            self.error = error
            raise error
        else:  # all that is kept is before the part
            self.kept, self.first = self.kept[:0], self.first + len(self.kept)
        return self.recording

    def close(self) -> None:
        """Close the recording, not the file."""
        if self.recording is not None:
            self.recording.close()
            self.recording = None
