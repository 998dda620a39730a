"""The fields of shards, checked before a run, and the types of the kept ones."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.shards import infer_kept_schema


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def kept(folder: Path, *keep: str, text: str = "text", id: str | None = None) -> dict[str, str]:
    schema = infer_kept_schema(find_shards([f"{folder}/*"]), Fields(text, id, keep))
    return {field.name: str(field.type) for field in schema}


def lines(path: Path, *records: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_types_of_kept_fields_of_jsonl(tmp_path: Path) -> None:
    """Numbers widen to floats, mixed types become text, lists and objects become JSON text."""
    lines(
        tmp_path / "a.jsonl",
        {
            "text": "t",
            "i": 1,
            "big": 2**63,
            "f": 1,
            "m": 1,
            "s": "x",
            "b": True,
            "l": [1],
            "o": {"deep": 1},
            "never": None,
        },
        {"text": "t", "i": None, "f": 0.5, "m": "x", "b": None},
    )
    assert kept(tmp_path, "i", "big", "f", "m", "s", "b", "l", "o", "o.deep", "never") == {
        "i": "int64",
        "big": "string",
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
    """They are those of the file; a dictionary is a way to store a column, not a type of its values."""
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
    """A column has one type that fits the values of all shards; if none does, that is an error."""
    lines(tmp_path / "a.jsonl", {"text": "t", "n": 1, "s": "x", "l": 1})
    table = {"text": ["t"], "n": pa.array([1], pa.int32()), "s": pa.array(["x"], pa.large_string()), "l": [[1]]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    assert kept(tmp_path, "n", "s") == {"n": "int64", "s": "string"}
    assert "kept field 'l' has types without a common one: int64, list<" in refusal(lambda: kept(tmp_path, "l"))


def test_of_many_fields_a_few_are_named(tmp_path: Path) -> None:
    """Those with similar names come first, long names are cut, and the message stays short."""
    header = [f"column{n}" for n in range(100_000)]
    (tmp_path / "a.csv").write_text(f"{','.join([*header, 'x' * 1000, 'Text'])}\n{',' * 100_001}\n")
    first = ", ".join(map(repr, header[:9]))
    assert refusal(lambda: kept(tmp_path)) == (
        f"no record has the field 'text'; the fields are 'Text', {first}, ... (100,002 in all)"
    )
    (tmp_path / "a.csv").write_text(f"{'x' * 1000}\ny\n")
    assert refusal(lambda: kept(tmp_path)) == f"no record has the field 'text'; the fields are '{'x' * 100}...'"
    (tmp_path / "a.csv").write_text(f"{','.join(header * 2)}\n")
    assert len(refusal(lambda: kept(tmp_path))) < 300 + len(str(tmp_path))


LIST, STRUCT = pa.list_(pa.field("item", pa.string())), pa.struct({"a": pa.string()})
COMMON = {
    "units of timestamps": ([pa.timestamp("ms"), pa.timestamp("us")], "timestamp[us]"),
    "units with a time zone": ([pa.timestamp("ns", "UTC"), pa.timestamp("us", "UTC")], "timestamp[ns, tz=UTC]"),
    "units of times": ([pa.time32("ms"), pa.time64("us")], "time64[us]"),
    "units of durations": ([pa.duration("ms"), pa.duration("us")], "duration[us]"),
    "a timestamp and a text": ([pa.timestamp("ms"), pa.string()], "string"),
    "time zones": ([pa.timestamp("us", "UTC"), pa.timestamp("us")], None),
    "time zones and a text": ([pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.string()], None),
    "a duration and a text": ([pa.duration("us"), pa.string()], None),
    "a duration and a number": ([pa.duration("us"), pa.int64()], None),
    "names of elements": ([LIST, pa.list_(pa.field("element", pa.string()))], "list<element: string>"),
    "elements that are not null": (
        [LIST, pa.list_(pa.field("item", pa.string(), nullable=False))],
        "list<element: string>",
    ),
    "large lists": ([LIST, pa.large_list(pa.large_string())], "list<element: string>"),
    "fields that are not null": (
        [STRUCT, pa.struct([pa.field("a", pa.string(), nullable=False)])],
        "struct<a: string>",
    ),
    "large bytes": ([pa.binary(), pa.large_binary()], "binary"),
    "unsigned integers": ([pa.uint64(), pa.uint32()], "uint64"),
    "signed and unsigned integers": ([pa.uint32(), pa.int8()], "int64"),
}


@pytest.mark.parametrize("case", COMMON)
def test_common_types_of_parquet(tmp_path: Path, case: str) -> None:
    """Types of the same values are one type; times get the finest unit, and none loses its unit or its time zone."""
    kinds, expected = COMMON[case]
    for order in (kinds, kinds[::-1]):
        for number, kind in enumerate(order):
            table = pa.table({"text": pa.nulls(0, pa.string()), "k": pa.nulls(0, kind)})
            pq.write_table(table, tmp_path / f"{number}.parquet", use_compliant_nested_type=False)
        if expected is None:
            message = refusal(lambda: kept(tmp_path, "k"))
            assert message.startswith("kept field 'k' has types without a common one: ")
        else:
            assert kept(tmp_path, "k") == {"k": expected}


def test_unknown_fields_are_refused_with_the_existing_ones(tmp_path: Path) -> None:
    """This is so for a text field, an id field, a kept field, and one inside a list."""
    lines(tmp_path / "a.jsonl", {"txet": "t", "c": [{"t": "x"}], "n": 1}, {"more": 1})
    existing = "the fields are 'txet', 'c', 'n', 'more'"
    assert refusal(lambda: kept(tmp_path)) == f"no record has the field 'text'; {existing}"
    assert refusal(lambda: kept(tmp_path, "k", text="c[].t", id="i")) == f"no record has the field 'i', 'k'; {existing}"
    assert refusal(lambda: kept(tmp_path, text="c[].text")) == f"no record has the field 'c[].text'; {existing}"
    pq.write_table(pa.table({"c": [[{"t": "x"}]], "m": [{"a": 1}]}), tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").rename(tmp_path / "a.parquet")
    assert kept(tmp_path, text="c[].t") == {}
    for field in ("text", "c[].text", "m.b", "m.a.b"):
        assert (
            refusal(lambda field=field: kept(tmp_path, text=field))
            == f"no record has the field '{field}'; the fields are 'c', 'm'"
        )


def test_fields_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    """The names of the output's other columns, a name twice, and paths through lists."""
    lines(tmp_path / "a.jsonl", {"text": "t", "c": [{"t": 1}]})
    columns = (
        "id",
        "text",
        "content_hash",
        "n_tokens",
        "truncated",
        "embedding",
        "shard",
        "row",
        "reason",
        "detail",
    )
    for name in columns:
        assert refusal(lambda name=name: kept(tmp_path, name)).startswith(f"--keep_fields {name}: the output has")
    one, two = refusal(lambda: kept(tmp_path, "id")), refusal(lambda: kept(tmp_path, "id", "shard"))
    assert "a column of that name already; rename it, as in --keep_fields NAME=id, or leave it out" in one
    assert (
        "columns of these names already; rename them, as in --keep_fields NAME=id,NAME=shard, or leave them out" in two
    )
    assert refusal(lambda: kept(tmp_path, "c", "c")) == "--keep_fields c,c: c occurs twice: name each field once"
    assert refusal(lambda: kept(tmp_path, "c[].t")) == (
        "--keep_fields c[].t: only --text_field and --id_field may contain []; keep the list itself"
    )
    message = refusal(lambda: kept(tmp_path, id="c[].t"))
    assert message.startswith("--id_field c[].t goes through another list than its --text_field text: both must be")


