"""Records of csv and tsv."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.commands import run_command
from tests.support.corpus import read
from tests.support.shards import infer_kept_schema, read_rows, read_shard, reasons, texts


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


def test_a_carriage_return_without_a_line_feed_in_csv(tmp_path: Path) -> None:
    """It is a character, in quotes and outside; if the file has no line feed, it ends lines."""
    (tmp_path / "a.csv").write_bytes(b'text,n\nx\ry,1\n"x\ry",2\n"x\r\ny",3\r\n')
    rows, rejected = read_rows(tmp_path / "a.csv")
    assert (texts(rows), rejected) == (["x\ry", "x\ry", "x\r\ny"], [])
    (tmp_path / "a.csv").write_bytes(b'text,n\rx,1\r"y\rz",2\r')
    assert texts(read_rows(tmp_path / "a.csv")[0]) == ["x", "y\rz"]


def test_empty_lines_of_csv_are_skipped(tmp_path: Path) -> None:
    """They do not count as rows; a file of one column can have an empty text in quotes."""
    (tmp_path / "a.csv").write_bytes(b'\ntext\n\nx\n\r\n""\n\ny\n')
    rows, rejected = read_rows(tmp_path / "a.csv")
    assert ([(row["row"], row["text"]) for row in rows], reasons(rejected)) == (
        [(0, "x"), (2, "y")],
        [("1", "empty text")],
    )


@pytest.mark.slow
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


@pytest.mark.parametrize("delimiter", [";", "|", "\t", "¦"])
def test_the_delimiter_of_csv_can_be_chosen(tmp_path: Path, delimiter: str) -> None:
    """Quotes, line ends and commas in texts are read as with commas; tsv keeps its tabs."""
    content = (
        'id,text\n1,"one, two; three|""4"""\n2,"a\nb"\n3,c'.replace("1,", "1D").replace("2,", "2D").replace("3,", "3D")
    )
    (tmp_path / "a.csv").write_text(content.replace("id,", "id" + delimiter).replace("D", delimiter))
    (tmp_path / "b.tsv").write_text("id\ttext\n4\td,e")
    shards = find_shards([f"{tmp_path}/*"], delimiter=delimiter)
    batches = [rows for shard in shards for rows, _ in read_shard(shard, Fields(id="id"), pa.schema([]))]
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [(row["id"], row["text"]) for row in rows] == [
        ("1", 'one, two; three|"4"'),
        ("2", "a\nb"),
        ("3", "c"),
        ("4", "d,e"),
    ]


def test_a_delimiter_without_csv_is_refused(tmp_path: Path) -> None:
    """It would be ignored."""
    (tmp_path / "b.tsv").write_text("id\ttext\n4\td,e")
    with pytest.raises(InputError, match="--delimiter ';' is for csv, and no shard is csv: leave it out"):
        find_shards([f"{tmp_path}/*"], delimiter=";")


def test_a_header_with_a_field_twice_is_damage(tmp_path: Path) -> None:
    """No value is lost silently in a shard that was not looked at before the run."""
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    rows, rejected = read_rows(tmp_path / "a.csv", kept=pa.schema([]))
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])
    assert rejected[0]["detail"] == "the header has the field 'text' more than once: rename the others"


@pytest.mark.slow
def test_csv_at_the_command_line(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """A semicolon as delimiter is suggested, works, and is an option in the manifest; two characters are refused."""
    (tmp_path / "a.csv").write_text("id;text\n1;x, y\n")
    command = ["embed", "--input", "a.csv", "--output", "out", "--id_field", "id", "--checkpoint", small_head]
    command += ["--tokenizer_path", str(vocabulary)]
    done = run_command(tmp_path, *command)
    assert (done.status, "is a single field that contains ';': try --delimiter ';'" in done.stderr) == (2, True)
    done = run_command(tmp_path, *command, "--delimiter", ";;")
    assert (done.status, "';;' is not one character, as in ';' or '|'" in done.stderr) == (2, True)
    done = run_command(tmp_path, *command, "--delimiter", ";")
    assert done.status == 0, done.stderr
    assert [(row["id"], row["text"]) for row in read(tmp_path / "out").to_pylist()] == [("1", "x, y")]
    (manifest,) = tmp_path.glob("out/snapshots/*/manifest.json")
    assert json.loads(manifest.read_text())["options"]["delimiter"] == ";"


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        (b"sep=;\r\nid;text\r\n1;a dog\r\n2;a, cat\r\n", None),
        (b"sep=;\r\nid;text\r\n1;a dog\r\n2;a, cat\r\n", ";"),
        (b"\xef\xbb\xbfsep=;\nid;text\n1;a dog\n2;a, cat", None),
        (b"SEP=|\nid|text\n1|a dog\n2|a, cat\n", None),
        (b"sep=\t\nid\ttext\n1\ta dog\n2\ta, cat\n", None),
        (b'sep=,\nid,text\n1,a dog\n2,"a, cat"\n', None),
        (b'"sep=;"\nid;text\n1;a dog\n2;"a, cat"\n', None),
        ("sep=¦\nid¦text\n1¦a dog\n2¦a, cat\n".encode(), "¦"),
        (b"sep=;\rid;text\r1;a dog\r2;a, cat\r", None),
    ],
)
def test_the_separator_line_of_excel(tmp_path: Path, content: bytes, delimiter: str | None) -> None:
    """It names the separator, and is neither the header nor a row."""
    (tmp_path / "a.csv").write_bytes(content)
    (shard,) = find_shards([f"{tmp_path}/a.csv"], delimiter=delimiter)
    batches = read_shard(shard, Fields(id="id"), infer_kept_schema([shard], Fields(id="id")))
    rows = [row for good, _ in batches for row in good.to_pylist()]
    assert [(row["row"], row["id"], row["text"]) for row in rows] == [(0, "1", "a dog"), (1, "2", "a, cat")]


