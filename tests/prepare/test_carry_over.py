"""A run reads the shards that changed, and carries the segments of all others over unread."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.prepare import earlier_vectors
from audioclip_beam.pipeline.prepare.job import prepare_job
from audioclip_beam.pipeline.report.html import ensure_report
from audioclip_beam.pipeline.search import search
from audioclip_beam.pipeline.snapshots.history import gc, rollback
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from audioclip_beam.pipeline.writers.parquet_file import ParquetFileWriter
from tests.support.corpus import StubHead, embed, read, write_jsonl
from tests.support.snapshots import directory_of, edit_manifest, files_of
from tests.support.stub import OtherHead

Row = dict[str, object]


def rows_of(shard: int, rows: int = 20) -> list[Row]:
    """Return the rows of a shard; one of them is rejected."""
    texts = [f"text {n} of shard {shard}" for n in range(rows - 1)]
    return [{"id": f"{shard}-{n}", "text": text, "tag": n} for n, text in enumerate([*texts, ""])]


def write_corpus(folder: Path, shards: int) -> Path:
    """Write shards of 20 rows; return their folder."""
    for shard in range(shards):
        write_jsonl(folder / f"{shard:02}.jsonl", rows_of(shard))
    return folder


def run(folder: Path, output: Path, **options: object) -> tuple[Manifest, list[str]]:
    return embed(folder / "*.jsonl", output, id_field="id", keep_fields=["tag"], **options)


def expected(folder: Path, fresh: Path) -> pa.Table:
    """Return the rows of a snapshot of a run into an empty directory."""
    run(folder, fresh)
    return read(fresh)


def carried_files(output: Path, manifest: Manifest, before: Manifest) -> set[str]:
    return {file.name for file in files_of(output, manifest)} & {file.name for file in files_of(output, before)}


def test_appended_shard_is_all_that_is_read(tmp_path: Path) -> None:
    folder, output = write_corpus(tmp_path / "in", 5), tmp_path / "out"
    first, _ = run(folder, output)
    write_jsonl(folder / "05.jsonl", rows_of(5))
    before = directory_of(output)
    second, texts = run(folder, output)
    assert len(texts) == 19
    assert (second["counts"]["read"], second["counts"]["reused"]) == (20, 0)
    assert second["totals"] == {**second["totals"], "read": 120, "vectors": 114, "rejected": 6}
    runs = {file.segment: file.made_by.run for file in files_of(output, second)}
    assert runs == {0: first["snapshot"], 1: second["snapshot"]}
    carried = carried_files(output, second, first)
    assert carried == {file.name for file in files_of(output, first)}
    for name in carried:
        assert (before / name).samefile(directory_of(output) / name)
    shutil.rmtree(before)  # a snapshot stays whole when any other is removed
    assert validate(str(output)).valid
    assert read(output).equals(expected(folder, tmp_path / "fresh"))
    assert len(read(output, "rejected")) == 6


@pytest.mark.slow
def test_shard_that_changes_every_night_is_soon_alone(tmp_path: Path) -> None:
    """Only this shard is read, and only the first night copies rows of the others."""
    folder, output = write_corpus(tmp_path / "in", 10), tmp_path / "out"
    run(folder, output)
    before = set[str]()
    for night in range(4):
        write_jsonl(folder / "09.jsonl", rows_of(9, 21 + night))
        manifest, texts = run(folder, output)
        assert len(texts) == 1, "known texts are never embedded again"
        assert manifest["counts"]["read"] == 21 + night
        assert manifest["totals"]["read"] == 201 + night
        copies = {file.name for file in files_of(output, manifest) if "-copy" in file.name}
        assert copies == (copies if night == 0 else before)
        before = copies
    assert len(manifest["segments"]) == 2
    assert validate(str(output)).valid
    assert read(output).equals(expected(folder, tmp_path / "fresh"))


def test_hashes_are_read_for_as_long_as_that_is_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New texts are looked up in the smallest segments that are carried over; without new shards nothing is read."""
    folder, output = write_corpus(tmp_path / "in", 5), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "05.jsonl", rows_of(5))
    run(folder, output)
    options = EmbedOptions(input=[f"{folder}/*"], output=str(output), id_field="id", keep_fields=["tag"])
    unchanged = prepare_job(options, StubHead())
    assert unchanged.earlier.lookup == {"rows": 0, "bytes": 0, "left_out": 114}
    assert not unchanged.earlier.files
    write_jsonl(folder / "06.jsonl", rows_of(6, 15))
    for fixed, per_second, rows in (
        (16 * 114, 0.0, 114),
        (16 * 114 - 1, 0.0, 19),
        (16 * 19, 0.0, 19),
        (16 * 19 - 1, 0.0, 0),
        (16 * 19, 1e15, 114),  # reading takes no time
    ):
        monkeypatch.setattr(earlier_vectors, "LOOKUP_BYTES", fixed)
        monkeypatch.setattr(earlier_vectors, "READ_BYTES_PER_SECOND", per_second)
        prepared = prepare_job(options, StubHead())
        assert prepared.earlier.lookup == {"rows": rows, "bytes": 16 * rows, "left_out": 114 - rows}
        assert sum(pq.read_metadata(path).num_rows for path in prepared.earlier.files) == rows
        noted = [note for note in prepared.notes if f"is not looked up in {114 - rows} rows that are carried" in note]
        assert len(noted) == (rows < 114)


