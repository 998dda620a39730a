"""The heads by name. Each is imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from .head import Head

# The module of each head, and its name there.
HEADS: dict[str, str] = {
    "text": f"{__package__}.text.head:TEXT",
    "image": f"{__package__}.image.head:IMAGE",
    "audio": f"{__package__}.audio.head:AUDIO",
}


def find_head(name: str) -> Head:
    """Return the head of that name; raise ValueError, which names the known ones, if it does not exist."""
    if name not in HEADS:
        raise ValueError(f"{name!r} is not a head of AudioCLIP: known are {', '.join(HEADS)}")
    module, _, attribute = HEADS[name].partition(":")
    return cast(Head, getattr(import_module(module), attribute))
