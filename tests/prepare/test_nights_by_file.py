"""A night opens the shards that are new or changed, and rewrites the part files with rows of shards that are removed."""

from __future__ import annotations

import os
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.cli.plan_command import plan
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.layout import is_copy
from audioclip_beam.pipeline.prepare.unchanged import rows_to_retry
from audioclip_beam.pipeline.snapshots.listing import DROPPED_SCHEMA, LISTED_SCHEMA, CarriedFile, write_listings
from audioclip_beam.pipeline.snapshots.manifest import FileInfo, Manifest
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from audioclip_beam.pipeline.writers.kept_files import DroppedShards, KeepRows
from audioclip_beam.pipeline.writers.parquet_file import ROW_GROUP
from tests.support.corpus import StubHead, embed, read, write_jsonl
from tests.support.faults import Faults
from tests.support.snapshots import directory_of, files_of, random_batches

SHARDS, PER_FILE = 5000, 500

LATE = 3000  # rows behind those that are looked at before the run


def run(folder: Path, output: Path, **options: object) -> Manifest:
    manifest, _ = embed(folder / "*.jsonl", output, id_field="id", max_shrink=0.0, **options)
    assert validate(str(output)).valid
    return manifest


def write(folder: Path, shard: int, text: str = "", rows: int = 1) -> None:
    """Write a shard; by default its rows have texts of their own."""
    write_jsonl(
        folder / f"{shard}.jsonl",
        [{"id": f"{shard}-{row}", "text": text or f"text {row} of {shard}", "tag": row} for row in range(rows)],
    )


def new_files(output: Path, now: Manifest, before: set[str]) -> list[FileInfo]:
    return [file for file in files_of(output, now) if file.name not in before]


