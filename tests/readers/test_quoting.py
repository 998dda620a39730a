"""Quotes and escapes of csv and tsv: what they are by default, by flag, and what is noted."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.corpus import embed, read
from tests.support.shards import ids, read_rows, reasons, texts

QUOTES = [
    "a dog barks", '"Big Ben strikes twelve', "rain on a tin roof", "a kettle whistles", 'church bell"', "waves on sand",
    '5" vinyl crackle', '"quoted whole"', "end",
]  # fmt: skip
TSV = "id\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(QUOTES, 1))
SPARK = r"""id,text
1,plain
2,"he said \"hi\" loudly"
3,"a, b"
4,"ends with quote\""
5,"x \", y"
6,"tail"
"""


def test_quotes_of_tsv_are_text(tmp_path: Path) -> None:
    """Each line is a record, as MS MARCO and pandas without quoting write it; fields that look quoted are noted."""
    (tmp_path / "quotes.tsv").write_text(TSV)
    manifest, _ = embed(tmp_path / "quotes.tsv", tmp_path / "out", id_field="id")
    assert read(tmp_path / "out")["text"].to_pylist() == QUOTES
    assert manifest["notes"] == [
        "1 field looks quoted in 1 shard, and the quotes are read as text: quotes.tsv, line 9; for files that Excel or "
        "pandas wrote, give --quoting minimal"
    ]


def test_quotes_of_tsv_that_excel_wrote(tmp_path: Path) -> None:
    """With --quoting minimal they are read as in csv."""
    values = ["a\tb", 'say "hi"', "two\nlines", "plain", '"', "crlf\r\nend"]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t").writerows([("id", "text"), *enumerate(values)])
    (tmp_path / "a.tsv").write_bytes(out.getvalue().encode())
    assert texts(read_rows(tmp_path / "a.tsv", quoting="minimal", id="id")[0]) == values
    rows, rejected = read_rows(tmp_path / "a.tsv", id="id")
    assert len(rows) + len(rejected) == 8  # lines
    details = [str(row["detail"]) for row in rejected]
    assert (
        "3 fields, the header has 2: if a quoted field contains a separator or a line end, give --quoting minimal"
        in details
    )


@pytest.mark.parametrize(
    "line",
    ['1,"a', '1,a"', '1,"a"', '1,"a ""b"""', '1,a "b" c', '1,""', '1,"', '"1",a', "1,'a'", '1,a\\"b'],
)
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_every_line_is_a_record_without_quoting(tmp_path: Path, form: str, line: str) -> None:
    """Whatever quotes it has."""
    delimiter = "," if form == "csv" else "\t"
    (tmp_path / f"a.{form}").write_text(f"id,text\n0,x\n{line}\n2,y\n".replace(",", delimiter))
    rows, rejected = read_rows(tmp_path / f"a.{form}", quoting="none", id="id")
    expected = line.split(",")
    assert rejected == []
    assert list(zip(ids(rows), texts(rows), strict=True)) == [("0", "x"), (expected[0], expected[1]), ("2", "y")]


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_records_that_a_stray_quote_swallowed_are_noted(tmp_path: Path, form: str) -> None:
    """With their lines; a text of several lines that could be no records is not."""
    content = 'id,text\n0,"two\nlines"\n1,"Big Ben\n2,rain\n3,bell"\n4,x\n5,"Big\n6,Ben"\n'
    (tmp_path / f"a.{form}").write_text(content.replace(",", "," if form == "csv" else "\t"))
    manifest, _ = embed(tmp_path / f"a.{form}", tmp_path / "out", id_field="id", quoting="minimal")
    assert manifest["counts"]["read"] == 4
    assert manifest["notes"] == [
        f"2 quoted fields span lines that each have as many separators as the header, as if a stray quote had swallowed "
        f"records: a.{form}, lines 4 to 6; a.{form}, lines 8 to 9; if quotes are text there, give --quoting none"
    ]


