"""Output for a terminal is one harmless line, whatever the data contains."""

from __future__ import annotations

import logging
import pickle
import traceback
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioclip_beam.model.head import BadRow
from audioclip_beam.model.messages import duration, plural
from audioclip_beam.model.paths import PathError
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.app import _Formatter
from audioclip_beam.pipeline.errors import SnapshotError, first_line
from audioclip_beam.pipeline.io.retries import StoreError
from audioclip_beam.pipeline.options import OptionsError
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.run.runner import error_message
from audioclip_beam.pipeline.terminal import count_cells, print_error, print_result, printable

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


@pytest.mark.parametrize("kind", [InputError, OptionsError, PathError, SnapshotError, StoreError])
def test_an_error_with_a_hostile_name_is_one_line_everywhere(kind: type[Exception]) -> None:
    """In str(), in tracebacks and in what a runner makes of them: no part of the message is lost behind a line end."""
    error = kind("a\nb\x1b[2Jc\u2028.wav cannot be read: leave it out")
    shown = r"a\nb\x1b[2Jc\u2028.wav cannot be read: leave it out"
    assert str(error) == first_line(error) == str(pickle.loads(pickle.dumps(error))) == shown
    assert traceback.format_exception_only(error)[-1].rstrip("\n").endswith(f"Error: {shown}")
    assert error_message(RuntimeError("Traceback:\n" + traceback.format_exception_only(error)[-1])) == shown
    assert str(kind("猫's file.wav: leave it out")) == "猫's file.wav: leave it out"


def test_details_of_rejected_rows_are_one_line() -> None:
    """They are printed by other programs; the content's excerpt stays as it is."""
    bad = BadRow("wrong type", "x\r\x1b[1m: no", excerpt="a\nb", id="a\nb")
    assert (bad.detail, str(bad), bad.excerpt, bad.id) == (r"x\r\x1b[1m: no", r"x\r\x1b[1m: no", "a\nb", "a\nb")


def test_what_is_printed_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of a runner alone keep their lines."""
    print_error(OSError(5, "a\nb"), "See this.")
    print_error(PermissionError(13, "Permission denied", "x\ny"))
    print_error(ValueError("a\nb"))
    print_error(RuntimeError("a\nb\r"))
    print_result("removed a\nb")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        r"audioclip: error: a\nb",
        "See this.",
        r"audioclip: error: x\ny: Permission denied",
        r"audioclip: error: a\nb",
        "audioclip: error: a",
        r"b\r",
    ]
    assert captured.out == "removed a\\nb\n"


def test_a_hostile_name_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors, errors and warnings."""
    assert main(["embed", "--input", "http://a\nb", "--output", "out"]) == 2
    assert main(["log", f"{tmp_path}/a\n\x1b[1mb"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert r"http://a\nb cannot be used" in lines[0]
    assert lines[1] == "See `audioclip embed --help`."
    assert rf"{tmp_path}/a\n\x1b[1mb has no current snapshot" in lines[2]
    formatter = _Formatter("audioclip: %(levelname)s: %(message)s")
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s is gone", ("a\nb",), None)
    assert formatter.format(record) == r"audioclip: WARNING: a\nb is gone"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (38.64, "38.6 s"),
        (100, "100 s"),
        (119.4, "119 s"),
        (150, "2.5 minutes"),
        (7100, "118.3 minutes"),
        (7200, "2.0 hours"),
        (36_000_000, "10,000.0 hours"),
    ],
)
def test_durations_have_a_unit_that_fits(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_counts_with_nouns() -> None:
    assert [plural(1, "row"), plural(0, "row"), plural(2000, "micro-batch", "micro-batches")] == [
        "1 row",
        "0 rows",
        "2,000 micro-batches",
    ]
