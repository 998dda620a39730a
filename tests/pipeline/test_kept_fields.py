"""Kept fields in whole runs: no row is lost, the type holds all values, and notes say what engines refuse."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.cli.embed_command import run_summary
from audioclip_beam.pipeline.cli.plan_command import plan_summary
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.prepare.job import prepare_job
from audioclip_beam.pipeline.readers import infer_schema, reader
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.run.plan_pipeline import count_changes
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support.corpus import StubHead, embed, read, write_jsonl
from tests.support.snapshots import directory_of

Row = dict[str, object]


def rows_of(shard: str, values: list[object]) -> list[Row]:
    return [{"id": f"{shard}{n:02}", "text": f"text {n} of {shard}", "k": value} for n, value in enumerate(values)]


def plan(source: Path, output: Path, **options: object) -> str:
    chosen = EmbedOptions(input=[str(source)], output=str(output), **options)
    job = prepare_job(chosen, StubHead())
    return plan_summary(job, count_changes(job, chosen, None))


def test_the_type_of_the_seventeenth_shard(tmp_path: Path) -> None:
    """Every footer counts; no row is rejected."""
    for number in range(1, 18):
        column = pa.array([0.25, 0.5, 0.75]) if number == 17 else pa.array([number] * 3)
        ids = [f"{number:02}-{row}" for row in range(3)]
        pq.write_table(pa.table({"id": ids, "text": ids, "score": column}), tmp_path / f"{number:02}.parquet")
    manifest, _ = embed(tmp_path / "*.parquet", tmp_path / "out", id_field="id", keep_fields=["score"])
    assert (manifest["counts"]["embedded"], manifest["counts"]["rejected"]) == (51, 0)
    rows = read(tmp_path / "out")
    assert rows["score"].type == pa.float64()
    assert rows["score"].to_pylist()[-3:] == [0.25, 0.5, 0.75]


def test_a_list_that_is_empty_everywhere(tmp_path: Path) -> None:
    """Null fits every type, also as the element of a list."""
    for name, column in {"a": pa.array([["x"], ["y"]]), "b": pa.array([[], []], pa.list_(pa.null()))}.items():
        ids = [f"{name}{row}" for row in range(2)]
        pq.write_table(pa.table({"id": ids, "text": ids, "f": column}), tmp_path / f"{name}.parquet")
    embed(tmp_path / "*.parquet", tmp_path / "out", id_field="id", keep_fields=["f"])
    assert read(tmp_path / "out")["f"].to_pylist() == [["x"], ["y"], [], []]


@pytest.fixture
def little_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one record of one shard is looked at before a run."""
    monkeypatch.setattr(reader, "PEEKED_RECORDS", 1)
    monkeypatch.setattr(infer_schema, "PEEKED_SHARDS", 1)


# Values of two shards in the first run, those of a new one in the second, and the column after each.
NIGHTS: dict[str, tuple[list[object], list[object], str, list[object], str, list[object]]] = {
    "integers, then doubles": ([1, 2], [0.5], "double", [1.0, 2.0, 0.5], "double", [1.0, 2.0, 0.5, 3.0]),
    "a double in the second night": ([1], [2], "int64", [1, 2], "double", [1.0, 2.0, 3.0, 0.5]),
    "nulls, then integers": ([None, None], [7], "int64", [None, None, 7], "int64", [None, None, 7, 3]),
    "integers after a night of nulls": ([None], [None], "string", [None, None], "int64", [None, None, 3, 4]),
    "text late": ([1, 2.5], ["x"], "string", ["1", "2.5", "x"], "string", ["1", "2.5", "x", "3"]),
    "text in the second night": ([True], [False], "bool", [True, False], "string", ["true", "false", "3", "x"]),
    "a list late": ([1], [[1, {"a": None}]], "string", ["1", '[1,{"a":null}]'], "string", ["1", '[1,{"a":null}]', "3"]),
    "a large integer late": ([1], [2**70], "string", ["1", str(2**70)], "string", ["1", str(2**70), "3"]),
}
SECOND: dict[str, list[object]] = {
    "a double in the second night": [3, 0.5],
    "integers after a night of nulls": [3, 4],
    "text in the second night": [3, "x"],
}


