"""Texts, ids and kept fields at their paths in records."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.shards import ids, read_rows, reasons, texts, write_lines


def test_nested_fields_and_lists(tmp_path: Path) -> None:
    """Dots lead into objects, [] through lists; each list adds a number to the id."""
    path = write_lines(
        tmp_path / "a.jsonl",
        {"k": 1, "meta": {"caption": "m"}, "chunks": [{"text": "x", "lines": [{"text": "p"}, {"text": "q"}]}]},
        {"k": 2, "meta": {}, "chunks": [{"text": "y"}, {"text": None, "lines": []}, 3]},
        {"k": 3, "meta": None, "chunks": []},
        {"k": 4, "chunks": "no list"},
    )
    rows, rejected = read_rows(path, text="meta.caption", id="k")
    assert (ids(rows), texts(rows)) == (["1"], ["m"])
    assert [(row["id"], row["reason"]) for row in rejected] == [(f"{n}", "missing field") for n in (2, 3, 4)]
    rows, rejected = read_rows(path, text="chunks[].text", id="k")
    assert (ids(rows), texts(rows)) == (["1/0", "2/0"], ["x", "y"])
    assert [(row["id"], row["reason"]) for row in rejected] == [
        ("2/1", "null text"),
        ("2/2", "missing field"),
        ("4", "wrong type"),
    ]
    rows, rejected = read_rows(path, text="chunks[].lines[].text", id="k")
    assert (ids(rows), texts(rows)) == (["1/0/0", "1/0/1"], ["p", "q"])
    assert ids(rejected) == ["2/2", "4"], "documents without texts have no rows"


def test_nested_fields_of_parquet_equal_those_of_jsonl(tmp_path: Path) -> None:
    """Structs and lists of Parquet are objects and lists."""
    records = [
        {"k": 1, "meta": {"caption": "m"}, "chunks": [{"lines": [{"text": "p"}, {"text": "q"}]}, {"lines": None}]},
        {"k": 2, "meta": None, "chunks": None},
        {"k": 3, "meta": {"caption": "n"}, "chunks": [{"lines": [{"text": "r"}]}]},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    write_lines(tmp_path / "a.jsonl", *records)
    for text in ("meta.caption", "chunks[].lines[].text"):
        parquet, json_lines = (
            read_rows(tmp_path / name, text=text, id="k", keep=("meta.caption",)) for name in ("a.parquet", "a.jsonl")
        )
        for left, right in zip(parquet, json_lines, strict=True):
            assert [row | {"shard": 0, "detail": 0} for row in left] == [
                row | {"shard": 0, "detail": 0} for row in right
            ]


def test_a_name_that_contains_dots_comes_before_a_path(tmp_path: Path) -> None:
    """A key that contains the dots is used as it is, also inside an object."""
    path = write_lines(
        tmp_path / "a.jsonl", {"a.b": "x", "a": {"b": "y"}}, {"a": {"c": 1}, "a.b": "z"}, {"a": {"b": "w"}}
    )
    assert texts(read_rows(path, text="a.b")[0]) == ["x", "z", "w"]
    path = write_lines(tmp_path / "b.jsonl", {"a": {}, "a.b": {"c": "x"}}, {"a": {"b.c": "y"}})
    assert texts(read_rows(path, text="a.b.c")[0]) == ["x", "y"]


def test_several_names_of_parquet_may_begin_a_path(tmp_path: Path) -> None:
    """As in JSON, the first that leads to a field counts."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [{"z": 1}], "a.b": [{"c": "x", "d": [{"e": "y"}]}]}), path)
    ((row,), _) = read_rows(path, text="a.b.c", keep=("a.b.c", "a.z"))
    assert (row["text"], row["a.b.c"], row["a.z"]) == ("x", "x", 1)
    assert texts(read_rows(path, text="a.b.d[].e")[0]) == ["y"]
    pq.write_table(pa.table({"a.b": [{"c": "long"}], "a": [{"b": {"c": "short"}}]}), path)
    ((row,), _) = read_rows(path, text="a.b.c", keep=("a.b.c",))
    assert row["text"] == row["a.b.c"] == "short"


