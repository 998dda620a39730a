"""Objects of jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.shards import ids, read_rows, reasons, texts, write_lines


def test_blank_lines_of_jsonl_and_csv_are_not_rows(tmp_path: Path) -> None:
    """They are layout, as for every other reader of these formats."""
    rows, rejected = read_rows(write_lines(tmp_path / "a.jsonl", {"text": "a"}, b"", b" \r", {"text": "b"}, b""))
    assert (ids(rows), rejected) == (["a.jsonl#0", "a.jsonl#1"], [])
    (tmp_path / "a.csv").write_bytes(b"\r\nid,text\r\n\r\n1,a\r\n\n2,b")
    rows, rejected = read_rows(tmp_path / "a.csv")
    assert (ids(rows), rejected) == (["a.csv#0", "a.csv#1"], [])


BAD_JSON = {
    b"{": "malformed record",
    b"[1]": "malformed record",
    b'"text"': "malformed record",
    b"null": "malformed record",
    b'{"text": NaN}': "wrong type",
    b'{"text": "a"} x': "malformed record",
    b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}": "malformed record",
    b'{"text": ' + b"[" * 1_000 + b"]" * 1_000 + b"}": "wrong type",
    b'{"text": "\\ud800"}': "not UTF-8",
    b'{"text": "\xff"}': "not UTF-8",
    b"\x00": "malformed record",
    b'{"text": 1}': "wrong type",
    b'{"text": {}}': "wrong type",
    b'{"text": "\\u2003 "}': "empty text",
    b'{"TEXT": "a"}': "missing field",
}


@pytest.mark.parametrize("line", BAD_JSON)
def test_a_bad_line_of_jsonl_costs_only_itself(tmp_path: Path, line: bytes) -> None:
    """Whatever a line contains, the lines around it are read."""
    rows, rejected = read_rows(write_lines(tmp_path / "a.jsonl", {"text": "a"}, line, {"text": "b"}))
    assert (texts(rows), reasons(rejected)) == (["a", "b"], [("1", BAD_JSON[line])])


def test_deep_nesting_costs_only_its_row(tmp_path: Path) -> None:
    """In a kept field, or in a record whose id is parsed twice, it is rejected and does not crash."""
    for depth in (200, 900, 1000, 1020):
        deep = b"[" * depth + b"]" * depth
        path = write_lines(tmp_path / "a.jsonl", b'{"k": 1.5, "deep": %s, "text": "a"}' % deep, {"k": 2, "text": "b"})
        rows, rejected = read_rows(path, id="k")
        assert len(rows) + len(rejected) == 2
        assert len(rows) + len(read_rows(path, keep=("deep",))[0]) >= 2
        assert texts(rows)[-1] == "b"


def test_of_equal_keys_in_json_the_last_counts(tmp_path: Path) -> None:
    """All common JSON readers do so."""
    assert texts(read_rows(write_lines(tmp_path / "a.jsonl", b'{"text": "a", "text": "b"}'))[0]) == ["b"]