def poison(path: Path) -> None:
    """Replace a file by one of the same size and modification time whose content no reader takes for rows."""
    state = path.stat()
    path.unlink()
    path.write_bytes(b"\0" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.slow
def test_one_of_thousands_of_shards(tmp_path: Path) -> None:
    """Deleted, added and changed: no other shard is opened, and a deletion rewrites one part file."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for shard in range(SHARDS):
        write(folder, shard)
    first = run(folder, output, max_file_rows=PER_FILE)
    assert len(files_of(output, first)) == SHARDS // PER_FILE
    names = {file.name for file in files_of(output, first)}
    for path in folder.iterdir():
        poison(path)
    faults, options = Faults(folder), {"max_file_rows": PER_FILE, "compare": "size_mtime"}

    (folder / "7.jsonl").unlink()
    with faults.armed(None):
        second = run(folder, output, **options)
    (copy,) = new_files(output, second, names)
    assert is_copy(copy.name)
    assert (copy.rows, second["counts"]["read"], second["totals"]["read"]) == (PER_FILE - 1, 0, SHARDS - 1)
    assert copy.made_by == files_of(output, first)[0].made_by
    assert faults.opened == set()
    names |= {copy.name}

    write(folder, SHARDS)
    with faults.armed(None):
        third = run(folder, output, **options)
    (added,) = new_files(output, third, names)
    assert (added.rows, third["counts"]["read"], third["counts"]["embedded"]) == (1, 1, 1)
    assert faults.opened == {str(folder / f"{SHARDS}.jsonl")}
    names |= {added.name}

    write(folder, 8, "another text")
    with faults.armed(None):
        fourth = run(folder, output, **options)
    files = new_files(output, fourth, names)
    assert sorted(file.rows for file in files) == [1, PER_FILE - 1]
    assert (fourth["counts"]["read"], fourth["totals"]["read"], len(fourth["segments"])) == (1, SHARDS, 3)
    assert faults.opened == {str(folder / "8.jsonl")}
    assert len(read(output)) == SHARDS


def test_copies_keep_columns_order_and_buckets(tmp_path: Path) -> None:
    """Also those of rejected rows; small row groups of a bucket are joined."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for shard in range(40):
        write(folder, shard, rows=5)
        write_jsonl(folder / f"bad-{shard}.jsonl", [{"id": f"bad {shard}", "text": "", "tag": 1}])
    first = run(folder, output, keep_fields=["tag"])
    before = {kind: pq.read_table(_only(output, kind)) for kind in ("part", "rejected")}
    for name in ("3", "30", "bad-4"):
        (folder / f"{name}.jsonl").unlink()
    second = run(folder, output, keep_fields=["tag"])
    assert second["counts"]["read"] == 0
    removed = pa.array(["3.jsonl", "30.jsonl", "bad-4.jsonl"])
    for kind, table in before.items():
        path = _only(output, kind)
        assert is_copy(path.name)
        kept = pa.compute.invert(pa.compute.is_in(table["shard"], value_set=removed))
        assert pq.read_table(path).equals(table.filter(kept), check_metadata=True)
    assert pq.read_metadata(_only(output, "part")).num_row_groups == 2, "one for each of two buckets"
    totals = first["totals"]
    assert second["totals"] == {
        **totals,
        "read": 229,
        "vectors": 190,
        "rejected": 39,
        "rejected_by_reason": {"empty text": 39},
    }


def _only(output: Path, kind: str) -> Path:
    (path,) = directory_of(output).glob(f"{kind}-*.parquet")
    return path


def test_a_name_that_another_shard_gets_is_another_shard(tmp_path: Path) -> None:
    """The removed shard's rows go, and those of the one that has its name now are read."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for shard in range(6):
        write(folder, shard, rows=3)
    run(folder, output)
    (folder / "2.jsonl").unlink()
    (folder / "5.jsonl").rename(folder / "2.jsonl")
    manifest = run(folder, output)
    assert (manifest["counts"]["read"], manifest["counts"]["reused"], manifest["totals"]["read"]) == (3, 3, 15)
    rows = {row["id"]: row["shard"] for row in read(output, columns=["id", "shard"]).to_pylist()}
    assert {shard for name, shard in rows.items() if name.startswith("5-")} == {"2.jsonl"}
    assert not any(name.startswith("2-") for name in rows)


def test_a_segment_that_is_nearly_empty_is_written_with_what_is_new(tmp_path: Path) -> None:
    """Its rows and rejected rows are copied, and no shard is opened for that."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for shard in range(20):
        write(folder, shard, rows=5)
        write_jsonl(folder / f"bad-{shard}.jsonl", [{"id": f"bad {shard}", "text": ""}])
    run(folder, output)
    for shard in range(16):
        (folder / f"{shard}.jsonl").unlink()
        (folder / f"bad-{shard}.jsonl").unlink()
    write(folder, 20, rows=2)
    manifest = run(folder, output)
    assert (manifest["counts"]["read"], len(manifest["segments"])) == (2, 1)
    assert manifest["totals"]["rejected_by_reason"] == {"empty text": 4}
    assert sorted(file.rows for file in files_of(output, manifest)) == [2, 4, 20]
    assert manifest["counts"]["truncated"] == 0
    assert len(read(output)) == 22


@pytest.mark.parametrize("kind", ["part", "rejected"])
@pytest.mark.parametrize("how", ["missing", "shorter"])
def test_only_shards_with_rows_in_a_lost_file_are_read_again(tmp_path: Path, kind: str, how: str) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    for shard in range(10):
        write(folder, shard, rows=4)
    write_jsonl(folder / "bad.jsonl", [{"id": "bad", "text": ""}, {"id": "good", "text": "good"}])
    first = run(folder, output, max_file_rows=7)
    lost = next(file for file in files_of(output, first) if file.name.startswith(kind))
    path = directory_of(output) / lost.name
    shards = set(pq.read_table(path, columns=["shard"])["shard"].to_pylist())
    data = path.read_bytes()
    path.unlink()
    if how == "shorter":
        path.write_bytes(data[:-1])
    manifest = run(folder, output, max_file_rows=7)
    assert manifest["counts"]["read"] == sum(2 if name == "bad.jsonl" else 4 for name in shards)
    assert manifest["totals"] == first["totals"]
    assert any("1 file of" in note and "read again" in note for note in manifest["notes"])
    assert len(read(output)) == 41


def test_damage_that_a_run_finds_is_mended_by_the_next_one(tmp_path: Path) -> None:
    """The error names the file; what was damaged is made of its shards again, and all others stay."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for shard in range(10):
        write(folder, shard, rows=4)
    first = run(folder, output, max_file_rows=7)
    part = next(file for file in files_of(output, first) if file.is_part)
    path = directory_of(output) / part.name
    names = pq.read_table(path, columns=["shard"])["shard"].to_pylist()
    data = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(0).column(2).data_page_offset + 30
    data[at] ^= 255
    path.write_bytes(data)
    (folder / f"{names[0]}").unlink()
    with pytest.raises(Exception, match=rf"{part.name}, whose rows are carried over, cannot be read .*: run again"):
        run(folder, output, max_file_rows=7)
    manifest = run(folder, output, max_file_rows=7)
    assert manifest["counts"]["read"] == 4 * (len(set(names)) - 1)
    assert manifest["totals"]["read"] == 36
    assert len(read(output)) == 36


def test_retry_rejected(tmp_path: Path) -> None:
    """Only shards with rows that the model failed on are read again, not those with empty texts."""
    folder, output = tmp_path / "in", tmp_path / "out"
    write(folder, 0, rows=4)
    write_jsonl(folder / "bad.jsonl", [{"id": "empty", "text": ""}, {"id": "other", "text": "other"}])
    write_jsonl(folder / "failed.jsonl", [{"id": "a", "text": "poison"}, {"id": "b", "text": "b"}])
    first = run(folder, output)
    assert first["totals"]["rejected_by_reason"] == {"empty text": 1, "model error": 1}
    assert rows_to_retry(first) == 1
    assert run(folder, output)["counts"]["read"] == 0
    manifest = run(folder, output, retry_rejected=True)
    assert (manifest["counts"]["read"], manifest["counts"]["reused"]) == (2, 1)
    assert manifest["totals"] == first["totals"]


def test_a_group_that_is_processed_twice_makes_nothing_twice(tmp_path: Path) -> None:
    """What the first attempt has written stays as it is, and is described alike."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for shard in range(4):
        write(folder, shard, rows=5)
        write_jsonl(folder / f"bad-{shard}.jsonl", [{"id": f"bad {shard}", "text": ""}])
    first = run(folder, output)
    dropped = pa.table({"segment": [0, 0], "name": ["1.jsonl", "bad-1.jsonl"]}).cast(DROPPED_SCHEMA)
    write_listings(str(tmp_path), LISTED_SCHEMA.empty_table(), dropped=dropped)
    keep = KeepRows(
        str(directory_of(output)),
        str(tmp_path),
        head=TEXT,
        dropped=DroppedShards(str(tmp_path), FileIO()),
        encoding="plain",
        file_io=FileIO(),
    )
    for file in files_of(output, first):
        (kept,) = keep.process([CarriedFile(file, 0, 0)])
        assert kept.file is not None
        state = (tmp_path / kept.file.name).stat()
        assert list(keep.process([CarriedFile(file, 0, 0)])) == [kept]
        assert (tmp_path / kept.file.name).stat() == state
        assert (kept.file.rows, kept.dropped) == ((15, 5) if file.is_part else (3, 1))


def test_row_groups_stay_bounded_over_thirty_nights(tmp_path: Path) -> None:
    """Each night a copy loses a row more, from its end on: what is left of a row group is joined with the next one."""
    rows, groups = 8 * ROW_GROUP, 8
    table = pa.Table.from_batches(random_batches(rows, 1))
    names = pa.array(map(str, range(rows)))  # shards of one row each
    table = table.set_column(table.column_names.index("shard"), table.schema.field("shard"), names)
    path = tmp_path / "part-0.parquet"
    pq.write_table(table, path, row_group_size=ROW_GROUP)
    file = FileInfo(path.name, rows, path.stat().st_size, sha256(path.read_bytes()).hexdigest())
    for night in range(30):
        name = str(ROW_GROUP * ((groups - 2 - night) % groups) + night)
        directory = tmp_path / str(night)
        directory.mkdir()
        dropped = pa.table({"segment": [0], "name": [name]}).cast(DROPPED_SCHEMA)
        write_listings(str(directory), LISTED_SCHEMA.empty_table(), dropped=dropped)
        keep = KeepRows(
            str(path.parent),
            str(directory),
            head=TEXT,
            dropped=DroppedShards(str(directory), FileIO()),
            encoding="plain",
            file_io=FileIO(),
        )
        (kept,) = keep.process([CarriedFile(file, 0, 0)])
        assert kept.file is not None
        file, path = kept.file, directory / kept.file.name
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        assert max(sizes) < 2 * ROW_GROUP
        assert len(sizes) <= groups
    assert file.rows == rows - 30


def test_a_shard_without_vectors_goes(tmp_path: Path) -> None:
    """Its rejected rows go, and the dry run and the check of ids find no ids of it."""
    folder, output = tmp_path / "in", tmp_path / "out"
    write(folder, 0, rows=4)
    write_jsonl(folder / "bad.jsonl", [{"id": "bad", "text": ""}])
    run(folder, output, unique_ids=True)
    (folder / "bad.jsonl").unlink()
    arguments = ["--input", f"{folder}/*.jsonl", "--output", str(output), "--id_field", "id", "--unique_ids"]
    assert plan(arguments, StubHead()) == 0
    manifest = run(folder, output, unique_ids=True)
    assert (manifest["counts"]["read"], manifest["totals"]["read"]) == (0, 4)


def test_a_value_that_fits_no_type_is_no_damage(tmp_path: Path) -> None:
    """The error names the value, and no file counts as damaged; the dry run finds it, too."""
    folder, output = tmp_path / "in", tmp_path / "out"
    write_jsonl(folder / "a.jsonl", [{"id": "a", "text": "a", "tag": 2**53 + 1}])
    run(folder, output, keep_fields=["tag"])
    arguments = ["--input", f"{folder}/*.jsonl", "--output", str(output), "--id_field", "id", "--keep_fields", "tag"]
    for late in (False, True):
        rows = [{"id": f"b{row}", "text": "b", "tag": 1} for row in range(LATE if late else 0)]
        write_jsonl(folder / "b.jsonl", [*rows, {"id": "b", "text": "b", "tag": 0.5}])
        message = r"a.jsonl, id a: kept field 'tag' is 9007199254740993 .*give another type"
        for attempt in (lambda: plan(arguments, StubHead()), lambda: run(folder, output, keep_fields=["tag"])):
            with pytest.raises(Exception, match=message):
                attempt()
    assert not list(directory_of(output).glob("_damaged-*"))


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_numbers_and_times_that_become_texts(tmp_path: Path, late: bool) -> None:
    """They are spelled alike in rows that are read and in files that are carried over, wherever the first text is."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for name, values in (("a", [1, 10**15]), ("b", [2.5, 1e15, 1.0, -0.0, 1e-7, 1e22]), ("c", [None])):
        rows = [{"id": f"{name}{row}", "text": name, "number": value} for row, value in enumerate(values)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    for unit in ("ms", "us"):
        times = pa.array([datetime(2026, 1, 31), datetime(2026, 1, 31, 12, 0, 0, 500_000)], pa.timestamp(unit))
        columns = {"number": pa.array([0.1, 3], pa.float32()), "time": times}
        pq.write_table(
            pa.table({"id": [f"{unit}0", f"{unit}1"], "text": ["p", "q"], **columns}), folder / f"{unit}.parquet"
        )
    inputs, options = (
        [f"{folder}/*.jsonl", f"{folder}/*.parquet"],
        {"id_field": "id", "keep_fields": ["number", "time"]},
    )
    embed(inputs, output, **options)
    rows = [{"id": f"d{row}", "text": "d", "number": 3} for row in range(LATE if late else 0)]
    write_jsonl(folder / "d.jsonl", [*rows, {"id": "e", "text": "e", "number": "x", "time": "now"}])
    manifest, _ = embed(inputs, output, **options)
    assert manifest["counts"]["read"] == len(rows) + 1
    embed(inputs, tmp_path / "again", **options)
    columns = ["id", "number", "time"]
    found, expected = (read(folder, columns=columns) for folder in (output, tmp_path / "again"))
    assert found.equals(expected)
    whole = "1000000000000000"
    assert found["number"].to_pylist()[:9] == ["1", whole, "2.5", whole, "1", "-0.0", "1e-7", "1e+22", None]
    times = ["2026-01-31 00:00:00", "2026-01-31 12:00:00.5"]
    assert found["time"].drop_null().to_pylist() == ["now", *times, *times]


def test_lists_of_numbers_that_become_lists_of_texts_are_read_again(tmp_path: Path) -> None:
    """In lists floats are spelled by their type."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, values in (("a", pa.array([[0.1]], pa.list_(pa.float32()))), ("b", pa.array([[0.5]])), ("c", [["x"]])):
        pq.write_table(pa.table({"id": [name], "text": [name], "tag": values}), folder / f"{name}.parquet")
        manifest, _ = embed(folder / "*.parquet", output, id_field="id", keep_fields=["tag"])
    assert manifest["counts"]["read"] == 3
    assert any("every shard is read: new or changed ones give" in note for note in manifest["notes"])
    assert read(output)["tag"].to_pylist() == [["0.1"], ["0.5"], ["x"]]


def test_a_damaged_file_of_rejected_rows(tmp_path: Path) -> None:
    """It is found when rows are to be tried again: the next run reads the shards of its rows, or none if it was restored."""
    folder, output = tmp_path / "in", tmp_path / "out"
    write(folder, 0, rows=4)
    write_jsonl(folder / "failed.jsonl", [{"id": "a", "text": "poison"}, {"id": "b", "text": "b"}])
    first = run(folder, output)
    path = _only(output, "rejected")
    whole = path.read_bytes()
    data = bytearray(whole)
    reasons = pq.read_metadata(path).row_group(0).column(4)
    begin = reasons.dictionary_page_offset or reasons.data_page_offset
    data[begin + reasons.total_compressed_size - 1] ^= 255  # in its last page
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=rf"{path.name}, whose rows are carried over, cannot be read .*: run again"):
        run(folder, output, retry_rejected=True)
    path.write_bytes(whole)
    assert run(folder, output)["counts"]["read"] == 0
    path = _only(output, "rejected")
    path.unlink()  # a link to the file in the snapshot before
    path.write_bytes(data)
    path.with_name(f"_damaged-{path.name}").write_text("damaged\n")
    manifest = run(folder, output)
    assert (manifest["counts"]["read"], manifest["totals"]) == (2, first["totals"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_text_bytes": 999}, "max_text_bytes changed since {}"),
        ({"no_dedupe": True}, "--no_dedupe is given"),
        ({"force": True, "no_text": True}, "--force is given; no_text changed since {}"),
    ],
)
def test_what_reads_every_shard_is_noted(tmp_path: Path, options: dict[str, object], reason: str) -> None:
    """Also if it was given before."""
    folder, output = tmp_path / "in", tmp_path / "out"
    write(folder, 0)
    first = run(folder, output)
    manifest = run(folder, output, **options)
    assert manifest["counts"]["read"] == 1
    assert f"every shard is read: {reason.format(first['snapshot'])}" in manifest["notes"]
    again = run(folder, output, **options)
    given = [part for part in reason.split("; ") if part.startswith("--")]
    assert [note for note in again["notes"] if "every shard" in note] == [
        f"every shard is read: {part}" for part in given
    ]
    assert again["counts"]["read"] == bool(given)
