"""The language check: which words it reports, with which advice, and what it leaves alone."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

Check = Callable[[Path], list[str]]

CHECKER = runpy.run_path(str(ROOT / "scripts" / "check_words.py"))


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Function that returns the checker's lines for a file, without the file's name."""

    def lines_for(path: Path) -> list[str]:
        status = CHECKER["main"]([str(path)])
        lines = capsys.readouterr().out.splitlines()
        assert status == bool(lines)
        return [line.removeprefix(f"{path.name}:") for line in lines]

    return lines_for


def test_replaced_words_are_reported_with_advice(check: Check, tmp_path: Path) -> None:
    """Comments, docstrings, other strings and names are read, across line breaks; code is not."""
    (tmp_path / "a.py").write_text(
        '"""A line that stands\n'
        'twice."""\n'
        "\n"
        "# Raises ValueError for a row without\n"
        "# a text, SnapshotError\n"
        "# where there is no file.\n"
        "card = 1\n"
        'print("nobody", "the store", {"room": 1}["room"])\n'
        "list(map(lambda x: x.where, []))\n"
    )
    assert check(tmp_path / "a.py") == [
        "1: stands twice -> occurs, appears, is stored in, contains",
        "4: Raises ValueError for a row without a text, SnapshotError where -> if",
        "5: SnapshotError where -> if, when",
        "6: where there is -> if, when",
        "7: card -> gpu",
        "8: nobody -> no one, nothing, users",
        "8: room -> package, module; space (on a disk, in memory)",
        "8: the store -> object store",
    ]


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("The job fails where it does not hold.", "fails where"),
        ("None where the run published.", "None where"),
        ("A number is no text.", "is no"),
        ("1,000 rows a second.", "rows a second"),
        ("It needs a card of 16 GB.", "card"),
        ("The bucket is one of an empty store.", "empty store"),
        ("Vectors are held against the manifest.", "held against"),
        ("Rows are written, whoever reads them.", "whoever"),
        ("The page is in the making.", "in the making"),
        ("The run may still be going on.", "going on"),
    ],
)
def test_a_replaced_word_is_found_in_prose(check: Check, tmp_path: Path, sentence: str, word: str) -> None:
    """One sentence for each kind of word."""
    (tmp_path / "a.md").write_text(f"# Title\n\n{sentence}\n")
    (line, *_) = check(tmp_path / "a.md")
    assert line.startswith(f"3: {word} -> ")


@pytest.mark.parametrize(
    "sentence",
    [
        "The directory where it is written, and the file where they begin.",
        "SELECT id FROM captions WHERE id = 'a' ORDER BY id",
        "Stores vectors in an object store, which stores them twice; the model card names the license.",
        "There is no such file, it is no longer valid, and None is returned; x is None.",
        "It takes a second row, and half an hour. Two rows, a second apart.",
        "A bucket holds the rows against which nothing speaks.",
        "Discard the scorecards of the broom.",
    ],
)
def test_plain_english_is_left_alone(check: Check, tmp_path: Path, sentence: str) -> None:
    """A word is reported only in the meaning that has a better one."""
    (tmp_path / "a.md").write_text(f"{sentence}\n")
    assert check(tmp_path / "a.md") == []


def test_a_bad_line_of_the_list_is_an_error(tmp_path: Path) -> None:
    """The message gives the line's number."""
    (tmp_path / "words.txt").write_text("# words\n\\bcards?\\b\n")
    with pytest.raises(ValueError, match=r"words.txt:2: expected `regex<TAB>advice\[<TAB>globs\]`, found"):
        CHECKER["read_words"](tmp_path / "words.txt")
