"""The one type of all values of a kept field, wherever they are, and types that are given."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.readers import infer_schema, reader
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.writers.engine_limits import engine_notes
from tests.support.kept import read_kept
from tests.support.shards import write_lines

INTEGERS = st.integers(-(2**70), 2**70) | st.sampled_from(
    [0, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63)]
)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)
SHARDS = st.one_of(
    *(
        st.lists(st.lists(kind, max_size=30), min_size=1, max_size=4)
        for kind in (
            VALUES,
            st.none() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | INTEGERS,
            st.booleans() | st.none(),
            INTEGERS | st.floats(-1, 1),
        )
    )
)


def expected_type(values: list[object]) -> pa.DataType | None:
    """Return the type of a column with these values, by the rules of docs/input.md; None if it has none."""
    values = [value for value in values if value is not None]
    if values and all(isinstance(value, bool) for value in values):
        return pa.bool_()
    if values and all(type(value) in (int, float) for value in values):
        integers = [value for value in values if type(value) is int]
        if all(-(2**63) <= value < 2**63 for value in integers):
            if len(integers) == len(values):
                return pa.int64()
            return pa.float64() if all(abs(value) <= 2**53 for value in integers) else None
    return pa.string()


@pytest.mark.slow
@given(SHARDS)
@settings(max_examples=150, deadline=None)
def test_any_values_over_any_shards_end_in_one_type_that_holds_all_exactly(shards: list[list[object]]) -> None:
    """Or in the error, however little of the shards is known before they are read."""
    values = [value for shard in shards for value in shard]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "PEEKED_RECORDS", 2)
        patch.setattr(infer_schema, "PEEKED_SHARDS", 2)
        for number, shard in enumerate(shards):
            records = [{"text": "t", "k": value} for value in shard] or [{"text": "t"}]
            write_lines(Path(folder, f"{number}.jsonl"), *records)
        if all(value is None for value in values):
            values = [None]
            write_lines(Path(folder, "0.jsonl"), {"text": "t", "k": None})  # so that the field exists
        kind = expected_type(values)
        if kind is None:
            with pytest.raises(InputError, match=r"'k' (has types without a common one: |is ).*k:string"):
                read_kept(Path(folder), "k")
            return
        column = read_kept(Path(folder), "k")["k"]
    assert column.type == kind
    found = [value for value in column.to_pylist() if value is not None]
    written = [value for value in values if value is not None]
    assert len(found) == len(written)
    for value, exact in zip(found, written, strict=True):
        if kind == pa.string() and not isinstance(exact, str):
            assert json.loads(value) == exact
        else:
            assert value == exact


def test_a_field_may_appear_behind_the_first_records(tmp_path: Path) -> None:
    """Or in a shard of which nothing is looked at; one that no record has is an error."""
    write_lines(tmp_path / "a.jsonl", *[{"text": "t"}] * 1500, {"text": "t", "k": 7})
    assert read_kept(tmp_path, "k")["k"].to_pylist()[-1] == 7
    with pytest.raises(InputError, match="no record has the field 'l'; the fields are 'text'"):
        read_kept(tmp_path, "l")
    write_lines(tmp_path / "a.jsonl", *[{"text": "t"}] * 10)
    for number in range(40):
        (tmp_path / f"{number:02}.csv").write_text(
            f"text{',k' if number == 39 else ''}\nt{',x' if number == 39 else ''}\n"
        )
    assert read_kept(tmp_path, "k")["k"].to_pylist().count("x") == 1


# Columns of shards, and the type and values that all of them have together; without values there is no common type.
STRUCT = pa.struct({"a": pa.int32()})
UNITED = {
    "lists that are empty everywhere": (
        [pa.array([["x"]]), pa.array([[]], pa.list_(pa.null()))],
        "list<element: string>",
        [["x"], []],
    ),
    "lists of shorter integers": (
        [pa.array([[1]], pa.list_(pa.int32())), pa.array([[2**40]])],
        "list<element: int64>",
        [[1], [2**40]],
    ),
    "lists of integers and doubles": (
        [pa.array([[1]]), pa.array([[0.5, None], None])],
        "list<element: double>",
        [[1.0], [0.5, None], None],
    ),
    "lists of structs": (
        [pa.array([[{"a": 1}]], pa.list_(STRUCT)), pa.array([[{"b": "x"}]])],
        "list<element: struct<a: int32, b: string>>",
        [[{"a": 1, "b": None}], [{"a": None, "b": "x"}]],
    ),
    "structs with a field that appears late": (
        [pa.array([{"a": 1}], STRUCT), pa.array([{"a": 2, "b": True}])],
        "struct<a: int64, b: bool>",
        [{"a": 1, "b": None}, {"a": 2, "b": True}],
    ),
    "structs in another order": (
        [pa.array([{"a": 1, "b": "x"}]), pa.array([{"b": "y", "a": 0.5}])],
        "struct<a: double, b: string>",
        [{"a": 1.0, "b": "x"}, {"a": 0.5, "b": "y"}],
    ),
    "structs of null": (
        [pa.array([{"a": None}], pa.struct({"a": pa.null()})), pa.array([{"a": 7}], STRUCT)],
        "struct<a: int32>",
        [{"a": None}, {"a": 7}],
    ),
    "maps": (
        [
            pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
            pa.array([[("l", 0.5)]], pa.map_(pa.string(), pa.float64())),
        ],
        "map<string, double>",
        [[("k", 1.0)], [("l", 0.5)]],
    ),
    "decimals": (
        [pa.array([Decimal("1.5")], pa.decimal128(3, 1)), pa.array([Decimal("99.25")], pa.decimal128(4, 2))],
        "decimal128(4, 2)",
        [Decimal("1.50"), Decimal("99.25")],
    ),
    "decimals and integers": (
        [pa.array([Decimal("1.5")], pa.decimal128(3, 1)), pa.array([2**62])],
        "decimal128(21, 1)",
        [Decimal("1.5"), Decimal(2**62)],
    ),
    "dates": (
        [pa.array([datetime.date(2026, 1, 1)]), pa.array([datetime.date(2026, 1, 2)], pa.date64())],
        "date32[day]",
        [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)],
    ),
    "bytes": ([pa.array([b"ab"], pa.binary(2)), pa.array([b"c"])], "binary", [b"ab", b"c"]),
    "lists of several sizes": (
        [pa.array([[1, 2]], pa.list_(pa.int64(), 2)), pa.array([[3]])],
        "list<element: int64>",
        [[1, 2], [3]],
    ),
    "nulls before numbers": ([pa.nulls(1), pa.array([1], pa.int16())], "int16", [None, 1]),
    "lists and numbers": ([pa.array([[1]]), pa.array([1])], "list<element: int64> in ", None),
    "structs and text": ([pa.array([{"a": 1}]), pa.array(["x"])], "struct<a: int64> in ", None),
    "lists of text and numbers": (
        [pa.array([["x"]]), pa.array([[[1]]])],
        "list<element: list<element: int64>> in ",
        None,
    ),
    "doubles and decimals": ([pa.array([0.5]), pa.array([Decimal("1.5")])], "decimal128(2, 1) in ", None),
    "time zones": (
        [pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us"))],
        "timestamp[us] in ",
        None,
    ),
}


@pytest.mark.parametrize("case", UNITED)
@pytest.mark.parametrize("shards_before", [0, 40])
def test_the_types_of_all_parquet_shards_count(tmp_path: Path, case: str, shards_before: int) -> None:
    """Also those of shards of which no row is looked at before the run; the error names the shards of both types."""
    columns, kind, values = UNITED[case]
    columns = [*[columns[0]] * shards_before, *columns]
    for number, column in enumerate(columns):
        pq.write_table(pa.table({"text": ["t"] * len(column), "k": column}), tmp_path / f"{number:02}.parquet")
    if values is None:
        with pytest.raises(InputError, match="kept field 'k' has types without a common one: ") as caught:
            read_kept(tmp_path, "k")
        assert kind in str(caught.value)
        assert f"in {tmp_path}/{len(columns) - 1:02}.parquet" in str(caught.value)
        return
    column = read_kept(tmp_path, "k")["k"]
    assert str(column.type) == kind
    assert column.to_pylist()[shards_before:] == values


def test_an_integer_beyond_a_double_ends_the_run(tmp_path: Path) -> None:
    """Of JSON as of Parquet, whichever comes first; shard, row, field, both types and the remedy are named."""
    for first, second in ((0.5, 2**53 + 1), (2**53 + 1, 0.5)):
        write_lines(tmp_path / "a.jsonl", *[{"text": "t", "k": first}] * 1500)
        write_lines(tmp_path / "b.jsonl", *[{"text": "t"}] * 1500, {"text": "t", "k": second})
        with pytest.raises(InputError) as caught:
            read_kept(tmp_path, "k")
        for part in ("'k'", "double", "int64 beyond 2^53", f"{tmp_path}/b.jsonl, row 1500", "--keep_fields k:string"):
            assert part in str(caught.value)
        values = read_kept(tmp_path, "k:string")["k"].to_pylist()
        assert set(values) == {None, str(first), str(second)}
        (tmp_path / "b.jsonl").unlink()
    pq.write_table(pa.table({"text": ["t"], "k": [0.5]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["t", "t"], "k": [1, 2**53 + 1]}), tmp_path / "b.parquet")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"b.parquet, row 1: kept field 'k' is 9007199254740993 \(int64\), and its column, double"
    ):
        read_kept(tmp_path, "k")


NOON = datetime.time(12, 30)
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
# A field as given, the values in jsonl, csv or Parquet, and those of the column or what the error says.
GIVEN: dict[str, tuple[str, str, list[object] | pa.Array, pa.DataType, list[object] | str]] = {
    "integers to double": ("k:double", "jsonl", [1, None], pa.float64(), [1.0, None]),
    "whole doubles to integers": ("k:int8", "jsonl", [1.0, 2], pa.int8(), [1, 2]),
    "doubles to integers": ("k:int64", "jsonl", [1, 0.5], pa.int64(), "row 1: kept field 'k' is 0.5 (double)"),
    "too large": ("k:int8", "jsonl", [1, 300], pa.int8(), "row 1: kept field 'k' is 300 (int64)"),
    "rounded": ("k:float", "jsonl", [0.5, 0.1], pa.float32(), "row 1: kept field 'k' is 0.1 (double)"),
    "all to text": (
        "k:string",
        "jsonl",
        [1, 0.5, True, [1], "x", 2**70],
        pa.string(),
        ["1", "0.5", "true", "[1]", "x", str(2**70)],
    ),
    "moments of JSON": (
        "k:timestamp_us",
        "jsonl",
        ["2026-01-02T03:04:05.000006", None],
        pa.timestamp("us"),
        [MOMENT, None],
    ),
    "numbers of csv": ("k:double", "csv", ["0.5", "", "1e3"], pa.float64(), [0.5, None, 1000.0]),
    "integers of csv": ("k:int64", "csv", ["7", ""], pa.int64(), [7, None]),
    "leading zeros": ("k:int64", "csv", ["7", "02134"], pa.int64(), "row 1: kept field 'k' is 02134 (string)"),
    "bools of csv": ("k:bool", "csv", ["true", "False", ""], pa.bool_(), [True, False, None]),
    "words of csv": ("k:double", "csv", ["0.5", "x"], pa.float64(), "row 1: kept field 'k' is x (string)"),
    "large integers as doubles": (
        "k:double",
        "csv",
        ["7", str(2**53 + 1)],
        pa.float64(),
        "row 1: kept field 'k' is 9007",
    ),
    "large integers that doubles hold": ("k:double", "csv", [str(2**60), "-1e300"], pa.float64(), [2.0**60, -1e300]),
    "beyond a double": ("k:double", "csv", ["7", "1e400"], pa.float64(), "row 1: kept field 'k' is 1e400 (string)"),
    "no numbers": ("k:double", "csv", ["inf", "7"], pa.float64(), [math.inf, 7.0]),
    "fractions as float": ("k:float", "csv", ["0.5", "0.1"], pa.float32(), "row 1: kept field 'k' is 0.1 (string)"),
    "integers as float": (
        "k:float",
        "csv",
        ["16777216", "16777217"],
        pa.float32(),
        "row 1: kept field 'k' is 16777217",
    ),
    "times of csv": (
        "k:time_us",
        "csv",
        ["12:30:00", "", "12:30:00.5"],
        pa.time64("us"),
        [NOON, None, NOON.replace(microsecond=500_000)],
    ),
    "times of csv in milliseconds": ("k:time_ms", "csv", ["12:30:00"], pa.time32("ms"), [NOON]),
    "no times": ("k:time_us", "csv", ["12:30:00", "noon"], pa.time64("us"), "row 1: kept field 'k' is noon (string)"),
    "moments with a zone": (
        "k:timestamp_us",
        "jsonl",
        ["2026-01-02T03:04:05", "2026-01-02T03:04:05+02:00"],
        pa.timestamp("us"),
        "row 1: kept field 'k' is 2026-01-02T03:04:05+02:00 (string with a time zone, which the type does not have)",
    ),
    "dates of csv": ("k:date", "csv", ["2026-01-02"], pa.date32(), [MOMENT.date()]),
    "nanoseconds": (
        "k:timestamp_us",
        "parquet",
        pa.array([MOMENT], pa.timestamp("ns", "UTC")),
        pa.timestamp("us", "UTC"),
        [MOMENT.replace(tzinfo=datetime.UTC)],
    ),
    "nanoseconds that count": (
        "k:timestamp_us",
        "parquet",
        pa.array([0, 1], pa.timestamp("ns")),
        pa.timestamp("us"),
        "row 1: kept field 'k' is ",
    ),
    "half floats": ("k:float", "parquet", pa.array([1.5], pa.float16()), pa.float32(), [1.5]),
    "texts of Parquet": ("k:int64", "parquet", pa.array(["1", None]), pa.int64(), [1, None]),
    "times to text": ("k:string", "parquet", pa.array([1], pa.time64("us")), pa.string(), ["00:00:00.000001"]),
    "lists to numbers": ("k:double", "parquet", pa.array([[1]]), pa.float64(), "the field is list<element: int64> in "),
    "a colon in the name": ("a:b", "jsonl", [1], pa.int64(), [1]),
    "a colon and a type": ("a:b:double", "jsonl", [1], pa.float64(), [1.0]),
    "another name": ("n=k:double", "jsonl", [1], pa.float64(), [1.0]),
    "the name of a column": ("source_id=id", "jsonl", [1], pa.int64(), [1]),
    "an equals sign": ("n=a=b", "jsonl", [1], pa.int64(), [1]),
    "an unknown type": (
        "k:datetime",
        "jsonl",
        [1],
        pa.int64(),
        "no record has the field 'k:datetime'; the fields are 'k', 'text'; types are string, bool, ",
    ),
}


@pytest.mark.parametrize("case", GIVEN)
@pytest.mark.parametrize("times", [1, 20])
def test_types_and_names_that_are_given(tmp_path: Path, case: str, times: int) -> None:
    """A value is cast if that loses nothing, and ends the run otherwise, also among many rows that are read at once."""
    field, form, values, kind, expected = GIVEN[case]
    name = {"a:b": "a:b", "a:b:double": "a:b", "source_id=id": "id", "n=a=b": "a=b"}.get(field, "k")
    values = [*values] * times if not isinstance(values, pa.Array) else pa.concat_arrays([values] * times)
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.table({name: values, "text": ["t"] * len(values)}), path)
    elif form == "csv":
        path.write_text("".join(f"{value},t\n" for value in [name, *values]).replace(",t", ",text", 1))
    else:
        write_lines(path, *({name: value, "text": "t"} for value in values))
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            read_kept(tmp_path, field)
        assert expected in str(caught.value)
        return
    column = read_kept(tmp_path, field)[field.partition("=")[0] if "=" in field else name]
    assert (column.type, column.to_pylist()) == (kind, expected * times)


def test_a_name_that_ends_like_a_type(tmp_path: Path) -> None:
    """The last colon gives a type: the error says how such a field is named."""
    write_lines(tmp_path / "a.jsonl", {"a:int64": 1, "text": "t"})
    with pytest.raises(InputError, match="for the field 'a:int64' write a:int64:int64"):
        read_kept(tmp_path, "a:int64")
    assert read_kept(tmp_path, "a:int64:int64")["a:int64"].to_pylist() == [1]


def test_notes_on_engines_name_the_field(tmp_path: Path) -> None:
    """The remedy is what --keep_fields takes, also for a field with another name in the output."""
    kept = pa.schema([pa.field("c", pa.timestamp("ns"))])
    (note,) = engine_notes(kept, ["id", "c"], {"c": "created"})
    assert "--keep_fields c=created:timestamp_us" in note
    (note,) = engine_notes(kept, ["id", "c"], {"c": "c"})
    assert "--keep_fields c:timestamp_us" in note