@pytest.mark.slow
def test_removed_shard(tmp_path: Path) -> None:
    """No other shard is read: the rows of the others stay, or are copied."""
    folder, output = write_corpus(tmp_path / "in", 4), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "04.jsonl", rows_of(4))
    run(folder, output)
    (folder / "04.jsonl").unlink()
    manifest, texts = run(folder, output)
    assert (texts, manifest["counts"]["read"], manifest["totals"]["read"]) == ([], 0, 80)
    (folder / "03.jsonl").unlink()
    manifest, texts = run(folder, output)
    assert (texts, manifest["counts"]["read"], manifest["totals"]["read"]) == ([], 0, 60)
    assert validate(str(output)).valid
    assert read(output).equals(expected(folder, tmp_path / "fresh"))


@pytest.mark.parametrize(
    ("earlier", "change"),
    [
        ({}, {"max_text_bytes": 99}),
        ({}, {"on_long": "reject"}),
        ({}, {"force": True}),
        ({}, {"keep_fields": []}),
        ({"deciding": {"readers": 0}}, {}),
    ],
)
@pytest.mark.slow
def test_everything_is_read_if_other_rows_could_result(
    tmp_path: Path, earlier: dict[str, object], change: dict[str, object]
) -> None:
    """Another option of the run, or another version of the readers that made the `earlier` snapshot."""
    folder, output = write_corpus(tmp_path / "in", 3), tmp_path / "out"
    run(folder, output)
    edit_manifest(output, lambda manifest: manifest.update(earlier))  # type: ignore[typeddict-item]
    manifest, _ = embed(folder / "*.jsonl", output, **{"id_field": "id", "keep_fields": ["tag"], **change})
    assert manifest["counts"]["read"] == manifest["totals"]["read"] == 60
    assert len(manifest["segments"]) == 1


@pytest.mark.slow
def test_rows_are_kept_when_the_program_is_upgraded(tmp_path: Path) -> None:
    folder, output = write_corpus(tmp_path / "in", 3), tmp_path / "out"
    run(folder, output)
    edit_manifest(output, lambda manifest: manifest.update(tool_version="0.0.1"))
    write_jsonl(folder / "03.jsonl", rows_of(3))
    manifest, _ = run(folder, output)
    assert manifest["counts"]["read"] == 20


@pytest.mark.slow
def test_option_that_decides_no_row_changes_nothing(tmp_path: Path) -> None:
    folder, output = write_corpus(tmp_path / "in", 3), tmp_path / "out"
    run(folder, output)
    manifest, _ = run(folder, output, max_rejected="50%", max_file_rows=7)
    assert manifest["counts"]["read"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("value", "read_rows"), [(7, 2), (None, 2), (1.5, 2), ([1], 2)])