@pytest.mark.slow
@pytest.mark.parametrize("no_dedupe", [False, True])
@pytest.mark.parametrize("case", NIGHTS)
def test_a_value_may_widen_the_type_in_the_run_itself(
    tmp_path: Path, case: str, no_dedupe: bool, little_is_known: None
) -> None:
    """In a first run and in a night, which embeds only what is new; its plan names the wider type as its notes do."""
    first, late, kind, column, later_kind, later_column = NIGHTS[case]
    options = {"id_field": "id", "keep_fields": ["k"], "no_dedupe": no_dedupe}
    write_jsonl(tmp_path / "in/a.jsonl", rows_of("a", first))
    write_jsonl(tmp_path / "in/b.jsonl", rows_of("b", late))
    # Rows without the field, so many that the next run carries their segment over.
    write_jsonl(tmp_path / "in/z.jsonl", [{"id": f"z{n}", "text": f"z {n}"} for n in range(50)])
    embed(tmp_path / "in/*", tmp_path / "out", **options)
    rows = read(tmp_path / "out").filter(pc.less(pc.field("id"), "c"))
    assert (str(rows["k"].type), rows["k"].to_pylist()) == (kind, column)
    write_jsonl(tmp_path / "in/c.jsonl", [{"id": "c", "text": "new"}, *rows_of("d", SECOND.get(case, [3]))])
    planned = "" if no_dedupe else plan(tmp_path / "in/*", tmp_path / "out", id_field="id", keep_fields=["k"])
    manifest, texts = embed(tmp_path / "in/*", tmp_path / "out", **options)
    rows = read(tmp_path / "out").filter((pc.field("id") < "z") & (pc.field("id") != "c"))
    assert (str(rows["k"].type), rows["k"].to_pylist()) == (later_kind, later_column)
    assert manifest["counts"]["rejected"] == 0
    assert manifest["kept"] == {"k": later_kind}
    if not no_dedupe:
        assert len(texts) == 1 + len(SECOND.get(case, [3]))
        assert manifest["counts"]["read"] == len(texts)
        notes = [note for note in manifest["notes"] if "kept field 'k' is" in note and "are written again" in note]
        assert len(notes) == (kind != later_kind)
        assert all(f"note      {note}" in planned for note in notes)
        assert validate(str(tmp_path / "out"), None).valid


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write_jsonl(folder / "b.jsonl", rows_of("b", [1, 0.5])),
        lambda folder: pq.write_table(pa.table({"id": ["b"], "text": ["b"], "k": [0.5]}), folder / "b.parquet"),
    ],
)
def test_what_has_no_common_type_ends_the_run_before_anything_is_published(
    tmp_path: Path, make: Callable[[Path], object], little_is_known: None
) -> None:
    """`plan` says the same; with the type that the error names, every row has its value."""
    write_jsonl(tmp_path / "in/a.jsonl", rows_of("a", [1, 2**53 + 1]))
    make(tmp_path / "in")
    for run in (embed, plan):
        with pytest.raises(
            (InputError, RuntimeError), match=r"'k'.*double.*int64 beyond 2\^53.*k:string.*a.jsonl, row 1"
        ):
            run(tmp_path / "in/*", tmp_path / "out", id_field="id", keep_fields=["k"])
    assert current_name(str(tmp_path / "out")) is None
    embed(tmp_path / "in/*", tmp_path / "out", id_field="id", keep_fields=["k:string"])
    assert read(tmp_path / "out")["k"].to_pylist()[:2] == ["1", str(2**53 + 1)]


def test_a_field_with_the_name_of_a_column_gets_another_name(tmp_path: Path) -> None:
    """The usage error names the form, and the form works."""
    write_jsonl(tmp_path / "a.jsonl", [{"id": 1, "text": "x", "shard": "s", "embedding": [1]}])
    for name in ("id", "text", "shard", "content_hash", "n_tokens", "truncated", "embedding"):
        with pytest.raises(InputError, match=f"as in --keep_fields NAME={name},"):
            embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", keep_fields=[name])
    kept = ["source=shard", "vector=embedding", "number=id:double"]
    embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", keep_fields=kept)
    (row,) = read(tmp_path / "out").select(["shard", "source", "vector", "number"]).to_pylist()
    assert row == {"shard": "a.jsonl", "source": "s", "vector": "[1]", "number": 1.0}


def test_types_that_an_engine_refuses_are_named(tmp_path: Path) -> None:
    """In the summary, in plan and in the manifest, with the type that mends it."""
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    table = {"id": ["a"], "text": ["t"], "created": pa.array([moment], pa.timestamp("ns")), "Text": ["x"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    options = {"id_field": "id", "keep_fields": ["created", "Text"]}
    planned = plan(tmp_path / "a.parquet", tmp_path / "out", **options)
    manifest, _ = embed(tmp_path / "a.parquet", tmp_path / "out", **options)
    assert manifest["notes"] == [
        "Spark 3.5 cannot read part files with the kept field 'created', which is timestamp[ns]: --keep_fields "
        "created:timestamp_us if they must",
        "Spark 3.5 cannot read part files with the name of the kept field 'Text': give it another, as in --keep_fields "
        "NAME=Text, if they must",
    ]
    for note in manifest["notes"]:
        assert f"note      {note}" in planned
        assert f"note      {note}" in run_summary(str(tmp_path / "out"), manifest)
    mended = {"id_field": "id", "keep_fields": ["created:timestamp_us", "word=Text"]}
    manifest, _ = embed(tmp_path / "a.parquet", tmp_path / "mended", **mended)
    assert manifest["notes"] == []
    (path,) = directory_of(tmp_path / "mended").glob("part-*.parquet")
    assert pq.read_schema(path).field("created").type == pa.timestamp("us")
    assert read(tmp_path / "mended")["created"].to_pylist() == [moment]
