"""The audio head: what the pipeline must know of it. Imports no torch until an encoder is needed."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..head import Column, Flag, Measure, ModelInfo, Work
from ..media import MEDIA_FIELD, UNREAD, VARIANT, MediaHead, parse_media
from .settings import DEFAULT_WINDOW, FRAME_HOP, MAX_SECONDS, MIN_WINDOW, RATE, WHOLE, AudioSettings, check_window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..checkpoint import Checkpoint
    from .encoder import AudioEncoder

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
    VARIANT,
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


class AudioHead(MediaHead):
    """AudioCLIP's audio head, as the protocol Head describes it."""

    name = "audio"
    item = "sound"
    items = "sounds"
    reading_fault = UNREAD.format("AudioEncoder")
    unit = size_unit = "frames"
    content = Column("audio", "binary")
    model_columns = (
        Column("n_frames", "int32"),
        Column("duration", "float64"),
        Column("sample_rate", "int32"),
        Column("channels", "int32"),
    )
    size_column = "n_frames"
    max_size = 1024
    reasons = ("empty file", "missing file", "not decodable", "too short")
    provenance = ("variant", "window", "hop")
    flags = FLAGS

    def settings(self, options: Mapping[str, Any]) -> AudioSettings:
        """Return the settings of the encoder that options of `embed` ask for. Raise ValueError for a wrong window."""
        window, hop, variant = options["window"], options["hop"], options["variant"]
        for name, value, fault in (("window", window, _window_fault), ("hop", hop, _hop_fault)):
            if value is not None and fault(value):
                raise ValueError(f"{name}={value!r} {fault(value)}")
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

        from .recordings import promised_frames
        from .sndfile import AudioError

        def measure(sounds: Sequence[bytes]) -> Measure:
            frames = dict[bytes, int]()  # 0: rejected
            for content in set(sounds):
                try:
                    frames[content] = promised_frames(content)
                except AudioError:
                    frames[content] = 0
            rejected = np.array([not frames[content] for content in sounds], np.bool_)
            return Measure(sum(frames.values()), rejected, np.zeros(len(sounds), np.bool_))

        return measure

    def describe_work(self, work: Work) -> str:
        """Return the work of a run as a phrase."""
        seconds = work.units * FRAME_HOP / RATE
        return (
            f"{work.items:,} sounds, {work.units:,} frames ({seconds:,.0f} s)"
            + (f", {work.micro_batches:,} micro-batches" if work.micro_batches else "")
            + (f", {seconds / work.seconds:,.0f} x real time" if work.seconds else "")
        )

    def column_check(self, parts: Mapping[str, str]) -> LengthCheck:
        """Return a new check of lengths, rates and channels."""
        return LengthCheck()


class LengthCheck:
    """The check of the columns `n_frames`, `duration`, `sample_rate` and `channels`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> Iterable[tuple[NDArray[np.bool_], str]]:
        """Check a batch; return the faulty rows, with what they have."""
        self.seconds += float(columns["duration"].sum())
        return [
            (columns["n_frames"] < 1, "has no frame"),
            (~(columns["duration"] > 0), "has a duration of 0 s or less"),
            (columns["sample_rate"] < 1, "has no sample rate"),
            (columns["channels"] < 1, "has no channel"),
        ]

    def finish(self) -> tuple[list[str], str]:
        """Return faults of all rows together, and what was checked."""
        return [], f"{self.seconds:,.1f} s in all"


AUDIO = AudioHead()