def test_backslashes_that_escape_quotes(tmp_path: Path) -> None:
    """With --escape they are read as Spark and MySQL write them; without it the detail names the flag."""
    (tmp_path / "spark.csv").write_text(SPARK)
    rows, rejected = read_rows(tmp_path / "spark.csv", id="id", escape="\\")
    assert rejected == []
    assert texts(rows) == ["plain", 'he said "hi" loudly', "a, b", 'ends with quote"', 'x ", y', "tail"]
    rows, rejected = read_rows(tmp_path / "spark.csv", id="id")
    assert (ids(rows), reasons(rejected)) == (["1", "3", "6"], [(n, "malformed record") for n in "134"])
    assert all("backslash" in str(row["detail"]) and r"give --escape '\'" in str(row["detail"]) for row in rejected)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (r'"a\\"', "a\\"),
        (r'"a\\\"b"', 'a\\"b'),
        (r'"C:\temp"', r"C:\temp"),
        (r"C:\temp", r"C:\temp"),
        ("C:\\", "C:\\"),
        ('"a ""b"""', 'a "b"'),
        (r"a\,b", "a,b"),
        ('"a\\\nb"', "a\nb"),
        ('"a\nb\r\nc"', "a\nb\r\nc"),
        (r'"\"\"\""', '"""'),
        (r"5\" vinyl", '5" vinyl'),
        ('5" vinyl', '5" vinyl'),
        ('"\\n"', "\\n"),
        ('"é\\"ü"', 'é"ü'),
    ],
)
def test_what_an_escape_makes_text(tmp_path: Path, field: str, text: str) -> None:
    """A quote, a separator, a line end in quotes and itself; before other characters it is text."""
    (tmp_path / "a.csv").write_bytes(f"id,text\n0,x\n1,{field}\n2,y\n".encode())
    rows, rejected = read_rows(tmp_path / "a.csv", id="id", escape="\\")
    assert (ids(rows), texts(rows), rejected) == (["0", "1", "2"], ["x", text, "y"], [])


def test_escapes_without_quotes(tmp_path: Path) -> None:
    r"""As MySQL writes tabs and line feeds of tab-separated values; \N stands for null."""
    (tmp_path / "a.tsv").write_bytes(b'id\ttext\n1\ta\\\tb\n2\ttwo\\\nlines\n3\t\\N\n4\t"q\n5\tback\\\\slash\n')
    rows, rejected = read_rows(tmp_path / "a.tsv", id="id", escape="\\")
    assert (texts(rows), reasons(rejected)) == (["a\tb", "two\nlines", '"q', "back\\slash"], [("2", "empty text")])


def test_a_malformed_record_with_escapes_costs_only_itself(tmp_path: Path) -> None:
    """Reading continues with the next line."""
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,"a"b\n2,"\\"ok"\n3,"open\\"\n4,x\n5,\xff\\"\n')
    rows, rejected = read_rows(tmp_path / "a.csv", id="id", escape="\\")
    assert (ids(rows), texts(rows)) == (["2", "4"], ['"ok', "x"])
    assert reasons(rejected) == [("0", "malformed record"), ("2", "malformed record"), ("4", "not UTF-8")]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.jsonl", {"quoting": "none"}, "--quoting none is for csv and tsv, and no shard is either: leave it out"),
        ("a.txt", {"quoting": "minimal"}, "--quoting minimal is for csv and tsv"),
        ("a.txt", {"escape": "\\"}, r"--escape \\ is for csv and tsv"),
        ("a.csv", {"escape": ","}, "--escape ',' is also what separates fields"),
        ("a.csv", {"escape": ";", "delimiter": ";"}, "--escape ';' is also what separates fields"),
        ("a.tsv", {"escape": "\t"}, "is also what separates fields"),
    ],
)
def test_flags_that_have_no_effect_are_refused(
    tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    """So are those that contradict each other."""
    (tmp_path / name).write_text("id,text\n")
    with pytest.raises(InputError, match=message):
        find_shards([f"{tmp_path}/{name}"], **options)  # type: ignore[arg-type]


def test_a_shard_is_read_again_if_its_quoting_changes(tmp_path: Path) -> None:
    """The listing has what was read as quoted, so that a night with other flags makes other rows."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tsv").write_text('id\ttext\n1\t"a"\n')
    embed(f"{tmp_path}/in/*", tmp_path / "out", id_field="id")
    for quoting, text in (("minimal", "a"), ("none", '"a"')):
        embed(f"{tmp_path}/in/*", tmp_path / "out", id_field="id", quoting=quoting)
        assert read(tmp_path / "out")["text"].to_pylist() == [text]