def test_fields_of_shards_without_fields_are_refused(tmp_path: Path) -> None:
    """Lines of text have no fields; next to shards that have some, their kept values are null."""
    (tmp_path / "a.txt").write_text("x\n")
    assert kept(tmp_path) == {}
    expected = (
        ": no shard has fields, since each line of txt is a text: leave the flag out, or give another --input_format"
    )
    assert refusal(lambda: kept(tmp_path, text="caption")) == "--text_field caption" + expected
    assert refusal(lambda: kept(tmp_path, id="k")) == "--id_field k" + expected
    assert refusal(lambda: kept(tmp_path, "n", "m", id="k")) == "--id_field k, --keep_fields n,m" + expected
    lines(tmp_path / "b.jsonl", {"text": "t", "k": 1, "n": 1})
    assert kept(tmp_path, "n", id="k") == {"n": "int64"}


ROWS = 2
COLUMNS: dict[str, pa.Array] = {
    "date": pa.array([datetime.date(2020, 1, 1)] * ROWS),
    "time": pa.array([1] * ROWS, pa.timestamp("us")),
    "bool": pa.array([True] * ROWS),
    "struct": pa.array([{"a": 1}] * ROWS),
    "map": pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int32())),
    "numbers": pa.array([[1]] * ROWS),
    "words": pa.array([["a"]] * ROWS),
    "view": pa.array([["a"]] * ROWS, pa.list_view(pa.string())),
    "float": pa.array([1.5] * ROWS),
    "number": pa.array([1] * ROWS, pa.uint8()),
    "text": pa.array(["a"] * ROWS),
    "bytes": pa.array([b"a"] * ROWS, pa.binary_view()),
    "word": pa.array(["a"] * ROWS).dictionary_encode(),
    "nulls": pa.nulls(ROWS),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * ROWS, pa.binary(16))),
    "uuids": pa.ListArray.from_arrays(
        [0, 1, 2], pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * ROWS, pa.binary(16)))
    ),
}
TEXTS = {"words", "text", "bytes", "word", "nulls"}
IDS = {"float", "number", "text", "bytes", "word", "nulls", "uuid"}
NOT_KEPT = {"view", "uuids"}


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_that_cannot_be_what_they_are_given_as_are_refused(tmp_path: Path, column: str) -> None:
    """Before the run, by name and type: as a text, as an id, and as a kept field."""
    table = pa.table({"good": ["x"] * ROWS, f"a {column}": COLUMNS[column]})
    pq.write_table(table, tmp_path / "a.parquet")
    name, kind = f"a {column}", pq.read_schema(tmp_path / "a.parquet").field(1).type
    if column in TEXTS:
        assert kept(tmp_path, text=name) == {}
    else:
        message = refusal(lambda: kept(tmp_path, text=name))
        assert message.startswith(
            f"{tmp_path}/a.parquet: field {name!r} is {kind}, which cannot be a text: give another"
        )
    if column in IDS:
        assert kept(tmp_path, text="good", id=name) == {}
    else:
        message = refusal(lambda: kept(tmp_path, text="good", id=name))
        assert message.startswith(
            f"{tmp_path}/a.parquet: field {name!r} is {kind}, which cannot be an id: give another"
        )
    if column in NOT_KEPT:
        message = refusal(lambda: kept(tmp_path, name, text="good"))
        assert f"field {name!r} is {kind}, which cannot be a kept field: leave it out of --keep_fields" in message
    else:
        assert list(kept(tmp_path, name, text="good")) == [name]


