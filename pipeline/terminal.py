"""What data says, made fit for a terminal: ids and texts come from strangers, and a terminal obeys what it is sent."""

from __future__ import annotations

import sys
import unicodedata

from wcwidth import wcwidth

# A character of no width may follow another without end: a line of `width` cells takes no more characters than this each.
_CHARACTERS_A_CELL = 4


def printable(text: str, width: int | None = None) -> str:
    """`text` on one line that moves no cursor and turns no writing round, cut to `width` terminal cells with an ellipsis.

    Control characters (line ends, ANSI sequences), format characters (right-to-left overrides, byte order marks), lone
    surrogates and what Unicode has not assigned are spelled as Python spells them: "\\n", "\\x1b", "\\u202e". Spaces of
    every width stay, as do the two joiners that Persian, Hindi and many emoji are written with.
    """
    pieces: list[str] = []
    cells = 0
    for count, character in enumerate(text):
        piece = character if _harmless(character) else character.encode("unicode_escape").decode("ascii")
        size = len(piece) if piece is not character else max(0, wcwidth(character))
        if width is not None and (cells + size > width or count >= _CHARACTERS_A_CELL * width):
            return _cut(pieces, width)
        pieces.append(piece)
        cells += size
    return "".join(pieces)


def count_cells(shown: str) -> int:
    """How many cells of a terminal a printable string takes."""
    return sum(max(0, wcwidth(character)) for character in shown)


def _harmless(character: str) -> bool:
    return character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs"


def _cut(pieces: list[str], width: int) -> str:
    """The pieces without as many at their end as an ellipsis needs room for."""
    while pieces and count_cells("".join(pieces)) >= width:
        pieces.pop()
    return "".join(pieces) + "…" * min(width, 1)


def print_note(text: str) -> None:
    """One line to the person at the terminal."""
    print(f"audioclip-text: {printable(text)}", file=sys.stderr, flush=True)
