"""Several text fields in one run: documents and their chunks, each text with its own id, as Jina's `@r,c` has them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.readers.fields import Fields, TextField
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.corpus import embed, read, write_jsonl
from tests.support.shards import ids, infer_kept_schema, read_rows, texts

DOCUMENTS: list[dict[str, object]] = [
    {"id": "a", "text": "a dog", "chunks": [{"id": "a1", "text": "one"}, {"id": "a2", "text": "two"}], "lang": "en"},
    {"id": "b", "text": "a cat", "chunks": [], "lang": "de"},
    {"id": "c", "text": "", "chunks": [{"id": None, "text": "three"}, {"id": "c2", "text": "four"}], "lang": "fr"},
    {"id": "d", "text": "a bird", "chunks": None, "lang": "it"},
]
BOTH = {"text": "text", "id": "id", "more": (TextField("chunks[].text", "chunks[].id"),)}


@pytest.fixture(params=["jsonl", "parquet"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"a.{request.param}"
    if request.param == "jsonl":
        return write_jsonl(path, DOCUMENTS)
    pq.write_table(pa.Table.from_pylist(DOCUMENTS), path)
    return path


def test_each_text_has_the_id_that_is_paired_with_it(shard: Path) -> None:
    """Documents by their id, chunks by theirs; a chunk without an id is rejected, not its neighbours."""
    rows, rejected = read_rows(shard, **BOTH, keep=("lang",))
    assert sorted(zip(ids(rows), texts(rows), strict=True)) == [
        ("a", "a dog"),
        ("a1", "one"),
        ("a2", "two"),
        ("b", "a cat"),
        ("c2", "four"),
        ("d", "a bird"),
    ]
    assert {row["id"]: row["lang"] for row in rows}["a2"] == "en"
    assert [(row["reason"], row["id"]) for row in rejected] == [("empty text", "c"), ("missing field", None)]


def test_without_id_fields_ids_are_generated_and_differ(shard: Path) -> None:
    """The first field's ids are those that it has alone; others add their path."""
    rows, _ = read_rows(shard, text="text", more=(TextField("chunks[].text", None), TextField("lang", None)))
    name = shard.name
    assert ids(rows)[:4] == [f"{name}#0", f"{name}#0/chunks.text/0", f"{name}#0/chunks.text/1", f"{name}#0/lang"]
    assert len(set(ids(rows))) == len(rows)


def test_one_id_field_for_two_texts(tmp_path: Path) -> None:
    """Title and caption of one record share its id; the second adds its path."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"k": 1.50, "title": "t", "caption": "c"}])
    rows, _ = read_rows(path, text="title", id="k", more=(TextField("caption", "k"),))
    assert ids(rows) == ["1.5", "1.5/caption"]


def test_documents_without_chunks_are_counted_not_rejected(tmp_path: Path) -> None:
    """In the manifest of a whole run: four texts of documents or chunks are missing, none of them is a bad row."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    fields = {"text_field": ["text", "chunks[].text"], "id_field": ["id", "chunks[].id"]}
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", **fields)
    assert manifest["counts"]["without_texts"] == 2
    assert (manifest["counts"]["read"], manifest["counts"]["rejected"]) == (8, 2)
    assert read(tmp_path / "out")["id"].to_pylist() == ["a", "a1", "a2", "b", "c2", "d"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (Fields("chunks[].text", "other[].id"), r"--id_field other\[\].id goes through another list"),
        (Fields("text", "chunks[].id"), r"--id_field chunks\[\].id goes through another list"),
        (Fields("text", None, (), (TextField("text", None),)), "--text_field text is given twice"),
        (Fields("text", None, (), (TextField("title", None),)), "no record has the field 'title'"),
    ],
)
def test_fields_that_do_not_pair_up_are_refused_before_the_run(tmp_path: Path, fields: Fields, message: str) -> None:
    """By name, and with what to do."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    with pytest.raises(InputError, match=message):
        infer_kept_schema(find_shards([str(tmp_path / "a.jsonl")]), fields)


def test_a_wrong_number_of_id_fields_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which id belongs to which text would be a guess."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    command = ["embed", "--input", f"{tmp_path}/a.jsonl", "--output", f"{tmp_path}/out", "--text_field", "text"]
    assert main([*command, "--text_field", "chunks[].text", "--id_field", "id"]) == 2
    assert "--id_field is given 1 time (id) for 2 text fields (text, chunks[].text)" in capsys.readouterr().err
