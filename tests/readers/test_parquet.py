"""Rows of Parquet."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.readers.batch_builder import BatchBuilder
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.corpus import embed, read
from tests.support.shards import ids, infer_kept_schema, read_rows, read_shard, reasons, texts

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
    """No value becomes a Python object: nanoseconds, years after 9999 and decimals stay, with bad rows and without."""
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


MOMENT = datetime.datetime(2026, 1, 2, 13, 45)
# (a column of one shard, the type of the kept field, the values that fit it)
OTHER_TYPES: dict[str, tuple[pa.Array, pa.DataType, list[object]]] = {
    "text to integers": (pa.array(["02134", "1", None]), pa.int64(), [None]),
    "text to booleans": (pa.array(["true", "0"]), pa.bool_(), []),
    "text to dates": (pa.array(["2020-01-01"]), pa.date32(), []),
    "integers to booleans": (pa.array([7, 1]), pa.bool_(), []),
    "integers to shorter ones": (pa.array([127, 128]), pa.int8(), [127]),
    "integers to unsigned ones": (pa.array([1, -1]), pa.uint64(), [1]),
    "integers to doubles": (pa.array([2**53, 2**53 + 1]), pa.float64(), [2.0**53]),
    "integers to floats": (pa.array([1, 2**24 + 1]), pa.float32(), [1.0]),
    "integers to half floats": (pa.array([1, 4097]), pa.float16(), [1.0]),
    "integers to moments": (pa.array([1]), pa.timestamp("us"), []),
    "integers to decimals": (pa.array([7], pa.int8()), pa.decimal128(5, 2), [Decimal("7.00")]),
    "doubles to floats": (pa.array([0.5, 0.1, 1e300, float("inf"), None]), pa.float32(), [0.5, float("inf"), None]),
    "doubles to integers": (pa.array([2.0, 2.5]), pa.int64(), [2]),
    "doubles to decimals": (pa.array([0.5]), pa.decimal128(5, 1), []),
    "decimals to doubles": (pa.array([Decimal("1.10")]), pa.float64(), []),
    "decimals to coarser ones": (pa.array([Decimal("1.10"), Decimal("1.15")]), pa.decimal128(5, 1), [Decimal("1.1")]),
    "moments to dates": (pa.array([MOMENT, datetime.datetime(2026, 1, 2)]), pa.date32(), []),
    "moments to coarser ones": (pa.array([MOMENT, MOMENT.replace(microsecond=5)]), pa.timestamp("ms"), [MOMENT]),
    "moments to finer ones": (pa.array([MOMENT], pa.timestamp("ms")), pa.timestamp("us"), [MOMENT]),
    "moments in a time zone": (pa.array([MOMENT], pa.timestamp("us", "UTC")), pa.timestamp("us"), []),
    "durations to text": (pa.array([datetime.timedelta(1)]), pa.string(), []),
    "numbers to text": (pa.array([1.5, 2.0]), pa.string(), ["1.5", "2"]),
    "bytes to text": (pa.array([b"a", b"\xff"]), pa.string(), ["a"]),
    "large lists": (pa.array([["a"]], pa.large_list(pa.large_string())), pa.list_(pa.string()), [["a"]]),
    "lists of null": (pa.array([[], None, [None]], pa.list_(pa.null())), pa.list_(pa.string()), [[], None, [None]]),
    "lists of text": (pa.array([["1", "02"]]), pa.list_(pa.int64()), []),
    "lists of doubles": (pa.array([[0.1], None, [0.5]]), pa.list_(pa.float32()), [None, [0.5]]),
    "structs": (pa.array([{"a": 1}, {"a": 300}]), pa.struct({"a": pa.int8()}), [{"a": 1}]),
    "structs of doubles": (pa.array([{"a": 0.1}, {"a": 0.5}]), pa.struct({"a": pa.float32()}), [{"a": 0.5}]),
    "structs with more": (pa.array([{"a": 1, "b": 2}]), pa.struct({"a": pa.int64()}), []),
    "structs with less": (
        pa.array([{"b": 1}, None]),
        pa.struct({"a": pa.string(), "b": pa.float64()}),
        [{"a": None, "b": 1.0}, None],
    ),
    "lists of structs with less": (
        pa.array([[{"b": 1}], []]),
        pa.list_(pa.struct({"b": pa.int64(), "c": pa.null()})),
        [[{"b": 1, "c": None}], []],
    ),
    "maps": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())), pa.map_(pa.string(), pa.int64()), [[("a", 1)]]),
}


@pytest.mark.parametrize("case", OTHER_TYPES)
def test_kept_values_of_another_type_fit_exactly_or_end_the_run(tmp_path: Path, case: str) -> None:
    """Arrow's cast would make 2134 of "02134"; bytes that are not UTF-8 cost only their row."""
    column, kind, expected = OTHER_TYPES[case]
    path, found, ends = tmp_path / "a.parquet", list[object](), 0
    for row in range(len(column)):
        pq.write_table(pa.table({"text": ["t"], "k": column.slice(row, 1)}), path)
        try:
            rows, rejected = read_rows(path, keep=("k",), kept=pa.schema({"k": kind}))
        except InputError:
            ends += 1
            continue
        found += [row["k"] for row in rows]
        assert [row["reason"] for row in rejected] == ["not UTF-8"] * (case == "bytes to text" and not rows)
    assert found == expected
    assert ends == len(column) - len(expected) - (case == "bytes to text")


