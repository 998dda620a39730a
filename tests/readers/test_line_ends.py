r"""Line ends: "\n" and "\r\n", in some files "\r"; nothing else ends a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.corpus import embed
from tests.support.shards import COMPRESS, read_rows, texts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\r\nb\nc", ["a", "b", "c"]),
        ("a\rb\rc", ["a", "b", "c"]),
        ("a\rb\rc\r", ["a", "b", "c"]),
        ("\ufeffa\rb\r", ["a", "b"]),
        ("a\rb\nc\n", ["a\rb", "c"]),
        ("a\r\r\nb\n", ["a\r", "b"]),
        ("a\u2028b\nc\u2029d\n", ["a\u2028b", "c\u2029d"]),
        ("a\x0bb\x0cc\x1cd\x85e\n", ["a\x0bb\x0cc\x1cd\x85e"]),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_ends_a_line(tmp_path: Path, content: str, expected: list[str], suffix: str) -> None:
    """In txt, and in csv for the same lines; csv takes several carriage returns before a line feed as one end."""
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](content.encode()))
    assert texts(read_rows(tmp_path / f"a.txt{suffix}")[0]) == expected
    end = "\r" if "\n" not in content else "\n"
    (tmp_path / f"a.csv{suffix}").write_bytes(
        COMPRESS[suffix](f"text{end}{content.removeprefix(chr(0xFEFF))}".encode())
    )
    assert texts(read_rows(tmp_path / f"a.csv{suffix}")[0]) == [text.rstrip("\r") for text in expected]


def test_a_file_of_carriage_returns_of_several_blocks(tmp_path: Path) -> None:
    """The first block decides; a pair of both at the end of a block is one line end."""
    lines = [f"line {n}" for n in range(200_000)]
    (tmp_path / "a.txt").write_text("\r".join(lines), newline="")
    assert texts(read_rows(tmp_path / "a.txt")[0]) == lines
    (tmp_path / "b.txt").write_text("a" * ((1 << 20) - 1) + "\r\nb\r\n", newline="")
    assert [len(str(text)) for text in texts(read_rows(tmp_path / "b.txt", limit=1 << 21)[0])] == [(1 << 20) - 1, 1]
    (tmp_path / "c.txt").write_text("\r".join(lines) + "\nd\r\ne", newline="")
    assert texts(read_rows(tmp_path / "c.txt")[0])[-3:] == ["line 199999", "d", "e"]


def test_carriage_returns_that_are_text_are_noted(tmp_path: Path) -> None:
    """With the first line of each shard; those that end lines are not."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(b"one\r\ntwo\rtwo\nthree\rthree\r\nfour\r")
    (tmp_path / "in/b.csv").write_bytes(b"text,n\nx\ry,1\nz,2\r\r\n")
    (tmp_path / "in/c.txt").write_bytes(b"a\rb\r")
    (tmp_path / "in/d.txt").write_bytes(b"a\r\nb\r\n")
    assert embed(f"{tmp_path}/in/*", tmp_path / "out")[0]["notes"] == [
        "3 lines contain a carriage return (CR) that no line feed (LF) follows, which is text and ends no line: a.txt, line "
        "2; b.csv, line 2"
    ]
