"""Records of csv and tsv."""

from __future__ import annotations

import zlib
from pathlib import Path

from tests.support.shards import read_rows, reasons, texts


def test_malformed_records_of_csv(tmp_path: Path) -> None:
    """An open quote costs its line, a wrong number of fields costs its record, and reading continues after it."""
    (tmp_path / "a.csv").write_bytes(
        b'id,text\n1,"two\nlines, ""quoted"""\n2,a,b\n3\n4,"open\n5,five\n6,"a"b\n7,"seven\n7"\n8,\xff\n9,"open\n10,ten\n'
    )
    rows, rejected = read_rows(tmp_path / "a.csv", id="id")
    assert [(row["row"], row["id"]) for row in rows] == [(0, "1"), (4, "5"), (6, "7"), (9, "10")]
    assert texts(rows) == ['two\nlines, "quoted"', "five", "seven\n7", "ten"]
    assert reasons(rejected) == [(n, "malformed record") for n in "1235"] + [
        ("7", "not UTF-8"),
        ("8", "malformed record"),
    ]
    assert rejected[2]["text"] == '4,"open'


def test_csv_quotes_left_open_again_and_again_end_in_damage(tmp_path: Path) -> None:
    """A file in which each line opens a quote to its end does not take quadratic time."""
    (tmp_path / "a.csv").write_bytes(b"text,more\n" + b'b","\n' * 50_001)
    rows, rejected = read_rows(tmp_path / "a.csv")
    assert rejected[-1]["reason"] == "damaged shard"
    assert [row["row"] for row in rejected] == [str(n) for n in range(len(rejected))]
    assert rows == []


def test_a_csv_header_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    """No record becomes the header instead."""
    (tmp_path / "a.csv").write_bytes(b'id,"text\n1,a\n2,b\n')
    rows, rejected = read_rows(tmp_path / "a.csv")
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])


def test_an_open_quote_in_a_shard_cut_short_costs_no_other_row(tmp_path: Path) -> None:
    """The lines after an open quote are read before the damage is reported."""
    content = b'text\n"open\n' + b"".join(b"line %d\n" % n for n in range(1000)) + b"cut"
    packer = zlib.compressobj(wbits=31)
    (tmp_path / "a.csv.gz").write_bytes(packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH))
    rows, rejected = read_rows(tmp_path / "a.csv.gz")
    assert texts(rows) == [f"line {n}" for n in range(1000)]
    assert reasons(rejected) == [("0", "malformed record"), ("1001", "damaged shard")]
