"""What comes out of a shard: every row of it once, as a row or as a rejected one."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from audioclip_text.pipeline.readers.compression import line_blocks
from audioclip_text.pipeline.readers.fields import Fields
from audioclip_text.pipeline.readers.infer_schema import infer_kept_schema
from audioclip_text.pipeline.readers.read_shards import MAX_TEXT_BYTES, read_shard
from audioclip_text.pipeline.readers.shards import find_shards
from audioclip_text.pipeline.schemas import REASONS, REJECTED, ROW

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
TEXTS = ["dog barking", "Regen, auf dem “Dach” 🌧", "a\ttab and  spaces ", 'she said "hi", twice', "back\\slash"]
Row = dict[str, object]


def read(path: Path, limit: int = MAX_TEXT_BYTES, **fields: object) -> tuple[list[Row], list[Row]]:
    """Rows and rejected rows of the one shard at `path`, after checking what holds for any."""
    (shard,) = find_shards([str(path)])
    wanted = Fields(**fields)  # type: ignore[arg-type]
    kept = infer_kept_schema([shard], wanted)
    rows, rejected = list[Row](), list[Row]()
    for good, bad in read_shard(shard, wanted, kept, limit):
        good.validate(full=True)
        bad.validate(full=True)
        assert good.schema == pa.schema([*ROW, *kept])
        assert bad.schema == REJECTED
        assert good.num_rows <= 4096
        rows += good.to_pylist()
        rejected += bad.to_pylist()
    assert {row["reason"] for row in rejected} <= set(REASONS)
    assert {row["shard"] for row in rows + rejected} <= {shard.name}
    return rows, rejected


def texts(rows: Sequence[Row]) -> list[object]:
    return [row["text"] for row in rows]


def ids(rows: Sequence[Row]) -> list[object]:
    return [row["id"] for row in rows]


def reasons(rejected: Sequence[Row]) -> list[tuple[object, object]]:
    return [(row["row"], row["reason"]) for row in rejected]


def jsonl(path: Path, *lines: object) -> Path:
    """A file of these lines: bytes as they are, anything else as JSON."""
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def plain(form: str, rows: Sequence[Mapping[str, str]]) -> bytes:
    """The rows as a text format, uncompressed; the first column is the id, the second the text."""
    if form == "txt":
        return "".join(row["text"] + "\n" for row in rows).encode()
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "text"], delimiter="," if form == "csv" else "\t")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "tsv"])
def test_every_format_and_compression_gives_the_same_rows(tmp_path: Path, form: str, suffix: str) -> None:
    """The rows do not depend on how a file is written or packed."""
    rows = [{"id": f"k{number}", "text": text} for number, text in enumerate(TEXTS)]
    path = tmp_path / f"part.{form}{suffix}"
    path.write_bytes(PACK[suffix](plain(form, rows)))
    for field, expected in ((None, [f"part.{form}{suffix}#{n}" for n in range(5)]), ("id", [r["id"] for r in rows])):
        found, rejected = read(path, id=field)
        assert texts(found) == TEXTS
        assert [row["row"] for row in found] == [0, 1, 2, 3, 4]
        assert ids(found) == (expected if form != "txt" else [f"{path.name}#{n}" for n in range(5)])
        assert rejected == []


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_streams_behind_one_another_and_padding_are_one_file(tmp_path: Path, suffix: str) -> None:
    """Concatenated compressed files read as one, zeros behind a stream are passed over, and zeros alone are damage."""
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"one\ntw") + PACK[suffix](b"") + bytes(8) + PACK[suffix](b"o\n") + bytes(4))
    assert texts(read(path)[0]) == ["one", "two"]
    path.write_bytes(bytes(100))
    assert reasons(read(path)[1]) == [("0", "damaged shard")]


def test_rows_count_from_zero_with_the_bad_ones(tmp_path: Path) -> None:
    """A bad row has a number too, so that the ids behind it stay what they are."""
    (tmp_path / "a.txt").write_bytes(b"one\n\n  \n\xff\nfive\n")
    rows, rejected = read(tmp_path / "a.txt")
    assert ids(rows) == ["a.txt#0", "a.txt#4"]
    assert reasons(rejected) == [("1", "empty text"), ("2", "empty text"), ("3", "not UTF-8")]
    assert rejected[2]["text"] == "\\xff"


def test_blank_lines_of_jsonl_and_csv_are_no_rows(tmp_path: Path) -> None:
    """They are layout there, as they are to every other reader of these formats."""
    rows, rejected = read(jsonl(tmp_path / "a.jsonl", {"text": "a"}, b"", b" \r", {"text": "b"}, b""))
    assert (ids(rows), rejected) == (["a.jsonl#0", "a.jsonl#1"], [])
    (tmp_path / "a.csv").write_bytes(b"\r\nid,text\r\n\r\n1,a\r\n\n2,b")
    rows, rejected = read(tmp_path / "a.csv")
    assert (ids(rows), rejected) == (["a.csv#0", "a.csv#1"], [])


def test_nested_fields_and_lists(tmp_path: Path) -> None:
    """Dots go into objects, [] through lists, with a number of the id for each list gone through."""
    path = jsonl(
        tmp_path / "a.jsonl",
        {"k": 1, "meta": {"caption": "m"}, "chunks": [{"text": "x", "lines": [{"text": "p"}, {"text": "q"}]}]},
        {"k": 2, "meta": {}, "chunks": [{"text": "y"}, {"text": None, "lines": []}, 3]},
        {"k": 3, "meta": None, "chunks": []},
        {"k": 4, "chunks": "no list"},
    )
    rows, rejected = read(path, text="meta.caption", id="k")
    assert (ids(rows), texts(rows)) == (["1"], ["m"])
    assert [(row["id"], row["reason"]) for row in rejected] == [(f"{n}", "missing field") for n in (2, 3, 4)]
    rows, rejected = read(path, text="chunks[].text", id="k")
    assert (ids(rows), texts(rows)) == (["1/0", "2/0"], ["x", "y"])
    assert [(row["id"], row["reason"]) for row in rejected] == [
        ("2/1", "null text"),
        ("2/2", "missing field"),
        ("3", "missing field"),
        ("4", "wrong type"),
    ]
    rows, rejected = read(path, text="chunks[].lines[].text", id="k")
    assert (ids(rows), texts(rows)) == (["1/0/0", "1/0/1"], ["p", "q"])
    assert ids(rejected) == ["2/0", "2/1", "2/2", "3", "4"]


def test_nested_fields_of_parquet_read_like_those_of_jsonl(tmp_path: Path) -> None:
    """Structs and lists of Parquet are objects and lists."""
    records = [
        {"k": 1, "meta": {"caption": "m"}, "chunks": [{"lines": [{"text": "p"}, {"text": "q"}]}, {"lines": None}]},
        {"k": 2, "meta": None, "chunks": None},
        {"k": 3, "meta": {"caption": "n"}, "chunks": [{"lines": [{"text": "r"}]}]},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    jsonl(tmp_path / "a.jsonl", *records)
    for text in ("meta.caption", "chunks[].lines[].text"):
        one, other = (
            read(tmp_path / name, text=text, id="k", keep=("meta.caption",)) for name in ("a.parquet", "a.jsonl")
        )
        for mine, theirs in zip(one, other, strict=True):
            assert [row | {"shard": 0, "detail": 0} for row in mine] == [
                row | {"shard": 0, "detail": 0} for row in theirs
            ]


def test_a_name_that_holds_dots_comes_before_a_path(tmp_path: Path) -> None:
    """A literal key is found as it is written, also inside an object."""
    path = jsonl(tmp_path / "a.jsonl", {"a.b": "x", "a": {"b": "y"}}, {"a": {"c": 1}, "a.b": "z"}, {"a": {"b": "w"}})
    assert texts(read(path, text="a.b")[0]) == ["x", "z", "w"]
    path = jsonl(tmp_path / "b.jsonl", {"a": {}, "a.b": {"c": "x"}}, {"a": {"b.c": "y"}})
    assert texts(read(path, text="a.b.c")[0]) == ["x", "y"]


def test_a_list_of_strings_is_one_text(tmp_path: Path) -> None:
    """It is joined as the original joins labels; any other list is of the wrong type."""
    path = jsonl(tmp_path / "a.jsonl", *({"text": value} for value in (["dog", "cat"], ["x"], [], ["a", 1], ["", ""])))
    rows, rejected = read(path)
    assert texts(rows) == ["dog, cat", "x", ", "]
    assert reasons(rejected) == [("2", "wrong type"), ("3", "wrong type")]
    pq.write_table(pa.table({"text": [["dog", "cat"], None, ["x"]]}), tmp_path / "a.parquet")
    rows, rejected = read(tmp_path / "a.parquet")
    assert (texts(rows), reasons(rejected)) == (["dog, cat", "x"], [("1", "null text")])


def test_ids_that_are_numbers_become_the_text_they_were_written_as(tmp_path: Path) -> None:
    """No digit is lost: not beyond 64 bits, not behind the point."""
    written = ["1", "-7", "18446744073709551615", "123456789012345678901234567890", "1.10", "1e3", "0.1"]
    path = jsonl(tmp_path / "a.jsonl", *(b'{"n": {"k": %s}, "text": "t"}' % number.encode() for number in written))
    assert ids(read(path, id="n.k")[0]) == written
    path = jsonl(tmp_path / "b.jsonl", b'{"k": 1.10, "text": "t"}', b'{"k": 2, "text": "t"}')
    rows, rejected = read(path, id="k", keep=("k",))
    assert ([(row["id"], row["k"]) for row in rows], rejected) == ([("1.10", 1.1), ("2", 2.0)], [])
    decimals = pa.array([Decimal("1.10"), Decimal("2.00")], pa.decimal128(10, 2))
    for column, expected in ((decimals, ["1.10", "2.00"]), (pa.array([2**63, 1], pa.uint64()), [str(2**63), "1"])):
        pq.write_table(pa.table({"k": column, "text": ["a", "b"]}), tmp_path / "a.parquet")
        assert ids(read(tmp_path / "a.parquet", id="k")[0]) == expected


def test_a_row_without_its_id_is_rejected(tmp_path: Path) -> None:
    """Null, missing, or of a type that names nothing; an empty one names something."""
    values = [None, True, [1], {"a": 1}, "", "ok", "x" * 50]
    path = jsonl(tmp_path / "a.jsonl", {"text": "t"}, *({"k": value, "text": "t"} for value in values))
    rows, rejected = read(path, id="k", limit=40)
    assert ids(rows) == ["", "ok"]
    assert [row["reason"] for row in rejected] == ["missing field"] * 2 + ["wrong type"] * 3 + ["too long"]
    pq.write_table(pa.table({"k": ["a", None], "text": ["t", "t"]}), tmp_path / "a.parquet")
    rows, rejected = read(tmp_path / "a.parquet", id="k")
    assert (ids(rows), reasons(rejected)) == (["a"], [("1", "missing field")])


def test_kept_values_that_do_not_fit_their_column_cost_their_row_alone(tmp_path: Path) -> None:
    """The type is fixed by a look at the head of the shards; what comes later has to fit."""
    head = [{"text": "t", "n": 1, "f": 0.5, "s": "x", "b": True}] * 1000
    path = jsonl(
        tmp_path / "a.jsonl",
        *head,
        {"text": "u", "n": "x"},
        {"text": "u", "n": 2**63},
        {"text": "u"},
        {"text": "u", "f": 2**60 + 1, "s": [1, {"a": None}], "b": None},
        {"text": "u", "b": 1},
    )
    rows, rejected = read(path, keep=("n", "f", "s", "b"))
    assert reasons(rejected) == [("1000", "wrong type"), ("1001", "wrong type"), ("1004", "wrong type")]
    assert rows[-1] | {"id": 0, "shard": 0} == {
        "id": 0,
        "shard": 0,
        "row": 1003,
        "text": "u",
        "n": None,
        "f": 2.0**60,
        "s": '[1,{"a":null}]',
        "b": None,
    }


PARQUET_KEPT = {
    "moment": pa.array([1, 2**62, None, 4], pa.timestamp("ns", "UTC")),
    "far": pa.array([2**60, 0, 1, None], pa.timestamp("us")),
    "money": pa.array([Decimal("1.10"), None, Decimal("-3.00"), Decimal("0.01")], pa.decimal128(10, 2)),
    "small": pa.array([1, None, 3, -4], pa.int32()),
    "tags": pa.array([["a"], None, [], ["b", None]], pa.list_(pa.string())),
    "blob": pa.array([b"\xff", None, b"", b"x"], pa.binary()),
    "half": pa.array([0.5, None, 1.5, 2.5], pa.float32()),
}


@pytest.mark.parametrize("caption", [["a", "b", "c", "d"], ["a", " ", "c", None]], ids=["clean", "with bad rows"])
def test_kept_columns_of_parquet_keep_their_types(tmp_path: Path, caption: list[str]) -> None:
    """Nothing goes through Python's types: nanoseconds, years after 9999 and decimals stay, bad rows or not."""
    word = pa.array(["x", "y", None, "x"]).dictionary_encode()
    table = pa.table({"text": caption, "word": word, **PARQUET_KEPT})
    pq.write_table(table, tmp_path / "a.parquet")
    (shard,) = find_shards([str(tmp_path / "a.parquet")])
    fields = Fields(keep=tuple(table.schema.names[1:]))
    kept = infer_kept_schema([shard], fields)
    assert kept.field("word").type == pa.string()
    assert all(kept.field(name).type == column.type for name, column in PARQUET_KEPT.items())
    rows = pa.Table.from_batches([good for good, _ in read_shard(shard, fields, kept)])
    good = pa.array([bool(text and text.strip()) for text in caption])
    assert rows.select(table.schema.names[2:]).equals(table.filter(good).select(table.schema.names[2:]))
    assert rows["word"].to_pylist() == table.filter(good)["word"].to_pylist()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), "d"]
)
def test_texts_of_parquet_in_any_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    """Text is text whichever way Arrow stores it, and bytes are where they are UTF-8."""
    values = pa.array(["dog", None, "Käse", "", " \u3000"])
    table = pa.table({"text": values.dictionary_encode() if kind == "d" else values.cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, rejected = read(tmp_path / "a.parquet")
    assert texts(rows) == ["dog", "Käse"]
    assert reasons(rejected) == [("1", "null text"), ("3", "empty text"), ("4", "empty text")]
    pq.write_table(table.slice(0, 1), tmp_path / "a.parquet")
    assert texts(read(tmp_path / "a.parquet")[0]) == ["dog"]


def test_parquet_texts_of_another_type_are_of_the_wrong_type(tmp_path: Path) -> None:
    """A number is no text, as it is none in JSON."""
    for values in ([1, 2], [1.5, 2.5], [True, False], [datetime.date(2020, 1, 1)] * 2, [{"a": 1}] * 2):
        pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
        assert reasons(read(tmp_path / "a.parquet")[1]) == [("0", "wrong type"), ("1", "wrong type")]


def unchecked(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    """A column of text that nobody has checked to be UTF-8."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers()).cast(kind)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_text_that_is_not_utf8_costs_its_row_alone(tmp_path: Path, kind: pa.DataType) -> None:
    """Arrow does not check text when it reads it; the reader does, in ids, kept fields and inside structs too."""
    mixed = unchecked([b"a", b"\xff", b"c"], kind)
    good = pa.array(["x", "y", "z"])
    path = tmp_path / "a.parquet"
    for text, key, word in ((mixed, good, good), (good, mixed, good), (good, good, mixed)):
        pq.write_table(pa.table({"text": text, "k": key, "word": word}), path)
        rows, rejected = read(path, id="k", keep=("word",))
        assert ([row["row"] for row in rows], reasons(rejected)) == ([0, 2], [("1", "not UTF-8")])
    pq.write_table(pa.table({"m": pa.StructArray.from_arrays([mixed], ["text"])}), path)
    rows, rejected = read(path, text="m.text")
    assert (texts(rows), reasons(rejected)) == (["a", "c"], [("1", "not UTF-8")])
    pq.write_table(pa.table({"m": pa.ListArray.from_arrays([0, 3], mixed)}), path)
    rows, rejected = read(path, text="m[]")
    assert (ids(rows), ids(rejected)) == (["a.parquet#0/0", "a.parquet#0/2"], ["a.parquet#0/1"])


BAD_JSON = {
    b"{": "malformed record",
    b"[1]": "malformed record",
    b'"text"': "malformed record",
    b"null": "malformed record",
    b'{"text": NaN}': "malformed record",
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
def test_a_bad_line_of_jsonl_costs_itself_alone(tmp_path: Path, line: bytes) -> None:
    """Whatever stands in a line, the lines around it are read."""
    rows, rejected = read(jsonl(tmp_path / "a.jsonl", {"text": "a"}, line, {"text": "b"}))
    assert (texts(rows), reasons(rejected)) == (["a", "b"], [("1", BAD_JSON[line])])


def test_deep_nesting_costs_no_more_than_its_row(tmp_path: Path) -> None:
    """As a kept field or beside an id that needs a second look, it is rejected, not a crash."""
    for depth in (200, 900, 1000, 1020):
        deep = b"[" * depth + b"]" * depth
        path = jsonl(tmp_path / "a.jsonl", b'{"k": 1.5, "deep": %s, "text": "a"}' % deep, {"k": 2, "text": "b"})
        rows, rejected = read(path, id="k")
        assert len(rows) + len(rejected) == 2
        assert len(rows) + len(read(path, keep=("deep",))[0]) >= 2
        assert texts(rows)[-1] == "b"


def test_json_with_the_same_key_twice_means_the_last(tmp_path: Path) -> None:
    """As every common JSON reader has it."""
    assert texts(read(jsonl(tmp_path / "a.jsonl", b'{"text": "a", "text": "b"}'))[0]) == ["b"]


def test_nul_bytes_are_characters(tmp_path: Path) -> None:
    """They are no end of a text."""
    (tmp_path / "a.txt").write_bytes(b"a\0b\n")
    assert texts(read(tmp_path / "a.txt")[0]) == ["a\0b"]
    assert texts(read(jsonl(tmp_path / "a.jsonl", {"text": "a\0b"}))[0]) == ["a\0b"]


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_byte_order_marks(tmp_path: Path, form: str) -> None:
    """UTF-8's is passed over; UTF-16 is told as damage, not read as garbage."""
    path = tmp_path / f"a.{form}"
    content = plain(form, [{"id": "1", "text": "a"}])
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert texts(read(path)[0]) == ["a"]
    path.write_bytes(content.decode().encode("utf-16"))
    rows, rejected = read(path)
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])
    assert "UTF-16" in str(rejected[0]["detail"])


def test_mixed_line_ends(tmp_path: Path) -> None:
    """A line ends with \\n or \\r\\n; the last needs no end; \\r alone is a character."""
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\nc\rd\ne\r")
    assert texts(read(tmp_path / "a.txt")[0]) == ["a", "b", "c\rd", "e"]
    rows, _ = read(jsonl(tmp_path / "a.jsonl", b'{"text": "a"}\r', b'{"text": "b"}', b'{"text": "c"}\r'))
    assert texts(rows) == ["a", "b", "c"]
    (tmp_path / "a.csv").write_bytes(b'text\r\na\nb\r\n"c\r\nd"\r\ne')
    assert texts(read(tmp_path / "a.csv")[0]) == ["a", "b", "c\r\nd", "e"]


def test_csv_records_that_are_none(tmp_path: Path) -> None:
    """An open quote costs its line, reading goes on in the next; a wrong number of fields costs its record."""
    (tmp_path / "a.csv").write_bytes(
        b'id,text\n1,"two\nlines, ""quoted"""\n2,a,b\n3\n4,"open\n5,five\n6,"a"b\n7,"seven\n7"\n8,\xff\n9,"open\n10,ten\n'
    )
    rows, rejected = read(tmp_path / "a.csv", id="id")
    assert [(row["row"], row["id"]) for row in rows] == [(0, "1"), (4, "5"), (6, "7"), (9, "10")]
    assert texts(rows) == ['two\nlines, "quoted"', "five", "seven\n7", "ten"]
    assert reasons(rejected) == [(n, "malformed record") for n in "1235"] + [
        ("7", "not UTF-8"),
        ("8", "malformed record"),
    ]
    assert rejected[2]["text"] == '4,"open'


def test_csv_quotes_left_open_again_and_again_end_in_damage(tmp_path: Path) -> None:
    """Lines made such that each opens a quote to the end of the file do not make the reader go on for ever."""
    (tmp_path / "a.csv").write_bytes(b"text,more\n" + b'b","\n' * 50_001)
    rows, rejected = read(tmp_path / "a.csv")
    assert rejected[-1]["reason"] == "damaged shard"
    assert [row["row"] for row in rejected] == [str(n) for n in range(len(rejected))]
    assert rows == []


def test_a_csv_header_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    """No record becomes the header in its place."""
    (tmp_path / "a.csv").write_bytes(b'id,"text\n1,a\n2,b\n')
    rows, rejected = read(tmp_path / "a.csv")
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "parquet"])
def test_a_text_over_the_limit_is_too_long(tmp_path: Path, form: str) -> None:
    """The limit counts bytes of UTF-8; a text of just so many is fine."""
    path = tmp_path / f"a.{form}"
    values = ["x" * 100, "ä" * 50, "x" * 101, "ä" * 51, "fine"]
    if form == "parquet":
        pq.write_table(pa.table({"text": values}), path)
    else:
        path.write_bytes(plain(form, [{"id": "1", "text": value} for value in values]).replace(b"\n", b"\r\n"))
    rows, rejected = read(path, limit=100)
    assert texts(rows) == [values[0], values[1], values[4]]
    assert reasons(rejected) == [("2", "too long"), ("3", "too long")]


