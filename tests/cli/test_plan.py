"""`plan` counts what a run would do, and the run then does it."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.plan_command import plan_summary
from audioclip_beam.pipeline.dedup import buckets
from audioclip_beam.pipeline.dedup.spill import PieceCodec
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.prepare.job import prepare_job
from audioclip_beam.pipeline.readers import parts
from audioclip_beam.pipeline.run import plan_pipeline
from audioclip_beam.pipeline.run.plan_pipeline import PlanCounts, count_changes
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.manifest import Counts
from tests.support import object_stores
from tests.support.corpus import embed, write_jsonl
from tests.support.object_stores import Store
from tests.support.preloaded import preloaded_programs
from tests.support.snapshots import edit_manifest
from tests.support.stub import StubHead

store = object_stores.store


def _summary(inputs: list[str], output: Path, **limits: object) -> str:
    options = EmbedOptions(input=inputs, output=str(output), **limits)
    job = prepare_job(options, StubHead())
    return plan_summary(job, count_changes(job, options, None))


def _plan(source: Path, output: Path) -> tuple[PlanCounts, str]:
    options = EmbedOptions(input=[str(source)], output=str(output), id_field="id")
    job = prepare_job(options, StubHead())
    counts = count_changes(job, options, None)
    assert list((output / "snapshots").glob(".*")) == []  # the listings, which remote workers read there
    return counts, plan_summary(job, counts)


def _counts(output: Path) -> Counts:
    manifest = read_manifest(str(output), str(current_name(str(output))))
    assert manifest
    return manifest["counts"]


def test_plan_counts_new_changed_same_and_removed_rows(tmp_path: Path) -> None:
    """Rows are compared by id, vectors by text, and no model is loaded."""
    shard = tmp_path / "a.jsonl"
    rows = [{"id": f"r{n}", "text": f"caption {n}"} for n in range(10)]
    write_jsonl(shard, rows)
    counts, summary = _plan(shard, tmp_path / "out")
    assert {name: number for name, number in asdict(counts).items() if number} == {
        "new": 10, "embed": 10, "items": 10, "units": 40,
    }  # fmt: skip
    assert "against   nothing (the first run)" in summary
    embed(shard, tmp_path / "out", id_field="id")
    edited = [
        *rows[2:],
        {"id": "r10", "text": "caption 3"},
        {"id": "r11", "text": "new one"},
        {"id": "r12", "text": ""},
    ]
    edited[0] = {"id": "r2", "text": "another caption"}
    write_jsonl(shard, edited)
    calls = len(StubHead().encoder().calls)
    counts, summary = _plan(shard, tmp_path / "out")
    assert len(StubHead().encoder().calls) == calls
    assert {name: number for name, number in asdict(counts).items() if number} == {
        "new": 2, "changed": 1, "same": 7, "removed": 2, "rejected": 1, "reused": 8, "embed": 2, "items": 2, "units": 8,
    }  # fmt: skip
    assert "2 new, 1 with another text, 7 with the same text, 2 removed; 1 rejected" in summary
    assert "of model time" in summary


def test_another_prompt_changes_no_text(tmp_path: Path) -> None:
    """Ids are compared by the text alone: the fingerprint has the prompt."""
    shard = write_jsonl(tmp_path / "a.jsonl", [{"id": f"r{n}", "text": f"caption {n}"} for n in range(10)])
    embed(shard, tmp_path / "out", id_field="id")
    options = EmbedOptions(input=[str(shard)], output=str(tmp_path / "out"), id_field="id", prompt="a sound of {}")
    counts = count_changes(prepare_job(options, StubHead()), options, None)
    assert (counts.same, counts.changed) == (10, 0)


def test_ids_of_removed_rows_are_compared_in_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of buckets follows from the rows of the previous snapshot, too, not only from the few that are left."""
    rows = [{"id": f"r{n}", "text": "dog"} for n in range(1000)]
    embed(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", id_field="id")
    write_jsonl(tmp_path / "a.jsonl", rows[:10])
    sizes = []

    def read_rows(pieces: Iterable[bytes], codec: PieceCodec) -> list[pa.RecordBatch]:
        batches = list(buckets.read_rows(pieces, codec))
        sizes.append(sum(batch.num_rows for batch in batches))
        return batches

    monkeypatch.setattr(plan_pipeline, "read_rows", read_rows)
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 64)
    counts, _ = _plan(tmp_path / "a.jsonl", tmp_path / "out")
    assert (counts.same, counts.removed) == (10, 990)
    assert sum(sizes) == 1010
    assert max(sizes) < 2 * 64


