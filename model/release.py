"""Names of released files: the words "full" and "partial" and the checkpoints that they stand for, and the vocabulary."""

from __future__ import annotations

import os
from pathlib import Path

from .paths import given_path

VOCABULARY = Path(".cache/bpe_simple_vocab_16e6.txt.gz")
UNTRAINED = "untrained"  # the word for random weights, for testing only
HEAD_MEGABYTES = {
    "text": 254,
    "image": 153,
    "audio": 129,
}  # the heads of a released file, and what each takes of its 537
RELEASED = {"full": "AudioCLIP-Full-Training.pt", "partial": "AudioCLIP-Partial-Training.pt"}


def resolve_checkpoint(word: str | os.PathLike[str], cache: str | os.PathLike[str] = ".cache") -> str:
    """Return the path of "full" or "partial", the released files in `cache`; return any other word as it is."""
    word = os.fspath(word)
    return str(Path(cache, RELEASED[word])) if word in RELEASED else given_path(word)


def released_word(path: str | os.PathLike[str]) -> str | None:
    """Return "full" or "partial" if the name of a .pt file contains it, else None."""
    name = Path(path).name.lower()
    return next((word for word in RELEASED if word in name), None) if name.endswith(".pt") else None


def fetch_command(word: str, path: Path) -> str:
    """Return the command that fetches the released checkpoint for `path`, or the full one if `path` names neither."""
    word = word if word in RELEASED else released_word(path) or "full"
    elsewhere = path.name == RELEASED[word] and path.parent != Path(".cache")
    return f"audioclip fetch {word}" + (f" --dir {path.parent}" if elsewhere else "")
