"""EmbedCorpus with a stub model: what a snapshot contains, and which texts cost model time."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.model.head import Encoding
from audioclip_beam.pipeline.changes import find_changes
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.publish import publish_snapshot
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots import run_directory
from audioclip_beam.pipeline.snapshots.commit import SnapshotError, current_name, read_manifest
from audioclip_beam.pipeline.snapshots.history import gc, log, rollback
from audioclip_beam.pipeline.snapshots.listing import read_file_list
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from audioclip_beam.pipeline.snapshots.run_directory import run_path
from tests.support.corpus import StubHead, embed, read, vectors, write_jsonl
from tests.support.stub import StubEncoder


def _rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"id": f"r{number}", "text": f"caption number {number}"} for number in range(start, start + count)]


def test_every_row_ends_in_a_part_file_with_its_own_vector(tmp_path: Path) -> None:
    """The snapshot contains ids, texts and vectors of all shards, and the manifest counts them."""
    write_jsonl(tmp_path / "in/a.jsonl", _rows(30))
    write_jsonl(tmp_path / "in/b.jsonl", _rows(20, 30))
    manifest, texts = embed(tmp_path / "in/*.jsonl", tmp_path / "out", id_field="id")
    table = read(tmp_path / "out")
    assert sorted(table["id"].to_pylist()) == sorted(f"r{number}" for number in range(50))
    assert len(texts) == 50
    expected = StubHead().encoder().encode_rows(table["text"].to_pylist()).vectors
    np.testing.assert_array_equal(vectors(table), expected)
    assert manifest["counts"]["read"] == manifest["counts"]["embedded"] == 50
    assert manifest["weights"] == "untrained"
    assert list((tmp_path / "out").rglob("spill-*")) == []


@pytest.mark.parametrize(
    ("module", "cleaning"), [(publish_snapshot, "remove_strays"), (run_directory, "remove")], ids=["strays", "spills"]
)
def test_a_snapshot_is_published_though_what_it_does_not_need_stays(
    tmp_path: Path, module: ModuleType, cleaning: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clean, failures = getattr(module, cleaning), [PermissionError(1, "Operation not permitted")]

    def fail_first(*args: object) -> object:
        if failures:
            raise failures.pop()
        return clean(*args)

    monkeypatch.setattr(module, cleaning, fail_first)
    write_jsonl(tmp_path / "a.jsonl", _rows(3))
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert current_name(str(tmp_path / "out")) == manifest["snapshot"]
    assert "cannot be removed: [Errno 1] Operation not permitted" in caplog.text
    assert list((tmp_path / "out").rglob("spill-*")) == [], "the rest is removed, and spill files at the end of the run"


def test_spill_files_are_removed_before_the_snapshot_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed just then leaves none in it: they may be as large as the corpus."""
    left, publish = list[Path](), publish_snapshot.publish

    def look(output: str, manifest: Manifest) -> Manifest:
        left.extend(Path(output).rglob("spill-*"))
        return publish(output, manifest)

    monkeypatch.setattr(publish_snapshot, "publish", look)
    write_jsonl(tmp_path / "a.jsonl", _rows(3))
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert (manifest["counts"]["read"], left) == (3, [])