def test_a_damaged_file_of_the_current_snapshot_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its rows count as new, as embed embeds them again."""
    rows = [{"id": f"r{n}", "text": "dog"} for n in range(10)]
    embed(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", id_field="id")
    write_jsonl(tmp_path / "a.jsonl", rows[:9])
    (part,) = (tmp_path / "out").rglob("part-*.parquet")
    ids = pq.ParquetFile(part).metadata.row_group(0).column(0)
    data = bytearray(part.read_bytes())
    data[ids.data_page_offset + ids.total_compressed_size - 8] ^= 0xFF
    part.write_bytes(data)
    counts, _ = _plan(tmp_path / "a.jsonl", tmp_path / "out")
    assert (counts.new, counts.same, counts.removed) == (9, 0, 0)
    assert f"{part.name} cannot be read" in caplog.text


def test_the_estimate_counts_several_runs(tmp_path: Path) -> None:
    """The model time of a small night is mostly that of the first call; a damaged manifest costs no plan."""
    output, rows = tmp_path / "out", [{"id": f"r{n}", "text": f"caption {n}"} for n in range(1000)]
    for count, seconds in ((998, 2.0), (999, 2.0), (1000, 4.0)):
        embed(write_jsonl(tmp_path / "a.jsonl", rows[:count]), output, id_field="id")
        edit_manifest(output, lambda manifest, seconds=seconds: manifest["seconds"].update(model_seconds=seconds))
    assert "at the 500 tokens/s of earlier runs" in _summary([str(tmp_path / "a.jsonl")], output, force=True)
    first = min((output / "snapshots").iterdir())
    (first / "manifest.json").write_text("{")
    assert "at the 1 tokens/s of earlier runs" in _summary([str(tmp_path / "a.jsonl")], output, force=True)


def test_limits_that_embed_would_exceed(tmp_path: Path) -> None:
    """The plan names each of them as embed does, which fails with the first; with other limits it names none."""
    shard, output, damaged = tmp_path / "a.jsonl", tmp_path / "out", tmp_path / "b.txt.gz"
    embed(write_jsonl(shard, [{"id": f"r{n}", "text": "dog"} for n in range(2000)]), output)
    inputs = [str(shard), str(damaged)]

    def exceeded(inputs: list[str], **limits: object) -> list[str]:
        summary = _summary(inputs, output, **limits)
        found = re.findall("^limits    embed would publish nothing: (.+)$", summary, re.MULTILINE)
        with pytest.raises(RuntimeError, match=re.escape(found[0])):
            embed(inputs, output, **limits)
        return found

    write_jsonl(shard, [{"text": None}, {"text": "cat"}])
    damaged.write_bytes(gzip.compress(b"dog\n" * 1000)[:-30])
    one, two, three = exceeded(inputs, max_rejected="0", max_shrink=1.0)
    assert one == "1 of 2 shards cannot be read to the end, more than --allow_damaged 0"
    assert re.fullmatch(r"2 of \d+ rows are rejected, more than --max_rejected 0", two)
    assert re.fullmatch(r"the corpus shrinks from 2,000 rows with vectors to \d+, below --max_shrink 1.0", three)
    write_jsonl(shard, [{"text": None}])
    empty, *_ = exceeded(inputs[:1])
    assert empty == "no row can be embedded, which only --allow_empty permits"
    assert "limits" not in _summary(inputs[:1], output, allow_empty=True, max_shrink=0.0)


@pytest.fixture
def flags(tmp_path: Path, small_head: str, vocabulary: Path) -> list[str]:
    """The flags of embed and plan, with a model and its tokenizer."""
    model = ["--checkpoint", small_head, "--tokenizer_path", str(vocabulary), "--id_field", "id"]
    return ["--input", str(tmp_path / "*.jsonl"), "--output", str(tmp_path / "out"), *model]


@pytest.mark.slow
def test_texts_that_are_too_long(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With --on_long reject they are rejected rows, whose ids the snapshot does not have; with error they are a limit."""

    def plan(on_long: str) -> str:
        capsys.readouterr()
        assert main(["plan", *flags, "--on_long", on_long]) == 0
        return capsys.readouterr().out

    rows = [{"id": "a", "text": "rain"}, {"id": "b", "text": "wind " * 80}, {"id": "c", "text": "wind " * 80}]
    write_jsonl(tmp_path / "a.jsonl", rows[1:])
    assert "0 new, 0 with another text, 0 with the same text, 0 removed; 2 rejected" in plan("reject")
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert "1 new, 0 with another text, 0 with the same text, 0 removed; 2 rejected" in plan("reject")
    assert "0 rows reused, 1 row to embed\nmodel     2 texts, 3 tokens" in plan("reject")
    assert main(["embed", *flags, "--on_long", "reject"]) == 0
    counts = _counts(tmp_path / "out")
    assert (counts["embedded"], counts["rejected"]) == (1, 2)
    assert (counts["model"]["items"], counts["model"]["units"]) == (2, 3)
    write_jsonl(tmp_path / "a.jsonl", rows[1:])
    assert "0 new, 0 with another text, 0 with the same text, 1 removed; 2 rejected" in plan("reject")
    assert "no row can be embedded" in plan("reject")

    excess = "limits    embed would publish nothing: 2 rows have more tokens than the model reads, and --on_long error"
    assert excess in plan("error")
    assert main(["embed", *flags, "--on_long", "error"]) == 1
    assert main(["embed", *flags]) == 0
    assert "limits" not in plan("truncate")
    assert "2 rows reused" in plan("error")
    assert excess in plan("error")
    assert main(["embed", *flags, "--on_long", "error"]) == 1