def test_kept_types_are_those_of_the_snapshot(tmp_path: Path, value: object, read_rows: int) -> None:
    """A new shard changes the types of kept fields only if it has to; the files then get them, too."""
    folder, output = write_corpus(tmp_path / "in", 3), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "03.jsonl", [{"id": "a", "text": "a", "tag": value}, {"id": "b", "text": "b", "tag": value}])
    manifest, _ = run(folder, output)
    assert manifest["counts"]["read"] == read_rows
    written_again = [note for note in manifest["notes"] if "carried over are written again" in note]
    assert len(written_again) == (value in (1.5, [1]))
    kinds = {1.5: pa.float64(), "[1]": pa.string()}
    assert read(output).schema.field("tag").type == kinds.get(str(value) if value == [1] else value, pa.int64())
    assert read(output)["tag"].to_pylist().count("[1]" if value == [1] else value) >= 2
    assert validate(str(output)).valid


@pytest.mark.slow
def test_kept_lists_are_carried_over(tmp_path: Path) -> None:
    """A nested type is the same type when it comes back from a part file."""
    for shard, rows in enumerate((20, 1)):
        tags = pa.array([[{"x": [1, None]}]] * rows, pa.list_(pa.struct([("x", pa.list_(pa.int64()))])))
        texts = [f"{shard} {n}" for n in range(rows)]
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": texts, "text": texts, "tag": tags}), tmp_path / f"in/{shard}.parquet")
        manifest, _ = embed(tmp_path / "in/*", tmp_path / "out", id_field="id", keep_fields=["tag"])
        assert manifest["counts"]["read"] == rows
    assert read(tmp_path / "out")["tag"].to_pylist() == [[{"x": [1, None]}]] * 21


def test_limits_hold_for_the_totals(tmp_path: Path) -> None:
    """max_shrink compares whole snapshots; max_rejected holds for what was read, and for the whole snapshot."""
    folder, output = write_corpus(tmp_path / "in", 4), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "04.jsonl", rows_of(4))
    manifest, _ = run(folder, output, max_shrink=0.9)  # 20 rows are read, of a corpus that grew
    assert manifest["totals"]["read"] == 100
    write_jsonl(folder / "05.jsonl", [{"id": "x", "text": ""}, {"id": "y", "text": "y"}])
    with pytest.raises(Exception, match=r"1 of 2 rows are rejected, more than --max_rejected 40%"):
        run(folder, output, max_rejected="40%")
    with pytest.raises(
        Exception, match=r"6 of 102 rows, with those carried over, are rejected, more than --max_rejected 5"
    ):
        run(folder, output, max_rejected="5")


@pytest.mark.slow
def test_ids_are_unique_across_segments(tmp_path: Path) -> None:
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    run(folder, output, unique_ids=True)
    write_jsonl(folder / "02.jsonl", [{"id": "0-3", "text": "another text"}])
    with pytest.raises(Exception, match=r"1 id occurs more than once, and --unique_ids forbids that; among them '0-3'"):
        run(folder, output, unique_ids=True)


def test_an_empty_shard_a_night_adds_no_segment_a_night(tmp_path: Path) -> None:
    """An empty shard counts as a row."""
    folder, output, segments = write_corpus(tmp_path / "in", 1), tmp_path / "out", list[int]()
    for night in range(5):
        manifest, _ = run(folder, output)
        segments.append(len(manifest["segments"]))
        (folder / f"empty-{night}.jsonl").touch()
    assert segments == [1, 2, 2, 3, 2]
    assert manifest["counts"]["read"] == 0
    assert manifest["totals"]["read"] == 20


def test_a_damaged_file_whose_ids_are_read_is_named(tmp_path: Path) -> None:
    """The next run, which the error asks for, reads the shards of its rows again."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    run(folder, output, unique_ids=True)
    (part,) = directory_of(output).glob("part-*")
    data = bytearray(part.read_bytes())
    data[60] ^= 255  # in the first page, which has ids
    part.write_bytes(data)
    write_jsonl(folder / "02.jsonl", rows_of(2, 2))
    message = rf"{part}, whose rows are carried over, cannot be read \(.*CRC.*\): run again; the shards"
    with pytest.raises(Exception, match=message):
        run(folder, output, unique_ids=True)
    manifest, _ = run(folder, output, unique_ids=True)
    assert manifest["counts"]["read"] == 42
    assert any("1 file of" in note and "read again" in note for note in manifest["notes"])
    assert validate(str(output)).valid


def test_other_vectors_stop_the_run(tmp_path: Path) -> None:
    """The same fingerprint with other canary vectors: nothing is published, until --force embeds every text again."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    first, _ = run(folder, output)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    names = {path.name for path in output.rglob("part-*")}
    with pytest.raises(Exception, match=r"other canary vectors than in .*--force"):
        run(folder, output, head=OtherHead())
    assert {path.name for path in output.rglob("part-*")} == names, "texts were embedded before the canary was compared"
    assert directory_of(output).name == first["snapshot"]
    manifest, texts = run(folder, output, head=OtherHead(), force=True)
    assert len(texts) == 57
    assert len(manifest["segments"]) == 1