def test_the_schema_is_the_contract(tmp_path: Path) -> None:
    """A part file has the columns, types, nullability and metadata that readers rely on."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog", "n": 3}])
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", keep_fields=["n"])
    part = next(Path(run_path(str(tmp_path / "out"), manifest["snapshot"])).glob("part-*.parquet"))
    schema = pq.read_schema(part)
    assert [(field.name, str(field.type), field.nullable) for field in schema] == [
        ("id", "string", False),
        ("content_hash", "fixed_size_binary[16]", False),
        ("shard", "string", False),
        ("text", "string", False),
        ("n_tokens", "int16", False),
        ("truncated", "bool", False),
        ("embedding", "fixed_size_list<element: float not null>[8]", False),
        ("n", "int64", True),
    ]
    assert schema.metadata[b"weights"] == b"untrained"
    assert {b"checkpoint", b"checkpoint_sha256", b"tool_version", b"dim", b"dtype", b"prompt", b"on_long"} <= set(
        schema.metadata
    )
    assert schema.metadata[b"snapshot"].decode() == manifest["snapshot"]
    assert schema.metadata[b"fingerprint"].decode() == manifest["fingerprint"]


def test_no_text_on_request(tmp_path: Path) -> None:
    """--no_text leaves the text out."""
    write_jsonl(tmp_path / "a.jsonl", _rows(3))
    embed(tmp_path / "a.jsonl", tmp_path / "out", no_text=True)
    assert "text" not in read(tmp_path / "out").column_names


def test_a_second_run_over_an_unchanged_corpus_calls_no_model(tmp_path: Path) -> None:
    """If nothing changed, nothing is read or embedded, and the snapshot contains every row; with --force all are reused."""
    write_jsonl(tmp_path / "a.jsonl", _rows(300))
    embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", max_file_rows=64)
    before = read(tmp_path / "out")
    for force, reused in ((False, 0), (True, 300)):
        manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", force=force)
        assert texts == []
        assert manifest["counts"]["reused"] == reused
        assert manifest["counts"]["model"]["items"] == manifest["counts"]["embedded"] == 0
        assert read(tmp_path / "out").equals(before)


@pytest.mark.slow
def test_moved_ids_and_edited_fields_call_no_model(tmp_path: Path) -> None:
    """Vectors are reused by text: new ids and new kept fields for known texts cost no model time."""
    rows = [{**row, "likes": number} for number, row in enumerate(_rows(100))]
    write_jsonl(tmp_path / "a.jsonl", rows)
    embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", keep_fields=["likes"])
    moved = [{"id": f"x{number}", "text": row["text"], "likes": -number} for number, row in enumerate(rows[::-1])]
    write_jsonl(tmp_path / "a.jsonl", moved)
    _, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", keep_fields=["likes"])
    table = read(tmp_path / "out")
    assert texts == []
    assert dict(zip(table["id"].to_pylist(), table["likes"].to_pylist(), strict=True)) == {
        row["id"]: row["likes"] for row in moved
    }


@pytest.mark.slow
def test_one_percent_changed_embeds_one_percent(tmp_path: Path) -> None:
    """Only new texts go through the model."""
    rows = _rows(1000)
    write_jsonl(tmp_path / "a.jsonl", rows)
    embed(tmp_path / "a.jsonl", tmp_path / "out")
    for row in rows[::100]:
        row["text"] = f"{row['text']}, edited"
    write_jsonl(tmp_path / "a.jsonl", rows)
    manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert len(texts) == manifest["counts"]["model"]["items"] == manifest["counts"]["embedded"] == 10
    assert manifest["counts"]["reused"] == 990


def test_equal_texts_are_embedded_once_across_shards(tmp_path: Path) -> None:
    """A text that every shard contains goes through the model once and gets its vector in every row."""
    for shard in range(4):
        write_jsonl(tmp_path / f"in/{shard}.jsonl", [{"text": f"caption {number % 5}"} for number in range(50)])
    manifest, texts = embed(tmp_path / "in/*.jsonl", tmp_path / "out")
    assert sorted(texts) == [f"caption {number}" for number in range(5)]
    assert manifest["counts"]["embedded"] == 200
    assert len(np.unique(vectors(read(tmp_path / "out")), axis=0)) == 5


@pytest.mark.slow
def test_without_dedupe_nothing_is_shuffled_or_reused(tmp_path: Path) -> None:
    """--no_dedupe embeds all rows again, and a later run without it reuses the vectors."""
    write_jsonl(tmp_path / "a.jsonl", _rows(40))
    for _ in range(2):
        manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", no_dedupe=True)
        assert len(texts) == manifest["counts"]["embedded"] == 40
    assert embed(tmp_path / "a.jsonl", tmp_path / "out")[1] == []


def test_rows_that_the_model_cannot_take_are_rejected_alone(tmp_path: Path) -> None:
    """A text that raises and one that gives NaN are rejected, with reasons; the other texts of the batch are embedded."""
    rows = _rows(100)
    rows[17]["text"], rows[60]["text"] = "poison", "not a number"
    write_jsonl(tmp_path / "a.jsonl", rows)
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")
    assert manifest["counts"]["embedded"] == 98
    assert manifest["counts"]["rejected_by_reason"] == {"model error": 1, "non-finite vector": 1}
    rejected = read(tmp_path / "out", "rejected").to_pylist()
    assert [(row["id"], row["shard"], row["row"], row["reason"]) for row in rejected] == [
        ("r17", "a.jsonl", "17", "model error"),
        ("r60", "a.jsonl", "60", "non-finite vector"),
    ]


def test_texts_that_failed_fail_again_without_failing_the_run(tmp_path: Path) -> None:
    """In the second run they are the only new texts; the model still embeds the canary texts, so they are at fault."""
    rows = [*_rows(100), *({"id": f"bad {number}", "text": f"poison {number}"} for number in range(10))]
    write_jsonl(tmp_path / "a.jsonl", rows)
    for expected in ({"embedded": 100, "reused": 0}, {"embedded": 0, "reused": 100}):
        manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", force=True)
        counts = manifest["counts"]
        assert {"embedded": counts["embedded"], "reused": counts["reused"]} == expected
        assert counts["rejected_by_reason"] == {"model error": 10}


def test_a_model_that_fails_on_everything_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken model does not reject every row: the run fails and publishes nothing."""

    def fail(_: StubEncoder, texts: Sequence[str]) -> Encoding:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(StubEncoder, "encode_rows", fail)
    write_jsonl(tmp_path / "a.jsonl", _rows(50))
    with pytest.raises(RuntimeError, match=r"the model failed on .*RuntimeError: CUDA error"):
        embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert current_name(str(tmp_path / "out")) is None