def test_a_list_of_strings_is_one_text(tmp_path: Path) -> None:
    """It is joined as the original joins labels; any other list has the wrong type."""
    path = write_lines(
        tmp_path / "a.jsonl", *({"text": value} for value in (["dog", "cat"], ["x"], [], ["a", 1], ["", ""]))
    )
    rows, rejected = read_rows(path)
    assert texts(rows) == ["dog, cat", "x", ", "]
    assert reasons(rejected) == [("2", "wrong type"), ("3", "wrong type")]
    pq.write_table(pa.table({"text": [["dog", "cat"], None, ["x"]]}), tmp_path / "a.parquet")
    rows, rejected = read_rows(tmp_path / "a.parquet")
    assert (texts(rows), reasons(rejected)) == (["dog, cat", "x"], [("1", "null text")])


def test_ids_that_are_numbers_become_the_text_they_were_written_as(tmp_path: Path) -> None:
    """No digit is lost, neither beyond 64 bits nor after the point."""
    written = ["1", "-7", "18446744073709551615", "123456789012345678901234567890", "1.10", "1e3", "0.1"]
    path = write_lines(
        tmp_path / "a.jsonl", *(b'{"n": {"k": %s}, "text": "t"}' % number.encode() for number in written)
    )
    assert ids(read_rows(path, id="n.k")[0]) == written
    path = write_lines(tmp_path / "b.jsonl", b'{"k": 1.10, "text": "t"}', b'{"k": 2, "text": "t"}')
    rows, rejected = read_rows(path, id="k", keep=("k",))
    assert ([(row["id"], row["k"]) for row in rows], rejected) == ([("1.10", 1.1), ("2", 2.0)], [])
    decimals = pa.array([Decimal("1.10"), Decimal("2.00")], pa.decimal128(10, 2))
    tiny = pa.array([Decimal("0E-10"), Decimal("1E-7")], pa.decimal128(12, 10))
    for column, expected in (
        (decimals, ["1.10", "2.00"]),
        (tiny, ["0.0000000000", "0.0000001000"]),
        (pa.array([2**63, 1], pa.uint64()), [str(2**63), "1"]),
    ):
        pq.write_table(pa.table({"k": column, "text": ["a", "b"]}), tmp_path / "a.parquet")
        assert ids(read_rows(tmp_path / "a.parquet", id="k")[0]) == expected


def test_ids_that_are_empty_or_equal_as_text(tmp_path: Path) -> None:
    """An empty string is an id, and a number has the id of the string that spells it."""
    path = write_lines(tmp_path / "a.jsonl", *(b'{"k": %s, "text": "t"}' % key for key in (b'""', b"1", b'"1"')))
    rows, rejected = read_rows(path, id="k")
    assert (ids(rows), rejected) == (["", "1", "1"], [])


def test_ids_in_lists_keep_their_digits_too(tmp_path: Path) -> None:
    """Two that a float would make equal stay two."""
    written = ["123456789012345678901", "123456789012345678902", "1.10", "7"]
    parts = b", ".join(b'{"id": %s, "text": "t"}' % number.encode() for number in written)
    path = write_lines(tmp_path / "a.jsonl", b'{"doc": {"parts": [%s]}}' % parts)
    assert ids(read_rows(path, text="doc.parts[].text", id="doc.parts[].id")[0]) == written


def test_a_kept_number_is_kept_exactly_or_ends_the_run(tmp_path: Path) -> None:
    """Of a column of integers, of floats and of text; in the last one also within JSON."""
    numbers = ["9007199254740993", "123456789012345678901234567890", "1.5", "2", "1e+300", "9" * 300]
    fitting = {pa.float64(): [1.5, 2.0, 1e300], pa.int64(): [9007199254740993, 2], pa.string(): numbers}
    for kind, expected in fitting.items():
        found = []
        for number in numbers:
            path = write_lines(tmp_path / "a.jsonl", b'{"k": %s, "text": "t"}' % number.encode())
            with suppress(InputError):
                found += [row["k"] for row in read_rows(path, keep=("k",), kept=pa.schema({"k": kind}))[0]]
        assert list(map(str, found)) == list(map(str, expected))
    path = write_lines(tmp_path / "b.jsonl", b'{"k": {"a": [%s]}, "text": "t"}' % numbers[1].encode())
    (row,), _ = read_rows(path, keep=("k",))
    assert json.loads(row["k"]) == {"a": [int(numbers[1])]}