def test_a_separator_line_that_contradicts_the_flag(tmp_path: Path) -> None:
    """One of both must be wrong; a longer first line is a header."""
    (tmp_path / "a.csv").write_text("sep=;\nid;text\n")
    with pytest.raises(InputError, match=r"the first line says sep=;, and --delimiter is '\|': leave --delimiter out"):
        infer_kept_schema(find_shards([f"{tmp_path}/a.csv"], delimiter="|"), Fields())
    (tmp_path / "a.csv").write_text("sep=,text\n1,a\n")
    assert texts(read_rows(tmp_path / "a.csv")[0]) == ["a"]


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ("id, text", "'id', ' text'; spaces and invisible characters belong to a name: ' text' is not 'text'"),
        ("id,text ", "'id', 'text '; spaces and invisible characters belong to a name: 'text ' is not 'text'"),
        (
            "id,text\xa0",
            r"'id', 'text\xa0'; spaces and invisible characters belong to a name: 'text\xa0' is not 'text'",
        ),
        ("id,\u200btext", r"'id', '\u200btext'; spaces and invisible characters belong to a name"),
        ("id,\ufefftext", r"'id', '\ufefftext'; spaces and invisible characters belong to a name"),
        ("id,te\xadxt", r"'id', 'te\xadxt'; spaces and invisible characters belong to a name"),
        ("id,text\t", r"'id', 'text\t'; spaces and invisible characters belong to a name"),
        ('id,"text\r"', r"'id', 'text\r'; spaces and invisible characters belong to a name"),
        ("id,Text", "'id', 'Text'"),
    ],
)
def test_invisible_characters_of_a_header_are_shown(tmp_path: Path, header: str, shown: str) -> None:
    """Names are in quotes, with escapes for what cannot be seen."""
    (tmp_path / "a.csv").write_bytes(f"{header}\n1,a\n".encode())
    with pytest.raises(InputError) as caught:
        read_rows(tmp_path / "a.csv")
    assert f"no record has the field 'text'; the fields are {shown}" in str(caught.value)
    assert str(caught.value).isprintable()


def test_composed_and_decomposed_names_differ(tmp_path: Path) -> None:
    """They look alike, so that one is shown with escapes; quotes in a header of tsv point to --quoting."""
    (tmp_path / "a.csv").write_text("cafe\u0301,text\n1,a\n")
    with pytest.raises(InputError, match=r"the fields are 'cafe\\u0301', 'text'; .* 'cafe\\u0301' is not 'café'"):
        read_rows(tmp_path / "a.csv", text="caf\xe9")
    (tmp_path / "a.tsv").write_text('"id"\t"text"\n"1"\t"a"\n')
    with pytest.raises(InputError, match="the quotes belong to the name '\"text\"': give --quoting minimal"):
        read_rows(tmp_path / "a.tsv")


@pytest.mark.parametrize("header", [",id,text", "id,text,", "id,text,,,", ",,id,text", "id,,text, , ", '"","",id,text'])
def test_names_that_are_empty_do_no_harm(tmp_path: Path, header: str) -> None:
    """The index of pandas and trailing separators are fields that no one asks for."""
    values = header.replace("id", "7").replace("text", "a dog")
    (tmp_path / "a.csv").write_text(f"{header}\n{values}\n")
    rows, rejected = read_rows(tmp_path / "a.csv", id="id")
    assert ([(row["id"], row["text"]) for row in rows], rejected) == ([("7", "a dog")], [])


@pytest.mark.parametrize(
    "comment",
    ["# made by x", "# made, by x", "#", "# made by x; 2026", "// made by x", "-- made by x", "% made by x, y"],
)
def test_a_comment_in_front_of_the_header(tmp_path: Path, comment: str) -> None:
    """The error shows it and says what to remove; a name may begin with such a character."""
    (tmp_path / "a.csv").write_text(f"{comment}\nid,text\n1,a\n")
    with pytest.raises(InputError, match="seems to be a comment: remove the lines in front of the names of the fields"):
        read_rows(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("#id,text\n1,a\n")
    assert texts(read_rows(tmp_path / "a.csv")[0]) == ["a"]