def test_bad_records_are_rejected_and_counted(tmp_path: Path) -> None:
    """Malformed lines and empty texts become rejected rows; the other rows are embedded."""
    (tmp_path / "a.jsonl").write_text('{"text": "dog"}\n{"text": \n{"text": ""}\n{"text": null}\n', encoding="utf-8")
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert manifest["counts"]["read"] == 4
    assert manifest["counts"]["rejected_by_reason"] == {"empty text": 1, "null text": 1, "malformed record": 1}


@pytest.mark.parametrize(("limit", "passes"), [("1", False), ("2", True), ("10%", False), ("50%", True)])
def test_max_rejected_publishes_nothing_above_it(tmp_path: Path, limit: str, passes: bool) -> None:
    """Too many rejected rows fail the run, and nothing is published."""
    (tmp_path / "a.jsonl").write_text('{"text": "dog"}\n{"text": \n{"text": ""}\n{"text": "cat"}\n', encoding="utf-8")
    if passes:
        assert embed(tmp_path / "a.jsonl", tmp_path / "out", max_rejected=limit)[0]["counts"]["rejected"] == 2
    else:
        with pytest.raises(RuntimeError, match=f"2 of 4 rows are rejected, more than --max_rejected {limit}"):
            embed(tmp_path / "a.jsonl", tmp_path / "out", max_rejected=limit)
        assert current_name(str(tmp_path / "out")) is None
        assert list(tmp_path.rglob("part-*.parquet")), "finished files stay for the next run"
        assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_shrunken_corpus_fails_and_publishes_nothing(tmp_path: Path) -> None:
    """A corpus below --max_shrink of the last run's rows is treated as an incomplete listing, one of exactly that is not."""
    write_jsonl(tmp_path / "a.jsonl", _rows(100))
    first, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    write_jsonl(tmp_path / "a.jsonl", _rows(40))
    with pytest.raises(
        RuntimeError, match="the corpus shrinks from 100 rows with vectors to 40, below --max_shrink 0.5"
    ):
        embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert current_name(str(tmp_path / "out")) == first["snapshot"]
    manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", max_shrink=0.4)
    assert (manifest["counts"]["read"], texts) == (40, [])
    write_jsonl(tmp_path / "a.jsonl", [*_rows(10), *({"caption": row["text"]} for row in _rows(30))])
    with pytest.raises(
        RuntimeError, match="the corpus shrinks from 40 rows with vectors to 10, below --max_shrink 0.5"
    ):
        embed(tmp_path / "a.jsonl", tmp_path / "out")


@pytest.mark.slow
def test_a_run_that_ended_before_it_became_current_is_reused(tmp_path: Path) -> None:
    """It wrote its manifest, but not current.json; the same goes for what a rollback left."""
    write_jsonl(tmp_path / "a.jsonl", _rows(20))
    embed(tmp_path / "a.jsonl", tmp_path / "out")
    pointer = (tmp_path / "out" / "current.json").read_bytes()
    write_jsonl(tmp_path / "a.jsonl", _rows(30))
    manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert len(texts) == 10
    (tmp_path / "out" / "current.json").write_bytes(pointer)
    again, texts = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert (again["counts"]["reused"], texts) == (30, [])
    assert any("of 1 run other than the current" in note for note in again["notes"])
    assert read_manifest(str(tmp_path / "out"), manifest["snapshot"]) == manifest, "it is not removed"