def test_lines_are_never_held_whole_when_too_long() -> None:
    """Any cut of the bytes into pieces gives the same lines."""
    data = b"ok\n" + b"x" * 50 + b"\nlast"
    for limit, expected in ((10, [b"ok", None, b"last"]), (50, [b"ok", b"x" * 50, b"last"])):
        assert [line for block in line_blocks(io.BytesIO(data), None, limit) for line in block] == expected


BOMB = """
import resource, sys
from audioclip_text.pipeline.readers.fields import Fields
from audioclip_text.pipeline.readers.infer_schema import infer_kept_schema
from audioclip_text.pipeline.readers.shards import find_shards
from audioclip_text.pipeline.readers.read_shards import read_shard
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    shards = find_shards([path])
    before = peak()
    found = [(rows.num_rows, rejected.column("reason").to_pylist())
             for rows, rejected in read_shard(shards[0], Fields(), infer_kept_schema(shards, Fields()))]
    print(sum(n for n, _ in found), sum((r for _, r in found), []), (peak() - before) >> 10)
"""


def test_a_bomb_of_one_long_line_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """300 MB in one line, packed a thousand times smaller, is one rejected row and some tens of MB of memory."""
    packer = zlib.compressobj(1, wbits=31)
    piece = b"a" * (1 << 20)
    packed = packer.compress(b'{"text": "first"}\n') + b"".join(packer.compress(piece) for _ in range(300))
    packed += packer.compress(b'\n{"text": "last"}\n') + packer.flush()
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    zst = zstandard.ZstdCompressor().compressobj()
    content = zst.compress(b"first\n") + b"".join(zst.compress(piece) for _ in range(300))
    (tmp_path / "b.txt.zst").write_bytes(content + zst.compress(b"\nlast\n") + zst.flush())
    for told, memory in peaks(tmp_path / "a.jsonl.gz", tmp_path / "b.txt.zst"):
        assert told == "2 ['too long']"
        assert memory < 150, f"{memory} MiB"


