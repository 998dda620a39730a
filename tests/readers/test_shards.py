"""Which shards a job reads, what they are called, and what is said where that cannot be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_text.pipeline.readers.fields import Fields
from audioclip_text.pipeline.readers.infer_schema import OWN_COLUMNS, infer_kept_schema
from audioclip_text.pipeline.readers.shards import InputError, find_shards, format_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("top.txt", "a/1.txt", "a/2.jsonl.gz", "a/b/1.txt", "c/1.txt", "c/[k].txt", "c/notes.doc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x\n")
    return tmp_path


def names(*patterns: object, input_format: str | None = None) -> list[str]:
    return [shard.name for shard in find_shards([str(pattern) for pattern in patterns], input_format)]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_names_are_paths_below_the_fixed_part_of_the_glob(tree: Path) -> None:
    """They do not change when the folder above moves."""
    assert names(tree / "*/1.txt") == ["a/1.txt", "c/1.txt"]
    assert names(tree / "a/*") == ["1.txt", "2.jsonl.gz"]
    assert names(tree / "a/1.txt") == ["1.txt"]
    assert names(tree / "a/[12].*") == ["1.txt", "2.jsonl.gz"]


def test_two_stars_go_through_folders(tree: Path) -> None:
    """At any depth."""
    assert names(tree / "**/1.txt") == ["a/1.txt", "a/b/1.txt", "c/1.txt"]
    assert names(tree / "a/**") == ["1.txt", "2.jsonl.gz", "b/1.txt"]


def test_a_file_that_two_patterns_match_is_read_once(tree: Path) -> None:
    """And keeps the name that the first pattern gave it."""
    assert names(tree / "*.txt", tree / "top.txt", tree / "**/1.txt", tree / "a/1.txt") == [
        "a/1.txt",
        "a/b/1.txt",
        "c/1.txt",
        "top.txt",
    ]


def test_the_same_name_in_two_folders_keeps_ids_apart(tree: Path) -> None:
    """Where names would meet, the whole path stands for them."""
    found = names(tree / "a/*.txt", tree / "c/1*.txt", tree / "top.txt")
    assert found == [str(tree / "a/1.txt"), str(tree / "c/1.txt"), "top.txt"]


def test_a_name_with_brackets_or_bytes_that_are_no_text(tree: Path) -> None:
    """A file of exactly the given name is that file; names stand in ids, so they are always text."""
    assert names(tree / "c/[k].txt") == ["[k].txt"]
    (tree / "d").mkdir()
    with open(os.fsencode(tree / "d") + b"/n\xff.txt", "wb"):
        assert names(tree / "d/*") == ["n\\udcff.txt"]


def test_formats_go_by_suffix() -> None:
    """Upper case too, and --input_format decides where it is given."""
    assert format_of("a.txt") == ("txt", None)
    assert format_of("A.JSONL.GZ") == ("jsonl", "gzip")
    assert format_of("a.b.csv.zst") == ("csv", "zstd")
    assert format_of("a.log.xz", "txt") == ("txt", "xz")
    assert format_of("part-00000", "parquet") == ("parquet", None)


def test_what_cannot_be_found_or_read_is_said(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for, and what there is instead."""
    said = refusal(lambda: names(tree / "a/1.tx"))
    assert said == f"--input {tree}/a/1.tx matches no file; {tree}/a holds 1.txt, ..."
    assert refusal(lambda: names(tree / "nope/*.txt")).startswith(f"--input {tree}/nope/*.txt matches no file; {tree} ")
    said = refusal(lambda: names(tree / "a"))
    assert said == f"--input {tree}/a matches no file; it is a directory: name the files in it, as in '{tree}/a/*'"
    said = refusal(lambda: names(tree / "c/notes.doc"))
    assert said == (
        f"{tree}/c/notes.doc: .doc names no format; known are txt, jsonl, csv, tsv, parquet, compressed also "
        ".gz, .bz2, .zst, .xz: say which it is with --input_format"
    )
    assert "no suffix names no format" in refusal(lambda: format_of("a/README"))
    assert "compressed within" in refusal(lambda: format_of("a.parquet.gz"))
    assert "extras gcp and aws" in refusal(lambda: names("foo://bucket/*.txt"))
    # As root, permissions forbid nothing.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert refusal(lambda: names(tree / "top.txt")) == f"{tree}/top.txt cannot be read: permission denied"


def kept(folder: Path, *keep: str, text: str = "text", id: str | None = None) -> dict[str, str]:
    schema = infer_kept_schema(find_shards([f"{folder}/*"]), Fields(text, id, keep))
    return {field.name: str(field.type) for field in schema}