def test_files_of_a_run_with_other_vectors_are_not_reused(tmp_path: Path) -> None:
    """On a remote runner the model may finish files before the canary is compared."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    with pytest.raises(Exception, match="other canary vectors"):
        run(folder, output, head=OtherHead())
    (failed,) = set((output / "snapshots").iterdir()) - {directory_of(output)}
    run(folder, tmp_path / "other", head=OtherHead())
    for part in directory_of(tmp_path / "other").glob("part-*"):
        shutil.copy(part, failed)
    manifest, texts = run(folder, output)
    assert (len(texts), manifest["notes"]) == (19, [])
    assert not failed.exists()


def test_what_a_rollback_left_is_not_reused_after_the_encoder_is_repaired(tmp_path: Path) -> None:
    """A forced snapshot of another encoder is newer than the current one, and complete."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    run(folder, output, head=OtherHead(), force=True)
    rollback(str(output))
    manifest, texts = run(folder, output)
    assert (len(texts), manifest["notes"]) == (19, [])


def test_a_forced_run_that_did_not_publish_is_not_reused(tmp_path: Path) -> None:
    """Its encoder gave other vectors than the current snapshot's."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    with pytest.raises(Exception, match="more than --max_rejected 0"):
        run(folder, output, head=OtherHead(), force=True, max_rejected="0")
    manifest, texts = run(folder, output)
    assert (len(texts), manifest["notes"]) == (19, [])


def test_files_of_a_run_that_is_still_going_on_are_not_reused(tmp_path: Path) -> None:
    """A run that ended without publishing stands for it: its lock is held again."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    with pytest.raises(Exception, match="more than --max_rejected 0"):
        run(folder, output, max_rejected="0")
    (living,) = output.glob("snapshots/*")
    with FileLock(living / "run.lock"):
        manifest, texts = run(folder, output)
    assert (len(texts), manifest["notes"]) == (38, [])
    assert list(living.glob("part-*"))


def test_a_local_run_knows_its_canary_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So whatever a killed run has finished can be reused, also of a first run."""
    known, finish = list[bool](), ParquetFileWriter.finish

    def note(self: ParquetFileWriter) -> object:
        if self.name.startswith("part-"):
            known.append("_canary.json" in os.listdir(self.directory))
        return finish(self)

    monkeypatch.setattr(ParquetFileWriter, "finish", note)
    folder = write_corpus(tmp_path / "in", 2)
    run(folder, tmp_path / "first")
    run(folder, tmp_path / "every_row", no_dedupe=True)
    assert known
    assert all(known)


@pytest.mark.slow
def test_the_first_run_fails_and_the_encoder_changes(tmp_path: Path) -> None:
    """Finished files of the other encoder are not reused; those of the present one are, whichever run is newer."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    heads = OtherHead(), StubHead(), OtherHead()
    for number, head in enumerate(heads):
        with pytest.raises(Exception, match="more than --max_rejected 0"):
            run(folder, output, head=head, max_rejected="0")
        assert len(list(output.glob("snapshots/*"))) == number + 1
    manifest, texts = run(folder, output)
    assert len(texts) == 38
    assert any("other canary vectors than in a run that did not publish" in note for note in manifest["notes"])
    assert read(output).equals(expected(folder, tmp_path / "undisturbed"))
    shutil.rmtree(output)
    for head in heads[:2]:
        with pytest.raises(Exception, match="more than --max_rejected 0"):
            run(folder, output, head=head, max_rejected="0")
    _, texts = run(folder, output)
    assert texts == []
    assert not list(output.rglob("_canary.json"))


