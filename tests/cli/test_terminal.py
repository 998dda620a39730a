"""Output for a terminal is one harmless line, whatever the data contains."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioclip_beam.pipeline.terminal import count_cells, printable

ANY = st.text(st.characters(), max_size=80)  # lone surrogates and control characters among them


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dog barking", "dog barking"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J", r"\x9b2J"),
        ("a\r\nb\tc\x00\x7f\x07", r"a\r\nb\tc\x00\x7f\x07"),
        ("abc\u202ecod.exe", r"abc\u202ecod.exe"),
        ("\u2066x\u2069\ufeff\u2028", r"\u2066x\u2069\ufeff\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("猫が　鳴く", "猫が　鳴く"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_printable_text(text: str, shown: str) -> None:
    """Printable text stays as it is; what acts on a terminal or reverses the line is escaped."""
    assert printable(text) == shown


@given(ANY)
def test_no_control_character_is_left(text: str) -> None:
    """No control, format, surrogate, private or unassigned character is left, except the two joiners."""
    shown = printable(text)
    assert not [c for c in shown if unicodedata.category(c)[0] == "C" and c not in "\u200c\u200d"]
    assert not [c for c in shown if unicodedata.category(c) in ("Zl", "Zp")]
    assert bool(shown.encode()) == bool(text)
    assert printable(shown) == shown


@given(ANY, st.integers(0, 40))
def test_width_in_cells(text: str, width: int) -> None:
    """No line is wider than the given cells; only a longer one is cut, and ends in an ellipsis."""
    shown, whole = printable(text, width), printable(text)
    assert count_cells(shown) <= width
    if shown != whole and width:
        assert shown.endswith("…")
        assert whole.startswith(shown[:-1])
    if whole.isascii() and len(whole) <= width:
        assert shown == whole


def test_marks_without_width_are_limited() -> None:
    """A megabyte of combining marks is cut to a line of eight cells."""
    assert len(printable("e" + "\u0301" * 1_000_000, 8)) <= 33
