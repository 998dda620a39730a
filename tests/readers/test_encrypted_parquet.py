"""Encrypted columns of Parquet: one that is read is one clear error, and others do no harm."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.corpus import embed
from tests.support.encrypted import write_encrypted
from tests.support.shards import ids, infer_kept_schema, read_rows

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "text": ["dog", "cat", "cow", "ape"],
        "price": [1, 2, 3, 4],
        "tags": [["x"], [], ["y", "z"], None],
        "owner": [{"name": "ann", "age": 7}, None, {"name": "bob", "age": 8}, {"name": "cyd", "age": 9}],
    }
)
WHOLE = r"a\.parquet: the file is encrypted: decrypt it first$"
COLUMN = r"a\.parquet: the column '{}' is encrypted: decrypt the file first, or leave the column out$"


@pytest.mark.parametrize(
    ("encrypted", "keep", "error"),
    [
        (["price"], ["price"], COLUMN.format("price")),
        (["text"], [], COLUMN.format("text")),
        (["id"], [], COLUMN.format("id")),
        (["tags.list.element"], ["tags"], COLUMN.format("tags")),
        (["owner.name"], ["owner"], COLUMN.format("owner")),
        (["price", "owner.age"], ["owner", "price"], COLUMN.format("price', 'owner")),
        ([], [], WHOLE),
        (["id", "text"], ["price"], COLUMN.format("id', 'text")),
        (["price"], ["tags", "owner"], None),
        (["owner.name"], ["price"], None),
        (["price", "tags.list.element", "owner.name", "owner.age"], [], None),
    ],
)
def test_a_column_that_is_read_must_not_be_encrypted(
    tmp_path: Path, encrypted: list[str], keep: list[str], error: str | None
) -> None:
    path = tmp_path / "a.parquet"
    write_encrypted(path, TABLE, encrypted)
    if error:
        with pytest.raises(InputError, match=error):
            infer_kept_schema(find_shards([str(path)]), Fields("text", "id", tuple(keep)))
        return
    rows, rejected = read_rows(path, id="id", keep=tuple(keep))
    assert (ids(rows), rejected) == (["a", "b", "c", "d"], [])
    assert [{name: row[name] for name in keep} for row in rows] == TABLE.select(keep).to_pylist()


@pytest.mark.parametrize("columns", [["price"], ["text"], []])
def test_a_file_with_an_encrypted_footer(tmp_path: Path, columns: list[str]) -> None:
    """Nothing of it can be read."""
    write_encrypted(tmp_path / "a.parquet", TABLE, columns, plain_footer=False)
    with pytest.raises(InputError, match=WHOLE):
        infer_kept_schema(find_shards([str(tmp_path / "a.parquet")]), Fields())


def test_an_encrypted_shard_that_no_one_looked_at(tmp_path: Path) -> None:
    """Its rows are not lost without a word: it is a damaged shard, whose detail says why."""
    write_encrypted(tmp_path / "a.parquet", TABLE, ["text"])
    rows, rejected = read_rows(tmp_path / "a.parquet", kept=pa.schema([]))
    assert (rows, [row["reason"] for row in rejected]) == ([], ["damaged shard"])
    assert "the column 'text' is encrypted" in str(rejected[0]["detail"])


def test_a_run_over_a_shard_with_another_encrypted_column(tmp_path: Path) -> None:
    write_encrypted(tmp_path / "a.parquet", TABLE, ["price", "owner.name"])
    pq.write_table(TABLE, tmp_path / "b.parquet")
    manifest, embedded = embed(f"{tmp_path}/*.parquet", tmp_path / "out", keep_fields=["tags"])
    assert manifest["counts"]["read"] == 8
    assert sorted(embedded) == ["ape", "cat", "cow", "dog"]