@pytest.mark.slow
def test_damaged_file_of_the_snapshot_is_made_again(tmp_path: Path) -> None:
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    first, _ = run(folder, output)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    lost = next(file.name for file in files_of(output, first) if file.is_part)
    (directory_of(output) / lost).unlink()
    manifest, _ = run(folder, output)
    assert manifest["counts"]["read"] == 60
    assert any("1 file of" in note for note in manifest["notes"])
    assert validate(str(output)).valid


def test_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    first, _ = run(folder, output)

    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    second, _ = run(folder, output)
    for name in carried_files(output, second, first):
        assert (directory_of(output) / name).stat().st_nlink == 1
    assert second["counts"]["read"] == 20
    assert validate(str(output)).valid


@pytest.mark.slow
def test_log_shows_the_whole_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    run(folder, output)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    run(folder, output)
    assert main(["log", str(output)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"\* \S+ +60 +40 +19 +0 +1 ", last)


@pytest.mark.slow
def test_known_model_errors_are_carried_over(tmp_path: Path) -> None:
    folder, output = write_corpus(tmp_path / "in", 1), tmp_path / "out"
    write_jsonl(folder / "01.jsonl", [{"id": f"bad {n}", "text": f"poison {n}"} for n in range(10)])
    first, _ = run(folder, output)
    assert first["totals"]["rejected_by_reason"] == {"empty text": 1, "model error": 10}
    write_jsonl(folder / "02.jsonl", rows_of(2))
    second, _ = run(folder, output)
    assert second["counts"]["rejected_by_reason"] == {"empty text": 1}
    assert second["totals"]["rejected_by_reason"] == {"empty text": 2, "model error": 10}


@pytest.mark.slow
def test_carrying_over_survives_gc(tmp_path: Path) -> None:
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    for night in range(4):
        write_jsonl(folder / f"{2 + night:02}.jsonl", rows_of(2 + night))
        run(folder, output)
        gc(str(output), keep=1)
        assert len(list((output / "snapshots").iterdir())) == 1
        assert validate(str(output)).valid
    assert read(output).equals(expected(folder, tmp_path / "fresh"))


@pytest.mark.slow
def test_missing_source_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that is removed while a run carries its files over: the run fails, and says what to do."""
    folder, output = write_corpus(tmp_path / "in", 2), tmp_path / "out"
    first, _ = run(folder, output)
    write_jsonl(folder / "02.jsonl", rows_of(2))
    from audioclip_beam.pipeline import embed as embed_module

    start = embed_module.start_run

    def remove_and_start(*arguments: object, **keywords: object) -> object:
        shutil.rmtree(output / "snapshots" / first["snapshot"])
        return start(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(embed_module, "start_run", remove_and_start)
    with pytest.raises((SnapshotError, RuntimeError), match=r"cannot be carried over from .*--force"):
        run(folder, output)


@pytest.mark.slow
def test_readers_find_the_same_in_five_segments_as_in_one(tmp_path: Path) -> None:
    folder, output, fresh = tmp_path / "in", tmp_path / "out", tmp_path / "fresh"
    for shard, rows in enumerate((160, 80, 40, 20, 10)):
        write_jsonl(folder / f"{shard}.jsonl", rows_of(shard, rows))
        manifest, _ = run(folder, output)
    assert len(manifest["segments"]) == 5
    table = expected(folder, fresh)
    assert read(output).equals(table)
    np.save(tmp_path / "query.npy", np.arange(8, dtype=np.float32)[None] + 0.25)
    results = [search(str(out), [str(tmp_path / "query.npy")], top=300).as_json() for out in (output, fresh)]
    assert results[0]["queries"] == results[1]["queries"]
    checks = [{check.name: check.faults for check in validate(str(out)).checks} for out in (output, fresh)]
    assert checks[0] == checks[1]
    query = "SELECT id, text, tag, embedding FROM '{}/part-*.parquet' ORDER BY id"
    first, second = (duckdb.sql(query.format(directory_of(out))).fetchall() for out in (output, fresh))
    assert first == second
    pages = [Path(ensure_report(str(out), remake=True)).read_text() for out in (output, fresh)]
    assert pages[0].count("<svg") == pages[1].count("<svg") > 2