def lines(path: Path, *records: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_types_of_kept_fields_of_jsonl(tmp_path: Path) -> None:
    """Numbers widen to floats, what is mixed becomes text, what is nested becomes JSON text."""
    lines(
        tmp_path / "a.jsonl",
        {"text": "t", "i": 1, "f": 1, "m": 1, "s": "x", "b": True, "l": [1], "o": {"deep": 1}, "never": None},
        {"text": "t", "i": None, "f": 0.5, "m": "x", "b": None},
    )
    assert kept(tmp_path, "i", "f", "m", "s", "b", "l", "o", "o.deep", "never") == {
        "i": "int64",
        "f": "double",
        "m": "string",
        "s": "string",
        "b": "bool",
        "l": "string",
        "o": "string",
        "o.deep": "int64",
        "never": "string",
    }


def test_types_of_kept_fields_of_csv_are_text(tmp_path: Path) -> None:
    """01 is not 1."""
    (tmp_path / "a.csv").write_text("text,n\nt,01\n")
    assert kept(tmp_path, "n") == {"n": "string"}


def test_types_of_kept_fields_of_parquet_stay(tmp_path: Path) -> None:
    """As they are in the file; a dictionary is how a column is stored, not what it holds."""
    table = pa.table({
        "text": ["t"],
        "when": pa.array([1], pa.timestamp("ns", "UTC")),
        "price": pa.array([Decimal("1.10")], pa.decimal128(10, 2)),
        "small": pa.array([1], pa.int32()),
        "word": pa.array(["x"]).dictionary_encode(),
        "m": pa.array([{"a": {"b": 1}}], pa.struct({"a": pa.struct({"b": pa.int16()})})),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    assert kept(tmp_path, "when", "price", "small", "word", "m.a.b") == {
        "when": "timestamp[ns, tz=UTC]",
        "price": "decimal128(10, 2)",
        "small": "int32",
        "word": "string",
        "m.a.b": "int16",
    }


def test_types_of_kept_fields_over_several_shards(tmp_path: Path) -> None:
    """One column has one type, which takes what all shards hold; where none does, that is an error."""
    lines(tmp_path / "a.jsonl", {"text": "t", "n": 1, "s": "x", "l": 1})
    table = {"text": ["t"], "n": pa.array([1], pa.int32()), "s": pa.array(["x"], pa.large_string()), "l": [[1]]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    assert kept(tmp_path, "n", "s") == {"n": "int64", "s": "string"}
    assert "kept field 'l' has types that do not go together: int64, list<" in refusal(lambda: kept(tmp_path, "l"))


def test_unknown_fields_are_said_with_those_that_are_there(tmp_path: Path) -> None:
    """Before anything starts: a text field, an id field, a kept field, and one behind a list."""
    lines(tmp_path / "a.jsonl", {"txet": "t", "c": [{"t": "x"}], "n": 1}, {"more": 1})
    there = "there are 'txet', 'c', 'n', 'more'".replace("'", "")
    assert refusal(lambda: kept(tmp_path)) == f"no record has the field 'text'; {there}"
    assert refusal(lambda: kept(tmp_path, "k", text="c[].t", id="i")) == f"no record has the field 'i', 'k'; {there}"
    assert refusal(lambda: kept(tmp_path, text="c[].text")) == f"no record has the field 'c[].text'; {there}"
    pq.write_table(pa.table({"c": [[{"t": "x"}]], "m": [{"a": 1}]}), tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").rename(tmp_path / "a.parquet")
    assert kept(tmp_path, text="c[].t") == {}
    for field in ("text", "c[].text", "m.b", "m.a.b"):
        assert (
            refusal(lambda field=field: kept(tmp_path, text=field))
            == f"no record has the field '{field}'; there are c, m"
        )


def test_fields_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    """Names of the output's own columns, one name twice, and lists gone through."""
    lines(tmp_path / "a.jsonl", {"text": "t", "c": [{"t": 1}]})
    for name in OWN_COLUMNS:
        assert refusal(lambda name=name: kept(tmp_path, name)).startswith(f"--keep_fields {name}: the output has")
    assert refusal(lambda: kept(tmp_path, "c", "c")) == "--keep_fields c,c: c stands there twice"
    assert refusal(lambda: kept(tmp_path, "c[].t")) == "c[].t: only --text_field may go through a list with []"
    assert refusal(lambda: kept(tmp_path, id="c[].t")) == "c[].t: only --text_field may go through a list with []"


def test_formats_without_fields_ignore_them(tmp_path: Path) -> None:
    """Lines of text have no fields; beside shards that have some, their kept values are null."""
    (tmp_path / "a.txt").write_text("x\n")
    assert kept(tmp_path, "n", id="k") == {"n": "string"}
    lines(tmp_path / "b.jsonl", {"text": "t", "k": 1, "n": 1})
    assert kept(tmp_path, "n", id="k") == {"n": "int64"}


def test_damaged_shards_do_not_keep_a_job_from_starting(tmp_path: Path) -> None:
    """Their rows will be rejected; the others tell what the fields are."""
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "c.csv").write_bytes(b'"open\n')
    assert kept(tmp_path, "n") == {"n": "string"}
    lines(tmp_path / "d.jsonl", {"text": "t", "n": 1})
    assert kept(tmp_path, "n") == {"n": "int64"}


def test_a_shard_that_vanished_is_said(tmp_path: Path) -> None:
    """With its path."""
    lines(tmp_path / "a.jsonl", {"text": "t"})
    shards = find_shards([str(tmp_path / "a.jsonl")])
    (tmp_path / "a.jsonl").unlink()
    said = refusal(lambda: infer_kept_schema(shards, Fields()))
    assert said == f"{tmp_path}/a.jsonl cannot be read: No such file or directory"