def test_types_inside_of_lists_and_structs_are_checked(tmp_path: Path) -> None:
    """A text field may lead into them, to a text and not to a number."""
    pq.write_table(pa.table({"c": [[{"t": "x", "n": 1}]], "m": [{"l": ["x"], "d": 1}]}), tmp_path / "a.parquet")
    assert kept(tmp_path, text="c[].t") == kept(tmp_path, text="m.l[]") == kept(tmp_path, text="m.l") == {}
    assert "field 'c[].n' is int64, which cannot be a text" in refusal(lambda: kept(tmp_path, text="c[].n"))
    assert "no record has the field 'm.d[]'" in refusal(lambda: kept(tmp_path, text="m.d[]"))
    assert "no record has the field 'm.l[].t'" in refusal(lambda: kept(tmp_path, text="m.l[].t"))


def test_headers_that_cannot_name_fields_are_refused(tmp_path: Path) -> None:
    """A field that occurs twice, and a header with another delimiter, which the message names."""
    start = f"{tmp_path}/a.csv: the header "
    for header, message in {
        "text,n,text,m,n": "has the field 'n', 'text' more than once: rename the others",
        "id;text;n": "'id;text;n' is a single field that contains ';': try --delimiter ';'",
        "id\ttext": "'id\\ttext' is a single field that contains '\\t': try --input_format tsv",
        "id|text": "'id|text' is a single field that contains '|': try --delimiter '|'",
    }.items():
        (tmp_path / "a.csv").write_text(f"{header}\n1;x\n")
        assert refusal(lambda: kept(tmp_path)) == start + message
    for header, delimiter, remedy in (
        ("text,n", ";", "leave --delimiter out"),
        ("text,n", "\t", "leave --delimiter out"),
        ("text\tn", ";", "try --input_format tsv without --delimiter"),
        ("text|n", ";", "try --delimiter '|'"),
    ):
        (tmp_path / "a.csv").write_text(f"{header}\n1,x\n")
        shards = find_shards([f"{tmp_path}/a.csv"], delimiter=delimiter)
        message = refusal(lambda shards=shards: infer_kept_schema(shards, Fields()))
        assert re.search(rf"is a single field that contains '.+': {re.escape(remedy)}$", message)
    (tmp_path / "a.csv").write_text("a;b\nx\n")
    assert kept(tmp_path, text="a;b") == {}
    (tmp_path / "a.csv").unlink()
    for header, flags in {"id,text": "--input_format csv", "id;text": "--input_format csv --delimiter ';'"}.items():
        (tmp_path / "a.tsv").write_text(f"{header}\n")
        assert refusal(lambda: kept(tmp_path)).endswith(f": try {flags}")