def test_a_bomb_of_one_value_in_many_rows_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A Parquet file that holds 600 KB of text once and names it 4,000 times is read some rows at a time."""
    once = pa.array(["x" * 600_000, "y"])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 2000, pa.int32()), once)
    for name, text in (("a", column), ("b", column.dictionary_decode())):
        pq.write_table(pa.table({"text": text}), tmp_path / f"{name}.parquet")
        assert (tmp_path / f"{name}.parquet").stat().st_size < 1_000_000
    for told, memory in peaks(tmp_path / "a.parquet", tmp_path / "b.parquet"):
        assert told == "4000 []"
        assert memory < 300, f"{memory} MiB"


def peaks(*paths: Path) -> list[tuple[str, int]]:
    """(what came out, MiB that the peak of memory rose) for each shard, read one after the other in a new process."""
    command = [sys.executable, "-c", BOMB, *map(str, paths)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(paths)
    return [(told, int(memory)) for told, _, memory in (line.rpartition(" ") for line in lines)]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_a_shard_cut_short_anywhere_gives_its_whole_rows(tmp_path: Path, form: str, suffix: str) -> None:
    """Rows before the cut are read, the line that is cut is none, and one row says that the shard is damaged."""
    content = plain(form, [{"id": str(n), "text": f"text {n} {zlib.crc32(bytes([n])):x}"} for n in range(40)])
    expected = [f"text {n} {zlib.crc32(bytes([n])):x}" for n in range(40)]
    whole = PACK[suffix](content)
    path = tmp_path / f"a.{form}{suffix}"
    best = 0
    for cut in range(1, len(whole), 1 if form == "txt" else 7):
        path.write_bytes(whole[:cut])
        rows, rejected = read(path)
        assert texts(rows) == expected[: len(rows)]
        assert reasons(rejected) == [(str(len(rows)), "damaged shard")]
        best = max(best, len(rows))
    assert best >= (40 if suffix == ".gz" else 0)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_bytes_that_are_wrong_in_the_middle_keep_the_rows_before_them(tmp_path: Path, suffix: str) -> None:
    """The rows of the blocks before the damage count, then one row tells of it."""
    data = "".join(f"{zlib.crc32(str(n).encode())} {zlib.adler32(str(n).encode())}\n" for n in range(200_000)).encode()
    packed = bytearray(PACK[suffix](data))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed)
    rows, rejected = read(path)
    assert rejected[-1]["reason"] == "damaged shard"
    lines = data.decode().splitlines()
    same = sum(row["text"] == line for row, line in zip(rows, lines, strict=False))
    assert len(rows) >= same > 40_000


def test_a_quote_open_where_the_shard_breaks_off_costs_no_other_row(tmp_path: Path) -> None:
    """The lines that an open quote had swallowed are read before the damage is told."""
    content = b'text\n"open\n' + b"".join(b"line %d\n" % n for n in range(1000)) + b"cut"
    packer = zlib.compressobj(wbits=31)
    (tmp_path / "a.csv.gz").write_bytes(packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH))
    rows, rejected = read(tmp_path / "a.csv.gz")
    assert texts(rows) == [f"line {n}" for n in range(1000)]
    assert reasons(rejected) == [("0", "malformed record"), ("1001", "damaged shard")]


def test_row_groups_of_parquet_that_can_be_read_count(tmp_path: Path) -> None:
    """A damaged row group costs its own rows; one rejected row tells of it; a broken footer costs the file."""
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"text {n}" for n in range(300)]}),
        path,
        row_group_size=100,
        compression="zstd",
        use_dictionary=False,
    )
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    broken = bytearray(whole)
    broken[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
        column.total_compressed_size
    )
    path.write_bytes(broken)
    rows, rejected = read(path)
    assert [row["row"] for row in rows] == [*range(100), *range(200, 300)]
    assert reasons(rejected) == [("300", "damaged shard")]
    assert "row group 1 of 3" in str(rejected[0]["detail"])
    for content in (whole[:-20], whole[:-1], b"PAR1", b"no parquet", b"PAR1" + bytes(40) + b"PAR1"):
        path.write_bytes(content)
        assert reasons(read(path)[1]) == [("0", "damaged shard")]


def test_a_wrong_suffix_is_told_and_no_crash(tmp_path: Path) -> None:
    """Plain text named .gz, gzip named .jsonl, text named .parquet: rejected rows, none of them embedded."""
    for name, content in (
        ("a.jsonl.gz", b'{"text": "a"}\n'),
        ("a.jsonl", gzip.compress(b'{"text": "a"}\n' * 9)),
        ("a.parquet", b'{"text": "a"}\n' * 9),
    ):
        (tmp_path / name).write_bytes(content)
        rows, rejected = read(tmp_path / name)
        assert rows == []
        assert rejected


def test_empty_shards_have_no_rows(tmp_path: Path) -> None:
    """No bytes, nothing packed, only a header, a table without rows."""
    for form in ("txt", "jsonl", "csv", "tsv"):
        for suffix, pack in PACK.items():
            for content in (b"", pack(b""), pack(b"id,text\n" if form == "csv" else b"")):
                (tmp_path / f"a.{form}{suffix}").write_bytes(content)
                assert read(tmp_path / f"a.{form}{suffix}") == ([], [])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ([], [])


def test_a_shard_that_is_gone_raises_with_its_path(tmp_path: Path) -> None:
    """What cannot be read at all is no data to be rejected: it is an error that a runner may try again."""
    for name in ("a.txt", "a.parquet", "a.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(b"")
        (shard,) = find_shards([str(path)])
        path.unlink()
        with pytest.raises(OSError, match=f"{path} cannot be read: No such file") as caught:
            list(read_shard(shard, Fields(), pa.schema([])))
        assert caught.value.errno is not None


def test_a_record_of_very_many_texts_comes_in_many_batches(tmp_path: Path) -> None:
    """Batches stay small whatever one record holds."""
    rows, _ = read(jsonl(tmp_path / "a.jsonl", {"c": [str(n) for n in range(10_000)]}), text="c[]")
    assert ids(rows) == [f"a.jsonl#0/{n}" for n in range(10_000)]
    pq.write_table(pa.table({"c": [[str(n) for n in range(10_000)]]}), tmp_path / "a.parquet")
    assert texts(read(tmp_path / "a.parquet", text="c[]")[0]) == [str(n) for n in range(10_000)]
