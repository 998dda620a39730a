"""What an AudioEncoder is loaded from, and the frames of its spectrogram. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..head import EncoderSettings
from ..media import check_variant
from ..messages import WrongSettingError

RATE = 44_100  # samples per second that the head reads
FRAME, FRAME_HOP = 1654, 561  # samples of a frame of the spectrogram, and from one frame to the next
MAX_SECONDS = 300  # of a track that is embedded as a whole
MIN_WINDOW = 0.001  # seconds
DEFAULT_WINDOW = 10.0
WHOLE = "whole"  # a recording in one row, whatever its length


@dataclass(frozen=True)
class AudioSettings(EncoderSettings):
    """What an AudioEncoder is loaded from.

    Attributes:
        variant: "audioclip": stored batch statistics, samples times 32,768, channels averaged, as AudioCLIP was evaluated;
            or "jina": the vectors of Jina's executor, with statistics of each track and one or two channels kept apart.
        window: Seconds of a recording in one row of the pipeline; None embeds each recording as a whole.
        hop: Seconds from one window to the next; None is the window.
    """

    variant: str = "audioclip"
    window: float | None = None
    hop: float | None = None

    def check(self) -> None:
        """Raise ValueError for a value that the encoder does not know; the message names the known ones."""
        super().check()
        check_variant(self.variant)
        check_window(self.window, self.hop)
        if self.variant == "jina" and self.window is not None:
            raise WrongSettingError(
                "window", self.window, "the variant jina embeds whole recordings; leave the window out"
            )

    def fingerprint_parts(self) -> dict[str, str]:
        """Return what these settings decide of a vector, by name."""
        hop = self.window if self.hop is None else self.hop
        return {
            "variant": self.variant,
            "window": _in_words(self.window),
            "hop": _in_words(hop),
            **super().fingerprint_parts(),
        }


def frame_count(samples: int) -> int:
    """Return how many frames a track of that many samples has."""
    return 1 + max(0, -(-(samples - FRAME) // FRAME_HOP))


def _in_words(seconds: float | None) -> str:
    return WHOLE if seconds is None else str(float(seconds)).removesuffix(".0")


def check_window(window: float | None, hop: float | None) -> None:
    """Raise ValueError for a window or hop, in seconds, that recordings cannot be cut by."""
    if window is None:
        if hop is not None:
            raise WrongSettingError("hop", hop, "whole recordings have no hop; give a window as well")
        return
    if not MIN_WINDOW <= window <= MAX_SECONDS:
        raise WrongSettingError("window", window, f"choose {MIN_WINDOW} to {MAX_SECONDS} seconds")
    if hop is not None and not MIN_WINDOW <= hop <= window:
        raise WrongSettingError("hop", hop, f"choose {MIN_WINDOW} to {window:g} seconds, the window")