@pytest.mark.slow
@pytest.mark.parametrize("no_dedupe", [False, True])
def test_ids_that_occur_twice_are_an_error_on_request(tmp_path: Path, no_dedupe: bool) -> None:
    """Ids may repeat, and are not compared; with --unique_ids nothing is published, whether or not texts are compared."""
    write_jsonl(tmp_path / "a.jsonl", [{"id": 7, "text": "a b"}, {"id": "7", "text": "c"}, {"id": 8, "text": "d"}])
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", no_dedupe=no_dedupe)
    assert "duplicate_ids" not in manifest["counts"]
    with pytest.raises(RuntimeError, match="1 id occurs more than once, and --unique_ids forbids that; among them '7'"):
        embed(tmp_path / "a.jsonl", tmp_path / "out2", id_field="id", unique_ids=True, no_dedupe=no_dedupe)
    assert current_name(str(tmp_path / "out2")) is None


@pytest.mark.slow
def test_a_new_fingerprint_embeds_everything_with_a_note(tmp_path: Path) -> None:
    """Vectors of two fingerprints never mix, and a run with the earlier weights reuses their snapshot."""
    write_jsonl(tmp_path / "a.jsonl", _rows(20))
    first, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    second, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", StubHead(weights="other"))
    assert len(texts) == 20
    assert second["notes"] == [
        f"the fingerprint changed since {first['snapshot']} (weights): its vectors are not reused"
    ]
    third, texts = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert texts == []
    assert third["notes"][-1] == f"vectors of {first['snapshot']}, made with this fingerprint, are reused"


@pytest.mark.slow
def test_a_canary_that_differs_forbids_reuse(tmp_path: Path) -> None:
    """If the encoder no longer gives the earlier vectors of the fixed texts, no earlier vector is reused."""
    write_jsonl(tmp_path / "a.jsonl", _rows(20))
    first, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    path = tmp_path / "out/snapshots" / first["snapshot"] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["canary"]["vectors"] = base64.b64encode(np.ones(16 * 8, "<f4").tobytes()).decode()
    path.write_text(json.dumps(manifest))
    other = f"the encoder gives other canary vectors than in {first['snapshot']}, of the same fingerprint"
    with pytest.raises(RuntimeError, match=f"{other}: .* with --force"):
        embed(tmp_path / "a.jsonl", tmp_path / "out")
    second, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", force=True)
    assert len(texts) == 20
    assert second["notes"] == ["every shard is read: --force is given", f"{other}: nothing was reused"]


