"""Output for a terminal: ids, texts and names are not trusted, and a terminal obeys the control characters in them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from wcwidth import wcwidth

from ..model.messages import printable as one_line
from ..model.messages import printable_character
from .errors import message_of

# Characters without width can be repeated without limit: a line has at most this many characters per cell.
_CHARACTERS_PER_CELL = 4


def printable(text: str, width: int | None = None) -> str:
    """Return `text` as one harmless line, as errors have it, cut to `width` terminal cells with an ellipsis."""
    if width is None:
        return one_line(text)
    pieces: list[str] = []
    cells = 0
    for count, character in enumerate(text):
        piece = printable_character(character)
        size = len(piece) if piece is not character else max(0, wcwidth(character))
        if cells + size > width or count >= _CHARACTERS_PER_CELL * width:
            return _cut(pieces, width)
        pieces.append(piece)
        cells += size
    return "".join(pieces)


def count_cells(line: str) -> int:
    """Return the number of terminal cells that a printable string takes."""
    return sum(max(0, wcwidth(character)) for character in line)


def _cut(pieces: list[str], width: int) -> str:
    """Return the pieces as one string, with the last ones replaced by an ellipsis so that it fits."""
    while pieces and count_cells("".join(pieces)) >= width:
        pieces.pop()
    return "".join(pieces) + "…" * min(width, 1)


def printable_lines(text: str) -> str:
    """Return `text` with each of its lines made printable."""
    return "\n".join(map(printable, text.split("\n")))


def print_note(text: str) -> None:
    """Print one line to stderr; a stderr that cannot be written is ignored."""
    _print(f"audioclip: {printable(text)}", sys.stderr)


def print_error(error: object, *hints: str) -> None:
    """Print an error to stderr, and a line for each hint; a stderr that cannot be written is ignored.

    Of errors only a RuntimeError may have several lines: a runner's may contain a traceback.
    """
    text = message_of(error)
    message = printable_lines(text) if isinstance(error, RuntimeError) else printable(text)
    _print("\n".join([f"audioclip: error: {message}", *hints]), sys.stderr)


def print_line(text: str) -> None:
    """Print one line to stdout. Raises OSError if that is impossible; for a closed pipe, BrokenPipeError."""
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output cannot be written: {error.strerror}") from error


def print_result(text: str) -> None:
    """Print a line on what a command has done to stdout; it is done, so a stdout that cannot be written is ignored."""
    _print(printable(text), sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    with suppress(OSError, ValueError):  # closed, full, or a pipe without a reader
        print(text, file=stream, flush=True)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean WORD?" with the nearest of the `known` words, or an empty string if none is near."""
    near = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
