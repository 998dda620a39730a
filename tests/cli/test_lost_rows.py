"""Rows are never lost without notice: damaged shards, and runs that could embed nothing, publish nothing unless allowed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest


@pytest.fixture
def embed(tmp_path: Path, small_head: str, vocabulary: Path) -> list[str]:
    """The command, over every file of the folder `in`."""
    (tmp_path / "in").mkdir()
    command = ["embed", "--input", f"{tmp_path}/in/*", "--output", f"{tmp_path}/out", "--checkpoint", small_head]
    return [*command, "--tokenizer_path", str(vocabulary)]


def manifest_of(tmp_path: Path) -> dict[str, object]:
    output = str(tmp_path / "out")
    name = current_name(output)
    assert name is not None
    manifest = read_manifest(output, name)
    assert manifest is not None
    return dict(manifest)


@pytest.mark.slow
def test_a_shard_that_breaks_off_fails_the_run_by_name(
    embed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut Parquet, empty Parquet and cut gzip: three of six shards are named, and only --allow_damaged 3 publishes."""
    for n in range(4):
        pq.write_table(pa.table({"text": [f"shard {n} row {row}" for row in range(20)]}), tmp_path / f"in/{n}.parquet")
    whole = (tmp_path / "in/1.parquet").read_bytes()
    (tmp_path / "in/1.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/2.parquet").write_bytes(b"")
    packed = gzip.compress("".join(json.dumps({"text": f"{n:x} words"}) + "\n" for n in range(5000)).encode())
    (tmp_path / "in/4.jsonl.gz").write_bytes(packed[: len(packed) - 100])
    (tmp_path / "in/5.txt").write_text("a dog\n")
    for allowed in ([], ["--allow_damaged", "2"]):
        assert main([*embed, "--max_rejected", "50%", *allowed]) == 1
        error = capsys.readouterr().err
        limit = f"more than --allow_damaged {allowed[-1] if allowed else 0}"
        assert f"3 of 6 shards cannot be read to the end, {limit}: 1.parquet (" in error
        assert "2.parquet (" in error
        assert "4.jsonl.gz (" in error
        assert error.endswith("accept the loss of their other rows with --allow_damaged 3; nothing was published\n")
        assert not (tmp_path / "out/current.json").exists()
    assert main([*embed, "--allow_damaged", "3"]) == 0
    manifest = manifest_of(tmp_path)
    assert manifest["counts"]["rejected_by_reason"]["damaged shard"] == 3  # type: ignore[index]
    assert any("3 shards could not be read to the end: 1.parquet" in note for note in manifest["notes"])  # type: ignore[attr-defined]


def test_a_run_in_which_every_row_is_rejected_publishes_nothing(
    embed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong field or a broken export must not become the current snapshot; --allow_empty accepts it."""
    (tmp_path / "in/a.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    assert main(embed) == 1
    assert "all 2 rows were rejected (empty text 1, null text 1); check --text_field" in capsys.readouterr().err
    assert not (tmp_path / "out/current.json").exists()
    assert main([*embed, "--allow_empty"]) == 0
    assert manifest_of(tmp_path)["counts"]["rejected"] == 2  # type: ignore[index]


def test_a_run_that_reads_no_row_publishes_nothing(
    embed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty files are not a corpus, unless --allow_empty accepts that."""
    (tmp_path / "in/a.txt").write_text("")
    assert main(embed) == 1
    assert "no row was read from 1 shard; check --input" in capsys.readouterr().err
    assert main([*embed, "--allow_empty"]) == 0


def test_one_shard_that_breaks_off_is_not_several(
    embed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error and its remedy agree with the number."""
    (tmp_path / "in/a.txt.gz").write_bytes(gzip.compress(b"a dog\n" * 100)[:-12])
    assert main(embed) == 1
    error = capsys.readouterr().err
    assert "1 of 1 shard cannot be read to the end, more than --allow_damaged 0: a.txt.gz (" in error
    assert "repair it or leave it out, or accept the loss of its other rows with --allow_damaged 1;" in error