@pytest.mark.slow
def test_an_earlier_file_that_cannot_be_read_costs_model_time_only(tmp_path: Path) -> None:
    """A checksum finds flipped bits in an earlier part file, and its texts are embedded again."""
    write_jsonl(tmp_path / "a.jsonl", _rows(200))
    first, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", StubHead(dim=64))
    directory = Path(run_path(str(tmp_path / "out"), first["snapshot"]))
    part = next(directory.glob("part-*.parquet"))
    data = bytearray(part.read_bytes())
    middle = pq.ParquetFile(part).metadata.row_group(0).column(5)
    data[middle.data_page_offset + middle.total_compressed_size // 2] ^= 0xFF
    part.write_bytes(data)
    expected = StubHead(dim=64).encoder().encode_rows
    second, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", StubHead(dim=64), force=True)
    assert second["counts"]["embedded"] == len(texts) > 0
    table = read(tmp_path / "out")
    np.testing.assert_array_equal(vectors(table), expected(table["text"].to_pylist()).vectors)


@pytest.mark.slow
def test_a_run_that_began_from_another_snapshot_does_not_publish(tmp_path: Path) -> None:
    """Of two simultaneous runs the second to publish fails, and the first one's snapshot stays current."""
    write_jsonl(tmp_path / "a.jsonl", _rows(10))
    first, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")

    options = EmbedOptions(input=[str(tmp_path / "a.jsonl")], output=str(tmp_path / "out"))
    late = EmbedCorpus(options, StubHead())
    second, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    message = (
        f"the current snapshot is now {second['snapshot']}, and this run began from {first['snapshot']}: run again"
    )
    with pytest.raises(RuntimeError, match=message):
        run(late, options)
    late.close()
    assert current_name(str(tmp_path / "out")) == second["snapshot"]
    assert first["snapshot"] != second["snapshot"]
    embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert not (tmp_path / "out/snapshots" / str(late.snapshot)).exists()


@pytest.mark.slow
def test_log_rollback_and_gc(tmp_path: Path) -> None:
    """Snapshots are listed, made current again, and removed except for the current one."""
    out = str(tmp_path / "out")
    names = []
    for count in (10, 11, 12):
        write_jsonl(tmp_path / "a.jsonl", _rows(count))
        names.append(embed(tmp_path / "a.jsonl", tmp_path / "out")[0]["snapshot"])
    assert [(entry.snapshot, entry.rows) for entry in log(out)] == [
        (name, count) for name, count in zip(names, (10, 11, 12), strict=True)
    ]
    assert [entry.snapshot for entry in log(out) if entry.is_current] == [names[2]]
    assert rollback(out) == run_path(out, names[1])
    assert current_name(out) == names[1]
    with pytest.raises(SnapshotError, match="has no finished snapshot 'nonsense'"):
        rollback(out, "nonsense")
    assert gc(out, 1, dry_run=True) == [names[0]]
    assert gc(out, 1) == [names[0]]
    assert sorted(path.name for path in (tmp_path / "out/snapshots").iterdir()) == names[1:]


def test_what_a_lost_worker_writes_after_publishing_is_removed(tmp_path: Path) -> None:
    """By `gc` and by the next run: readers of part-*.parquet would read its rows twice."""
    shard, out = write_jsonl(tmp_path / "a.jsonl", _rows(3)), tmp_path / "out"
    first, _ = embed(shard, out)
    directory = Path(run_path(str(out), first["snapshot"]))
    files = {path.name for path in directory.iterdir()}
    (part,) = directory.glob("part-*.parquet")
    late = directory / "part-0123456789abcdef.parquet"
    shutil.copy(part, late)
    assert gc(str(out), 1, dry_run=True) == []
    assert late.exists()
    gc(str(out), 1)
    assert {path.name for path in directory.iterdir()} == files
    shutil.copy(part, late)
    write_jsonl(shard, _rows(4))
    embed(shard, out)
    assert {path.name for path in directory.iterdir()} == files


@pytest.mark.slow
def test_a_rollback_during_a_run_is_not_called_a_publication(tmp_path: Path) -> None:
    """The error names both snapshots, whichever of them is the older one."""
    names = []
    for count in (10, 11):
        write_jsonl(tmp_path / "a.jsonl", _rows(count))
        names.append(embed(tmp_path / "a.jsonl", tmp_path / "out")[0]["snapshot"])
    options = EmbedOptions(input=[str(tmp_path / "a.jsonl")], output=str(tmp_path / "out"))
    late = EmbedCorpus(options, StubHead())
    rollback(str(tmp_path / "out"))
    message = f"the current snapshot is now {names[0]}, and this run began from {names[1]}: run again"
    with pytest.raises(RuntimeError, match=message):
        run(late, options)
    late.close()


@pytest.mark.slow
def test_gc_keeps_the_snapshots_that_led_to_the_current_one(tmp_path: Path) -> None:
    """Newer ones that were rolled back go first; a damaged manifest of an older one does not stop gc."""
    out, names = str(tmp_path / "out"), []
    for count in range(10, 15):
        if count == 14:
            rollback(out)
            rollback(out)
        write_jsonl(tmp_path / "a.jsonl", _rows(count))
        names.append(embed(tmp_path / "a.jsonl", tmp_path / "out")[0]["snapshot"])
    assert gc(out, 3, dry_run=True) == names[2:4]
    assert gc(out, 4, dry_run=True) == names[2:3]
    (tmp_path / "out/snapshots" / names[1] / "manifest.json").rename(tmp_path / "aside")
    assert gc(out, 2, dry_run=True) == names[:3]
    (tmp_path / "out/snapshots" / names[1] / "manifest.json").write_text("{")
    assert gc(out, 3, dry_run=True) == [names[0], names[2]]
    (tmp_path / "aside").rename(tmp_path / "out/snapshots" / names[1] / "manifest.json")
    assert gc(out, 2) == [names[0], *names[2:4]]
    assert find_changes(out).added == 3
    assert rollback(out) == run_path(out, names[1])


def test_manifest_counts_are_those_of_the_files(tmp_path: Path) -> None:
    """Counts come from what was written: rows, bytes and hashes are those of the files."""
    write_jsonl(tmp_path / "a.jsonl", [*_rows(100), {"text": ""}])
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", max_file_rows=30)
    directory = Path(run_path(str(tmp_path / "out"), manifest["snapshot"]))
    rows = {"part": 0, "rejected": 0}
    for file in read_file_list(str(tmp_path / "out"), manifest):
        data = (directory / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        assert pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows == file.rows <= 30
        rows[file.name.split("-")[0]] += file.rows
    assert rows == {"part": manifest["counts"]["embedded"], "rejected": manifest["counts"]["rejected"]}