def test_kept_json_has_one_spelling(tmp_path: Path) -> None:
    """Whatever other numbers are next to a value, or are ids in the same list."""
    value = {"f": 1.1, "e": 1e300, "s": 1e-7, "w": 'é\u2028"', "b": [True, None], "": {}}
    written = json.dumps(value).encode()
    path = write_lines(
        tmp_path / "a.jsonl",
        b'{"k": [%s, 12345678901234567890123], "text": "t"}' % written,
        b'{"k": [%s, 1], "text": "t"}' % written,
    )
    first, second = (row["k"] for row in read_rows(path, keep=("k",))[0])
    assert first == second.replace(",1]", ",12345678901234567890123]")
    assert second == '[{"f":1.1,"e":1e+300,"s":1e-7,"w":"é\u2028\\"","b":[true,null],"":{}},1]'
    path = write_lines(tmp_path / "b.jsonl", b'{"c": [{"t": "a", "id": 1.50}]}', b'{"c": [{"t": "a", "id": 2}]}')
    rows, _ = read_rows(path, text="c[].t", id="c[].id", keep=("c",))
    assert [(row["id"], row["c"]) for row in rows] == [("1.50", '[{"t":"a","id":1.5}]'), ("2", '[{"t":"a","id":2}]')]


def test_a_row_without_its_id_is_rejected(tmp_path: Path) -> None:
    """It is null, missing, or of a type that cannot be an id; an empty text can."""
    values = [None, True, [1], {"a": 1}, "", "ok", "x" * 50]
    path = write_lines(tmp_path / "a.jsonl", {"text": "t"}, *({"k": value, "text": "t"} for value in values))
    rows, rejected = read_rows(path, id="k", limit=40)
    assert ids(rows) == ["", "ok"]
    assert [row["reason"] for row in rejected] == ["missing field"] * 2 + ["wrong type"] * 3 + ["too long"]
    pq.write_table(pa.table({"k": ["a", None], "text": ["t", "t"]}), tmp_path / "a.parquet")
    rows, rejected = read_rows(tmp_path / "a.parquet", id="k")
    assert (ids(rows), reasons(rejected)) == (["a"], [("1", "missing field")])


def test_a_kept_value_that_does_not_fit_a_known_column_ends_the_run(tmp_path: Path) -> None:
    """The error names shard, row, field, both types and the remedy; a row whose values fit is read."""
    kept = pa.schema({"n": pa.int64(), "f": pa.float64(), "s": pa.string(), "b": pa.bool_()})
    keep = ("n", "f", "s", "b")
    good = {"text": "u", "f": 2**50, "s": [1, {"a": None}], "b": None}
    ((row,), _) = read_rows(write_lines(tmp_path / "a.jsonl", good), keep=keep, kept=kept)
    assert [row[name] for name in keep] == [None, 2.0**50, '[1,{"a":null}]', None]
    for bad in ({"n": "x"}, {"n": 2**63}, {"n": 0.5}, {"f": 2**53 + 1}, {"f": True}, {"b": 1}, {"b": "true"}):
        path = write_lines(tmp_path / "a.jsonl", {"text": "t"}, {"text": "u", **bad}, *[{"text": "v"}] * 20)
        with pytest.raises(InputError) as caught:
            read_rows(path, keep=keep, kept=kept)
        (name,) = bad
        assert str(caught.value).startswith(f"{path}, row 1: kept field {name!r} is ")
        assert f"and its column, {kept.field(name).type}, holds no such value" in str(caught.value)
        assert f"as in --keep_fields {name}:string" in str(caught.value)


def test_a_record_of_many_texts_fills_several_batches(tmp_path: Path) -> None:
    """Batches stay small, whatever one record contains."""
    rows, _ = read_rows(write_lines(tmp_path / "a.jsonl", {"c": [str(n) for n in range(10_000)]}), text="c[]")
    assert ids(rows) == [f"a.jsonl#0/{n}" for n in range(10_000)]
    pq.write_table(pa.table({"c": [[str(n) for n in range(10_000)]]}), tmp_path / "a.parquet")
    assert texts(read_rows(tmp_path / "a.parquet", text="c[]")[0]) == [str(n) for n in range(10_000)]
