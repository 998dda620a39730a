"""The audio head: what the pipeline must know of it. Imports no torch until an encoder is needed."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..head import BadRow, Column, EncoderSettings, Flag, Measure, ModelInfo, Work
from ..media import (
    FETCH_THREADS,
    MEDIA_FIELD,
    MEDIA_ROOT,
    VARIANT,
    Entry,
    MediaHead,
    Part,
    RowIdentity,
    media_fragment,
    parse_media,
    short_seconds,
)
from ..messages import WrongSettingError, duration, plural
from .settings import (
    DEFAULT_WINDOW,
    FRAME_HOP,
    MAX_SECONDS,
    MIN_WINDOW,
    RATE,
    WHOLE,
    AudioSettings,
    check_window,
    frame_count,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..checkpoint import Checkpoint
    from .encoder import AudioEncoder
    from .parts import Heard

_FRAGMENT = re.compile(r"#t=([0-9]+(?:\.[0-9]+)?),([0-9]+(?:\.[0-9]+)?)")  # seconds of a file

_SECONDS = f"{MIN_WINDOW} to {MAX_SECONDS} seconds"


def _window_fault(text: str) -> str:
    try:
        check_window(_seconds(text), None)
    except ValueError:
        return f"is neither {WHOLE} nor {_SECONDS}"
    return ""


def _hop_fault(text: str) -> str:
    return f"is not {_SECONDS}" if text == WHOLE or _window_fault(text) else ""


def _seconds(text: str) -> float | None:
    """Return a window or hop as a number. Raise ValueError if it is not one."""
    return None if text == WHOLE else float(text)


FLAGS = (
    MEDIA_FIELD,
    MEDIA_ROOT,
    Flag(
        "offset_field", "field of lists with the second at which an entry of a file begins (default: 0)", metavar="PATH"
    ),
    Flag(
        "duration_field",
        "field of lists with the seconds that an entry takes (default: up to the end of the file)",
        metavar="PATH",
    ),
    VARIANT,
    FETCH_THREADS,
    Flag(
        "window",
        f"seconds of a recording per row, or {WHOLE} (default: {DEFAULT_WINDOW:g}; with --variant jina: {WHOLE})",
        metavar="SECONDS",
        fault=_window_fault,
    ),
    Flag(
        "hop",
        "seconds from one window to the next (default: the window)",
        metavar="SECONDS",
        fault=_hop_fault,
    ),
)


TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    **dict.fromkeys((".ogg", ".oga", ".opus"), "audio/ogg"),
    **dict.fromkeys((".aif", ".aiff"), "audio/aiff"),
    ".au": "audio/basic",
    ".w64": "audio/x-w64",
    ".caf": "audio/x-caf",
    ".m4a": "audio/mp4",
    ".mp4": "video/mp4",
    ".aac": "audio/aac",
    ".wma": "audio/x-ms-wma",
    ".webm": "video/webm",
    ".mka": "audio/x-matroska",
}


class AudioHead(MediaHead):
    """AudioCLIP's audio head, as the protocol Head describes it."""

    name = "audio"
    item = "sound"
    items = "sounds"
    unit = "frames"
    types = TYPES
    max_held = 32 << 20
    known_columns = ("duration", "sample_rate", "channels")
    content_columns = (
        Column("start", "float64"),
        Column("end", "float64"),
        Column("duration", "float64"),
        Column("sample_rate", "int32"),
        Column("channels", "int32"),
    )
    model_columns = ()
    entry_fields = ("offset_field", "duration_field")
    batch_items = 1000
    gpu_memory = 4 << 30
    size_column = "duration"
    size_unit = "seconds of the file"
    preview = "player"
    max_size = 600
    reasons = ("empty file", "missing file", "duplicate key", "not decodable", "too short")
    provenance = ("variant", "window", "hop")
    flags = FLAGS

    def settings(self, options: Mapping[str, Any]) -> AudioSettings:
        """Return the settings of the encoder that options of `embed` ask for. Raise ValueError for a wrong window."""
        window, hop, variant = options["window"], options["hop"], options["variant"]
        for name, value, fault in (("window", window, _window_fault), ("hop", hop, _hop_fault)):
            if value is not None and fault(value):
                raise WrongSettingError(name, value, f"it {fault(value)}")
        if window is None:
            window = WHOLE if variant == "jina" else str(DEFAULT_WINDOW)
        return AudioSettings(
            options["checkpoint"],
            device=options["device"],
            dtype=options["dtype"],
            normalize=options["normalize"],
            variant=variant,
            window=_seconds(window),
            hop=None if hop is None else _seconds(hop),
        )

    def settings_of(self, parts: Mapping[str, str], options: Mapping[str, Any]) -> AudioSettings:
        """Return the settings of the encoder with these parts of a fingerprint, and files as options name them."""
        return AudioSettings(
            str(options.get("checkpoint", "full")),
            dtype=parts["dtype"],
            normalize=parts["normalize"] == "true",
            variant=parts["variant"],
            window=_seconds(parts["window"]),
            hop=_seconds(parts["hop"]),
        )

    def content_limit(self, options: Mapping[str, Any]) -> int:
        """Return a limit that no recording reaches: long ones are read by windows."""
        return sys.maxsize

    def fingerprint_faults(self, parts: Mapping[str, str]) -> list[str]:
        """Return what is wrong with the values of a fingerprint's parts."""
        faults = {name: _window_fault(parts[name]) for name in ("window", "hop")}
        return super().fingerprint_faults(parts) + [
            f"{name} is {parts[name]!r:.80}, and {fault}" for name, fault in faults.items() if fault
        ]

    def parse(self, value: object, field: str, limit: int) -> bytes:
        """Return a value as an encoded recording. Raise BadRow if it is not one."""
        return parse_media(value, field)

    def examine(self, opened: BinaryIO, size: int, settings: EncoderSettings) -> Heard:
        """Return what is known of a recording without decoding all of it. Raise BadRow if it cannot be decoded."""
        from .parts import listen
        from .sndfile import AudioError

        if not size:
            raise BadRow("empty file", "it has 0 bytes")
        try:
            return listen(opened)
        except AudioError as error:
            raise BadRow(error.reason, error.detail) from None

    def glance(self, opened: BinaryIO, size: int, settings: EncoderSettings) -> Heard:
        """Return what the header says of a recording. Raise BadRow if it is not one."""
        from .parts import glance
        from .sndfile import AudioError

        if not size:
            raise BadRow("empty file", "it has 0 bytes")
        try:
            return glance(opened, size)
        except AudioError as error:
            raise BadRow(error.reason, error.detail) from None

    def examined_of(self, row: Mapping[str, Any]) -> Heard:
        """Return what is known of the recording of a row."""
        from .parts import Heard

        return Heard(round(row["duration"] * row["sample_rate"]), row["sample_rate"], row["channels"])

    def parts_of(
        self, examined: Heard, digest: bytes, settings: EncoderSettings, entry: Entry | None = None
    ) -> list[Part]:
        """Return the windows of a recording or of an entry, or the whole if it is short. Raise BadRow for no sample."""
        from .parts import entry_key, entry_span, part_hash, spans
        from .sndfile import AudioError

        heard = examined
        try:
            span = None if entry is None else entry_span(heard, entry)
            found = list(spans(heard, cast(AudioSettings, settings), span))
        except AudioError as error:
            raise BadRow(error.reason, error.detail) from None
        key, rate, parts = entry_key(digest, span), heard.rate, list[Part]()
        for number, (first, stop) in enumerate(found):
            start, end = first / rate, stop / rate
            fragment = media_fragment(start, end) if len(found) > 1 else ""
            values = start, end, heard.samples / rate, rate, heard.channels
            units = frame_count(round((stop - first) * RATE / rate))
            parts.append(Part(part_hash(key, number), fragment, values, units))
        return parts

    def find_part(self, opened: BinaryIO, size: int, fragment: str, settings: EncoderSettings) -> Part:
        """Return the part that a media fragment names, of a row or any other; without one ("") the first row's.

        Raises BadRow: The file cannot be decoded, or has no such part.
        """
        from .parts import listen
        from .sndfile import AudioError

        if not fragment:
            return super().find_part(opened, size, fragment, settings)
        with suppress(BadRow):  # of a recording that is too long to be embedded whole
            return super().find_part(opened, size, fragment, settings)
        named = _FRAGMENT.fullmatch(fragment)
        if not named:
            raise BadRow("missing field", f"{fragment} is not #t=START,END in seconds")
        try:
            heard = listen(opened)
        except AudioError as error:
            raise BadRow(error.reason, error.detail) from None
        first, stop = (min(heard.samples, round(float(seconds) * heard.rate)) for seconds in named.groups())
        if first >= stop:
            raise BadRow(
                "too short", f"it has {short_seconds(heard.samples / heard.rate)} s, and nothing in {fragment}"
            )
        duration = heard.samples / heard.rate
        values = first / heard.rate, stop / heard.rate, duration, heard.rate, heard.channels
        return Part(b"", fragment, values, frame_count(round((stop - first) * RATE / heard.rate)))

    def decode(self, opened: BinaryIO, parts: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the samples of each part as a Track, or why it cannot be decoded."""
        from .parts import Span, decode_spans

        chosen = [Span(round(start * rate), round(end * rate)) for start, end, _, rate, _ in parts]
        begin = 0
        for at in range(1, len(chosen) + 1):  # entries of a list follow each other in any order
            before = chosen[at - 1]
            if at == len(chosen) or before.first > chosen[at].first:
                yield from decode_spans(opened, chosen[begin:at])
                begin = at

    def row_faults(
        self, rows: RowIdentity, columns: Mapping[str, NDArray[Any]], options: Mapping[str, Any]
    ) -> Iterator[tuple[NDArray[np.bool_], str]]:
        """Yield the rows with another hash than that of a part of their recording, and parts whose ids do not name them."""
        import numpy as np

        from .parts import entry_key, part_number

        start, end, duration = (columns[name] for name in ("start", "end", "duration"))
        keys = {digest: entry_key(digest, None) for digest in set(rows.digests)}
        of_entries = [
            not content.startswith(keys[digest]) for content, digest in zip(rows.hashes, rows.digests, strict=True)
        ]
        if all(options.get(name) is None for name in self.entry_fields):  # no row is of an entry of a list
            yield np.array(of_entries, np.bool_), "has another content hash than that of a part of its recording"
        numbers = np.array([part_number(content) for content in rows.hashes], np.int64)
        # An entry that is one row has the id of the entry, whatever part of the recording it is.
        named = (numbers > 0) | (((start > 0) | (end < duration)) & ~np.array(of_entries, np.bool_))
        wrong = np.zeros(len(numbers), np.bool_)
        for place in np.flatnonzero(named).tolist():
            wrong[place] = not rows.ids[place].endswith(media_fragment(start[place], end[place]))
        yield wrong, "has an id that does not end with its start and end"

    def extent(self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer]) -> dict[str, int]:
        """Return how many recordings rows have the beginning of, and the milliseconds of all rows."""
        milliseconds = ((columns["end"] - columns["start"]) * 1000).round()
        return {"files": int((parts == 0).sum()), "milliseconds": int(milliseconds.sum())}

    def planned_extent(
        self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer], units: NDArray[np.integer]
    ) -> dict[str, int]:
        """Return what `extent` does."""
        return self.extent(columns, parts)

    def describe_extent(self, extent: Mapping[str, int]) -> str:
        """Return the recordings, and how long they are."""
        return f"{plural(extent.get('files', 0), 'recording')}, {duration(extent.get('milliseconds', 0) / 1000)}"

    def decoded_bytes(self, values: tuple[Any, ...], size: int) -> int:
        """Return the bytes of a part's samples, decoded."""
        start, end, _, rate, channels = values
        return int((end - start) * rate * channels * 4)

    def canary(self) -> dict[str, bytes]:
        """Return 16 WAV files of 0.2 seconds, by arithmetic of whole numbers; with noise, so that no bin is empty."""
        import numpy as np

        n, sounds = RATE // 5, {}
        header = struct.pack(
            "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 2 * n, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", 2 * n
        )
        for number in range(1, 17):
            period, place = 7 * number**2 + 12, np.arange(n)
            wave = abs(place % period * 2 - period) * 16000 // period - 8000
            noise = (np.random.PCG64(number).random_raw(n) >> np.uint64(50)).astype(np.int64) - (1 << 13)
            samples = (wave + noise // (1 + number % 4)) * (n - place % (n // number)) // n
            sounds[f"sound {number}"] = header + samples.astype("<i2").tobytes()
        return sounds

    def describe(self, settings: AudioSettings, files: Checkpoint) -> ModelInfo:
        """Return what the encoder of these settings and files is. Raise ValueError if it cannot be built."""
        from .encoder import model_info

        return model_info(files, settings)

    def load(self, settings: AudioSettings, files: Checkpoint, device: str) -> AudioEncoder:
        """Return the encoder on a device."""
        from .encoder import AudioEncoder

        return AudioEncoder(files, replace(settings, device=device))

    def measurer(
        self, settings: AudioSettings, info: ModelInfo, copy_of: Callable[[int], str]
    ) -> Callable[[Sequence[bytes]], Measure]:
        """Return a function that reads headers: what they do not say right is found by decoding alone."""
        import numpy as np

        from .parts import listen
        from .sndfile import AudioError, FileOfBytes

        def measure(sounds: Sequence[bytes]) -> Measure:
            frames = dict[bytes, int]()  # 0: rejected
            for content in set(sounds):
                try:
                    heard = listen(FileOfBytes(content))
                except AudioError:
                    frames[content] = 0
                else:
                    fits = heard.samples <= MAX_SECONDS * heard.rate
                    frames[content] = frame_count(round(heard.samples * RATE / heard.rate)) if fits else 0
            rejected = np.array([not frames[content] for content in sounds], np.bool_)
            return Measure(sum(frames.values()), rejected, np.zeros(len(sounds), np.bool_))

        return measure

    def describe_work(self, work: Work) -> str:
        """Return the work of a run as a phrase."""
        seconds = work.units * FRAME_HOP / RATE
        return (
            f"{plural(work.items, 'sound')}, {plural(work.units, 'frame')} ({duration(seconds)})"
            + (f", {plural(work.micro_batches, 'micro-batch', 'micro-batches')}" if work.micro_batches else "")
            + (f", {seconds / work.seconds:,.0f} x real time" if work.seconds else "")
        )

    def column_check(self, parts: Mapping[str, str]) -> LengthCheck:
        """Return a new check of lengths, rates and channels."""
        return LengthCheck()


class LengthCheck:
    """The check of the columns `start`, `end`, `duration`, `sample_rate` and `channels`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> Iterable[tuple[NDArray[np.bool_], str]]:
        """Check a batch; return the faulty rows, with what they have."""
        start, end, duration = (columns[name] for name in ("start", "end", "duration"))
        self.seconds += float((end - start).sum())
        return [
            (
                ~((start >= 0) & (start < end) & (end <= duration)),
                "is not a part of its file, by start, end and duration",
            ),
            (columns["sample_rate"] < 1, "has no sample rate"),
            (columns["channels"] < 1, "has no channel"),
        ]

    def finish(self) -> tuple[list[str], str]:
        """Return faults of all rows together, and what was checked."""
        return [], f"{self.seconds:,.1f} s in all"


AUDIO = AudioHead()
