"""What an AudioEncoder is loaded from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..head import EncoderSettings

VARIANTS = ("audioclip", "jina")
RATE = 44_100  # samples per second that the head reads
MAX_SECONDS = 300  # of a track that is embedded as a whole
MIN_WINDOW = 0.001  # seconds
DEFAULT_WINDOW = 10.0


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
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}: choose one of {', '.join(VARIANTS)}")
        check_window(self.window, self.hop)
        if self.variant == "jina" and self.window is not None:
            raise ValueError(f"window={self.window!r}: variant='jina' embeds whole recordings; leave the window out")

    def fingerprint_parts(self) -> dict[str, str]:
        """Return what these settings decide of a vector, by name."""
        hop = self.window if self.hop is None else self.hop
        return {
            "variant": self.variant,
            "window": "whole" if self.window is None else f"{self.window:g}",
            "hop": "whole" if hop is None else f"{hop:g}",
            **super().fingerprint_parts(),
        }


def check_window(window: float | None, hop: float | None) -> None:
    """Raise ValueError for a window or hop, in seconds, that recordings cannot be cut by."""
    if window is None:
        if hop is not None:
            raise ValueError(f"hop={hop!r}: whole recordings have no hop; give a window as well")
        return
    if not MIN_WINDOW <= window <= MAX_SECONDS:
        raise ValueError(f"window={window!r}: choose {MIN_WINDOW} to {MAX_SECONDS} seconds")
    if hop is not None and not MIN_WINDOW <= hop <= window:
        raise ValueError(f"hop={hop!r}: choose {MIN_WINDOW} to {window:g} seconds, the window")