@pytest.mark.slow
def test_texts_of_equal_tokens_count_once(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The encoder computes them once, and counts them once."""
    rows = [{"id": text, "text": text} for text in ("Rain", "rain", "RAIN", "rain on a roof", "x " * 90, "x " * 91)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert main(["plan", *flags]) == 0
    assert "model     6 texts, 86 tokens" in capsys.readouterr().out
    assert main(["embed", *flags]) == 0
    counts = _counts(tmp_path / "out")
    assert (counts["model"]["items"], counts["model"]["units"]) == (6, 86)


def test_no_dedupe_is_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """plan refuses it, with the reason, so its help does not list it."""
    for command, listed in (("embed", True), ("plan", False)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert ("--no_dedupe" in capsys.readouterr().out) == listed


def test_ids_that_unique_ids_forbids(tmp_path: Path) -> None:
    """They are found in the rows that are read and in those that are carried over, of which only the ids are read."""
    output, options = tmp_path / "out", {"id_field": "id", "unique_ids": True}
    first = write_jsonl(tmp_path / "a.jsonl", [{"id": f"r{n}", "text": f"dog {n}"} for n in range(10)])
    embed(first, output, **options)
    write_jsonl(tmp_path / "b.jsonl", [{"id": "r3", "text": "cat"}, {"id": "x", "text": "cow"}])
    inputs = [str(tmp_path / "*.jsonl")]
    summary = _summary(inputs, output, **options)
    assert "shards    1 carried over" in summary
    (excess,) = re.findall("nothing: (.+)$", summary, re.MULTILINE)
    assert excess == "1 id occurs more than once, and --unique_ids forbids that"
    with pytest.raises(RuntimeError, match=f"{excess}; among them 'r3'"):
        embed(inputs, output, **options)
    assert "limits" not in _summary(inputs, output, id_field="id")


def test_a_shard_that_is_damaged_in_two_parts_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers may each read a part of it."""
    table = pa.table({"text": [f"text {n}" for n in range(1000)]})
    shard = tmp_path / "a.parquet"
    pq.write_table(table, shard, row_group_size=100, compression="none", use_dictionary=False)
    metadata, data = pq.ParquetFile(shard).metadata, bytearray(shard.read_bytes())
    for group in (1, 8):
        offset = metadata.row_group(group).column(0).data_page_offset
        data[offset : offset + 20] = b"\xff" * 20
    shard.write_bytes(data)
    monkeypatch.setattr(parts, "PART_BYTES", len(data) // 5)
    summary = _summary([str(shard)], tmp_path / "out")
    assert "1 of 1 shard cannot be read to the end, more than --allow_damaged 0" in summary


@pytest.mark.slow
def test_a_signal_removes_the_listings_from_an_object_store(tmp_path: Path, store: Store) -> None:
    """They are for the workers of a remote run, and what ends the process runs no `finally`."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}])
    code = f"""
import os, signal
from audioclip_beam.pipeline.run import plan_pipeline
from audioclip_beam.pipeline.run import signals
from audioclip_beam.pipeline.io.filesystem import list_directory
from audioclip_beam.pipeline.dedup import buckets
from audioclip_beam.pipeline.dedup.spill import PieceCodec
from audioclip_beam.pipeline.prepare.job import prepare_job
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.readers import parts
from tests.support.stub import StubHead

def end(*_, listings, **__):
    print(len(list_directory(listings)))
    os.kill(os.getpid(), signal.SIGTERM)

plan_pipeline._build = end
options = EmbedOptions(input=[{str(tmp_path / "a.jsonl")!r}], output="{store.url}/out")
with signals.handle_signals():
    plan_pipeline.count_changes(prepare_job(options, StubHead()), options, None)
"""
    environment = {**os.environ, **store.env}
    command = [preloaded_programs() / "python", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (143, "4\n"), done.stderr
    assert store.names("out/") == []


_CORPUS = st.dictionaries(st.sampled_from([f"r{n}" for n in range(8)]), st.sampled_from("abcde"), min_size=3)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(before=_CORPUS, after=_CORPUS)
def test_plan_equals_a_naive_comparison_and_the_run(
    before: dict[str, str], after: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For any two corpora the plan's numbers are those of a naive comparison, and the run embeds as many texts."""
    directory = tmp_path_factory.mktemp("plan")
    shard = directory / "a.jsonl"
    for corpus in (before, after):
        write_jsonl(shard, [{"id": key, "text": text} for key, text in corpus.items()])
        if corpus is before:
            embed(shard, directory / "out", id_field="id")
    counts, _ = _plan(shard, directory / "out")
    known = set(before.values())
    expected = {
        "new": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "same": len(after.items() & before.items()),
        "changed": sum(key in before and before[key] != text for key, text in after.items()),
        "reused": sum(text in known for text in after.values()),
        "items": len(set(after.values()) - known),
    }
    assert {name: getattr(counts, name) for name in expected} == expected
    manifest, texts = embed(shard, directory / "out", id_field="id", max_shrink=0.0)
    assert (manifest["counts"]["reused"], len(texts)) == (expected["reused"], expected["items"])