def test_a_kept_nan_fits_a_shorter_float(tmp_path: Path) -> None:
    """It equals no number, not even itself, and is kept."""
    pq.write_table(pa.table({"text": ["t"], "k": [float("nan")]}), tmp_path / "a.parquet")
    ((row,), rejected) = read_rows(tmp_path / "a.parquet", keep=("k",), kept=pa.schema({"k": pa.float32()}))
    assert (str(row["k"]), rejected) == ("nan", [])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), "d"]
)
def test_texts_of_parquet_have_any_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    """All of Arrow's types of text are texts, and bytes are if they are UTF-8."""
    values = pa.array(["dog", None, "Käse", "", " \u3000"])
    table = pa.table({"text": values.dictionary_encode() if kind == "d" else values.cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, rejected = read_rows(tmp_path / "a.parquet")
    assert texts(rows) == ["dog", "Käse"]
    assert reasons(rejected) == [("1", "null text"), ("3", "empty text"), ("4", "empty text")]
    pq.write_table(table.slice(0, 1), tmp_path / "a.parquet")
    assert texts(read_rows(tmp_path / "a.parquet")[0]) == ["dog"]


def test_texts_of_parquet_of_another_type_are_rejected(tmp_path: Path) -> None:
    """A number is not a text, as in JSON; this is found in the rows of shards that are not looked at before the run."""
    for values in ([1, 2], [1.5, 2.5], [True, False], [datetime.date(2020, 1, 1)] * 2, [{"a": 1}] * 2):
        pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
        _, rejected = read_rows(tmp_path / "a.parquet", kept=pa.schema([]))
        assert reasons(rejected) == [("0", "wrong type"), ("1", "wrong type")]


def unchecked_text(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    """Return a column of text that may not be UTF-8."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers()).cast(kind)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_text_that_is_not_utf8_costs_only_its_row(tmp_path: Path, kind: pa.DataType) -> None:
    """Arrow does not check the texts it reads; the reader does, also in ids, kept fields and structs."""
    mixed = unchecked_text([b"a", b"\xff", b"c"], kind)
    good = pa.array(["x", "y", "z"])
    path = tmp_path / "a.parquet"
    for text, key, word in ((mixed, good, good), (good, mixed, good), (good, good, mixed)):
        pq.write_table(pa.table({"text": text, "k": key, "word": word}), path)
        rows, rejected = read_rows(path, id="k", keep=("word",))
        assert ([row["row"] for row in rows], reasons(rejected)) == ([0, 2], [("1", "not UTF-8")])
    pq.write_table(pa.table({"m": pa.StructArray.from_arrays([mixed], ["text"])}), path)
    rows, rejected = read_rows(path, text="m.text")
    assert (texts(rows), reasons(rejected)) == (["a", "c"], [("1", "not UTF-8")])
    pq.write_table(pa.table({"text": good, "m": pa.StructArray.from_arrays([mixed], ["word"])}), path)
    rows, rejected = read_rows(path, keep=("m",))
    assert (texts(rows), reasons(rejected)) == (["x", "z"], [("1", "not UTF-8")])
    pq.write_table(pa.table({"m": pa.ListArray.from_arrays([0, 3], mixed)}), path)
    rows, rejected = read_rows(path, text="m[]")
    assert (ids(rows), ids(rejected)) == (["a.parquet#0/0", "a.parquet#0/2"], ["a.parquet#0/1"])


def test_a_damaged_row_group_costs_only_its_rows(tmp_path: Path) -> None:
    """One rejected row reports a damaged row group; a broken footer costs the file."""
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
    rows, rejected = read_rows(path)
    assert [row["row"] for row in rows] == [*range(100), *range(200, 300)]
    assert reasons(rejected) == [("300", "damaged shard")]
    assert "row group 1 of 3" in str(rejected[0]["detail"])
    for content in (whole[:-20], whole[:-1], b"PAR1", b"no parquet", b"PAR1" + bytes(40) + b"PAR1"):
        path.write_bytes(content)
        assert reasons(read_rows(path)[1]) == [("0", "damaged shard")]


def test_a_name_that_occurs_twice_costs_the_shard(tmp_path: Path) -> None:
    """No column says which of them is meant; one that is not read may have any name."""
    path = tmp_path / "a.parquet"
    repeated = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["x", "x"])
    columns = [pa.array(["1"]), pa.array(["2"]), pa.ListArray.from_arrays([0, 1], repeated), pa.array(["t"])]
    pq.write_table(pa.Table.from_arrays(columns, ["k", "k", "m", "text"]), path)
    assert texts(read_rows(path)[0]) == ["t"]
    for name, fields in {"k": {"text": "k"}, "m[].x": {"text": "m[].x"}}.items():
        rows, (rejected,) = read_rows(path, kept=pa.schema([]), **fields)
        message = f"the schema has the field {name!r} more than once: rename the others"
        assert (rows, rejected["reason"], rejected["detail"]) == ([], "damaged shard", message)
        with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
            infer_kept_schema(find_shards([str(path)]), Fields(**fields))


@pytest.mark.parametrize("caption", [["a", "b", "c"], ["a", "b", " "]], ids=["clean", "with a bad row"])
def test_uuids_are_ids(tmp_path: Path, caption: list[str]) -> None:
    """In their text form, with any tool that writes them."""
    values = [uuid.UUID(int=n << 64 | 5) for n in range(2)]
    storage = pa.array([*(value.bytes for value in values), None], pa.binary(16))
    table = pa.table({"id": pa.ExtensionArray.from_storage(pa.uuid(), storage), "text": caption})
    for store_schema in (True, False):
        pq.write_table(table, tmp_path / "a.parquet", store_schema=store_schema)
        rows, rejected = read_rows(tmp_path / "a.parquet", id="id", keep=())
        assert ids(rows) == list(map(str, values))
        assert ("2", "missing field") in reasons(rejected)


@pytest.mark.slow
def test_views_are_kept(tmp_path: Path) -> None:
    """In a run too, with earlier vectors: as plain strings and bytes, which all of Arrow's functions take."""
    kinds = {
        "s": pa.string_view(),
        "b": pa.binary_view(),
        "m": pa.struct({"s": pa.string_view(), "n": pa.int8()}),
        "l": pa.list_(pa.string_view()),
    }
    values: dict[str, list[object]] = {
        "s": ["x", None, "z"],
        "b": [b"x", b"\xff", None],
        "m": [{"s": "x", "n": 1}, None, {"s": None, "n": 2}],
        "l": [["x", None], [], None],
    }
    columns = {name: pa.array(values[name], kind) for name, kind in kinds.items()}
    table = pa.table({"id": ["1", "2", "3"], "text": ["a", "b", "a"], **columns})
    pq.write_table(table, tmp_path / "a.parquet")
    for _ in range(2):
        embed(tmp_path / "a.parquet", tmp_path / "out", id_field="id", keep_fields=list(kinds))
    rows = read(tmp_path / "out")
    assert {name: rows[name].to_pylist() for name in kinds} == values
    assert [str(rows.schema.field(name).type).split("<")[0] for name in kinds] == ["string", "binary", "struct", "list"]


MEBIBYTE = bytes(1 << 20)


@pytest.mark.parametrize(
    "value",
    [MEBIBYTE, [MEBIBYTE], {"a": MEBIBYTE, "b": "x"}, [("a", MEBIBYTE)]],
    ids=["bytes", "list", "struct", "map"],
)
def test_the_kept_values_of_a_document_are_counted_for_each_of_its_texts(tmp_path: Path, value: object) -> None:
    """A document of 100 chunks and 1 MiB of kept bytes does not become a batch of 100 MiB."""
    kind = pa.map_(pa.string(), pa.binary()) if value == [("a", MEBIBYTE)] else None
    table = pa.table({"c": [[{"text": f"chunk {n}"} for n in range(100)]], "k": pa.array([value], kind)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    (shard,) = find_shards([str(tmp_path / "a.parquet")])
    fields = Fields("c[].text", keep=("k",))
    batches = [rows for rows, _ in read_shard(shard, fields, infer_kept_schema([shard], fields))]
    assert sum(rows.num_rows for rows in batches) == 100
    assert max(rows.nbytes for rows in batches) < 20 << 20


def test_kept_values_of_rejected_rows_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to 15 rejected rows of 1 MiB each, a small kept value does not hold these in memory until 4,096 rows are read."""
    rows = [{"text": "good", "k": b"x"}, *({"k": MEBIBYTE} for _ in range(15))] * 16
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=16, compression="zstd")
    (shard,) = find_shards([str(tmp_path / "a.parquet")])
    before, whole, allocated = pa.total_allocated_bytes(), BatchBuilder.flush, list[int]()

    def flush(builder: BatchBuilder) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        allocated.append(pa.total_allocated_bytes() - before)
        return whole(builder)

    monkeypatch.setattr(BatchBuilder, "flush", flush)
    batches = list(read_shard(shard, Fields(keep=("k",)), pa.schema([("k", pa.binary())])))
    assert (sum(good.num_rows for good, _ in batches), sum(bad.num_rows for _, bad in batches)) == (16, 240)
    assert max(allocated) < 64 << 20