def test_shards_of_utf16_and_utf32_are_refused(tmp_path: Path) -> None:
    """The message says how to convert them; next to shards of UTF-8 the run reports them as damaged."""
    for encoding in ("UTF-16", "UTF-32"):
        for order in ("LE", "BE"):
            (tmp_path / "a.csv").write_bytes("\ufeffid,text\n1,x\n".encode(f"{encoding}-{order}"))
            assert refusal(lambda: kept(tmp_path)) == (
                f"{tmp_path}/a.csv: the text is {encoding} and must be UTF-8: convert it, as in iconv -f {encoding} "
                f"-t UTF-8 OLD > NEW"
            )
    lines(tmp_path / "b.jsonl", {"text": "t"})
    assert kept(tmp_path) == {}


def test_damaged_shards_do_not_prevent_a_run(tmp_path: Path) -> None:
    """The run reports them; the other shards show the fields."""
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "c.csv").write_bytes(b'"open\n')
    assert kept(tmp_path, "n") == {"n": "string"}
    lines(tmp_path / "d.jsonl", {"text": "t", "n": 1})
    assert kept(tmp_path, "n") == {"n": "int64"}


def test_a_shard_that_was_removed(tmp_path: Path) -> None:
    """The error names its path."""
    lines(tmp_path / "a.jsonl", {"text": "t"})
    shards = find_shards([str(tmp_path / "a.jsonl")])
    (tmp_path / "a.jsonl").unlink()
    message = refusal(lambda: infer_kept_schema(shards, Fields()))
    assert message == f"{tmp_path}/a.jsonl cannot be read: No such file or directory"
