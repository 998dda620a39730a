"""`changes` reports what was added, changed and removed between two snapshots, at the cost of what differs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.changes import Changes, compare_rows, compare_snapshots, find_changes
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.writers import result_directory
from tests.support import object_stores, synced
from tests.support.corpus import StubHead, embed, read, write_jsonl
from tests.support.object_stores import Store
from tests.support.snapshots import batch_of, directory_of
from tests.support.stub import OtherHead

store, is_synced = object_stores.store, synced.is_synced

Row = dict[str, object]


def rows_of(shard: int, rows: int = 20) -> list[Row]:
    return [{"id": f"{shard}-{n}", "text": f"text {n} of {shard}", "tag": n} for n in range(rows)]


def run(folder: Path, output: Path, head: StubHead | None = None, **options: object) -> str:
    """Embed the folder; return the name of the snapshot."""
    options = {"id_field": "id", "keep_fields": ["tag"], "unique_ids": True, **options}
    return embed(folder / "*.jsonl", output, head, **options)[0]["snapshot"]


def ids(target: Path, kind: str) -> list[str]:
    files = sorted(target.glob(f"{kind}-*.parquet"))
    return sorted(ds.dataset(files).to_table(columns=["id"])["id"].to_pylist()) if files else []


def test_added_changed_and_removed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced: Callable[[Path], bool]
) -> None:
    folder, output, target = tmp_path / "in", tmp_path / "out", tmp_path / "changes"
    for shard in range(3):
        write_jsonl(folder / f"{shard}.jsonl", rows_of(shard))
    write_jsonl(folder / "big.jsonl", rows_of(9, 100))
    run(folder, output)
    write_jsonl(folder / "3.jsonl", rows_of(3))  # its own segment from now on
    before = run(folder, output)
    changed = rows_of(3)
    changed[0]["text"], changed[1]["tag"] = "another text", 99
    changed[2]["id"], changed[3]["text"] = "3-new", ""
    write_jsonl(folder / "3.jsonl", changed)
    now = run(folder, output)

    read_files: list[str] = []
    iter_rows = compare_snapshots.iter_rows

    def spy(snapshot, columns=None, files=None) -> Iterator[pa.RecordBatch]:  # type: ignore[no-untyped-def]
        read_files.extend(file.name for file in files or ())
        return iter_rows(snapshot, columns, files)

    monkeypatch.setattr(compare_snapshots, "iter_rows", spy)
    result = find_changes(str(output), target=str(target))
    assert result == Changes(before, now, added=1, changed=2, removed=2, files=result.files)
    assert json.loads((target / "changes.json").read_text())["added"] == 1
    assert {path.name for path in target.iterdir() if is_synced(path)} == {*result.files, "changes.json"}
    assert ids(target, "added") == ["3-new"]
    assert ids(target, "changed") == ["3-0", "3-1"]
    assert ids(target, "removed") == ["3-2", "3-3"]
    names = [{path.name for path in (output / "snapshots" / name).glob("part-*")} for name in (before, now)]
    assert set(read_files) == names[0] ^ names[1], "files that both snapshots have are not read"
    rows = read(output)
    upserts = ds.dataset([*target.glob("added*"), *target.glob("changed*")]).to_table().sort_by("id")
    assert upserts.equals(rows.filter(pa.compute.is_in(rows["id"], upserts["id"])))
    assert find_changes(str(output), before=now, now=before).removed == 1
    assert find_changes(str(output), before=now, now=now) == Changes(now, now, 0, 0, 0)


@pytest.mark.slow
def test_first_snapshot_adds_everything(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0))
    name = run(tmp_path / "in", tmp_path / "out")
    assert find_changes(str(tmp_path / "out")) == Changes(None, name, 20, 0, 0)


def test_a_previous_snapshot_that_is_gone(tmp_path: Path) -> None:
    """The error names the flag that helps; a rollback would not."""
    output, names = tmp_path / "out", []
    for shard in range(3):
        write_jsonl(tmp_path / f"in/{shard}.jsonl", rows_of(shard))
        names.append(run(tmp_path / "in", output))
    shutil.rmtree(output / "snapshots" / names[1])
    message = f"has no snapshot {names[1]} any more, which {names[2]} followed: name another one with --from; "
    with pytest.raises(SnapshotError, match=message):
        find_changes(str(output))
    assert find_changes(str(output), names[0]).added == 40


@pytest.mark.slow
def test_other_vectors_or_columns_change_every_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0))
    output = tmp_path / "out"
    run(tmp_path / "in", output)
    run(tmp_path / "in", output, StubHead(weights="other"))
    assert find_changes(str(output)).changed == 20
    run(tmp_path / "in", output, StubHead(weights="other"), keep_fields=[])
    assert find_changes(str(output)).changed == 20
    run(tmp_path / "in", output, StubHead(weights="other"), keep_fields=[], no_text=True)
    assert find_changes(str(output)).changed == 20
    run(tmp_path / "in", output)
    run(tmp_path / "in", output, OtherHead(), force=True)
    assert find_changes(str(output)).changed == 20


@pytest.mark.slow
def test_row_that_moves_to_another_shard_is_the_same(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    write_jsonl(folder / "0.jsonl", rows_of(0))
    run(folder, output)
    write_jsonl(folder / "0.jsonl", rows_of(0)[:7])
    write_jsonl(folder / "1.jsonl", rows_of(0)[7:])
    run(folder, output)
    result = find_changes(str(output))
    assert (result.added, result.changed, result.removed) == (0, 0, 0)


def test_kept_fields_of_any_name_and_type_are_compared(tmp_path: Path) -> None:
    """Also of the name of a column that is added for the comparison, and of the types that Arrow does not compare."""
    kept = {
        "place": pa.array([1, 2, 3, 4]),
        "half": pa.array(np.array([1, np.nan, 3, 4], np.float16)),
        "uuid": pa.array([b"0" * 16, None, b"2" * 16, b"3" * 16], pa.uuid()),
        "json": pa.array(["1", "2", None, "4"], pa.json_()),
    }
    (tmp_path / "in").mkdir()
    before = pa.table({"id": list("abcd"), "text": ["text"] * 4, **kept})
    other = before["half"].combine_chunks().take(pa.array([0, 1, 2, 2]))
    for rows in (before, before.set_column(before.schema.get_field_index("half"), "half", other)):
        pq.write_table(rows, tmp_path / "in/0.parquet")
        embed(tmp_path / "in/*.parquet", tmp_path / "out", id_field="id", keep_fields=list(kept))
    result = find_changes(str(tmp_path / "out"), target=str(tmp_path / "target"))
    assert (result.added, result.changed, result.removed) == (0, 1, 0)
    assert ids(tmp_path / "target", "changed") == ["d"]


def test_there_is_a_file_of_each_kind_if_no_row_is_left(tmp_path: Path) -> None:
    """The recipes read files of all three kinds, whatever there is; with kept fields if the rows before had some."""
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0, 2))
    run(tmp_path / "in", tmp_path / "out")
    write_jsonl(tmp_path / "in/0.jsonl", [{"id": "0", "text": "", "tag": 1}])
    name = run(tmp_path / "in", tmp_path / "out", allow_empty=True, max_shrink=0.0)
    for before, columns in ((None, 8), (name, 7)):
        target = tmp_path / f"from {before}"
        find_changes(str(tmp_path / "out"), before, target=str(target))
        for kind in ("added", "changed"):
            assert pq.read_table(target / f"{kind}-00000.parquet").shape == (0, columns)
        assert ids(target, "removed") == ([] if before else ["0-0", "0-1"])


@pytest.mark.slow
@pytest.mark.parametrize("where", ["within a shard", "in a shard carried over"])
def test_ids_that_repeat_are_an_error(tmp_path: Path, where: str) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    write_jsonl(folder / "0.jsonl", rows_of(0))
    run(folder, output, unique_ids=False)
    again = "0-3" if where == "in a shard carried over" else "x"
    write_jsonl(folder / "1.jsonl", [{"id": "x", "text": "x", "tag": 1}, {"id": again, "text": "y", "tag": 1}])
    run(folder, output, unique_ids=False)
    with pytest.raises(SnapshotError, match=rf"ids occur more than once in .*, among them '{again}'"):
        find_changes(str(output))


def test_ids_carried_over_are_compared_in_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little changed, they are never in memory at once, and nothing else of their rows is read."""
    folder, output = tmp_path / "in", tmp_path / "out"
    write_jsonl(folder / "big.jsonl", rows_of(0, 2000))
    run(folder, output, unique_ids=False)
    for text in ("before", "now"):
        write_jsonl(folder / "small.jsonl", [{"id": "x", "text": text, "tag": 1}])
        run(folder, output, unique_ids=False)
    buckets, reads = [], []
    require_unique, iter_rows = compare_snapshots.require_unique, compare_snapshots.iter_rows

    def spy_ids(snapshot: str, ids: pa.ChunkedArray, others: pa.ChunkedArray) -> None:
        buckets.append(len(others))
        require_unique(snapshot, ids, others)

    def spy_rows(snapshot, columns=None, files=None) -> Iterator[pa.RecordBatch]:  # type: ignore[no-untyped-def]
        reads.append((columns, sum(file.rows for file in files)))
        return iter_rows(snapshot, columns, files)

    monkeypatch.setattr(compare_rows, "BUCKET_ROWS", 128)
    monkeypatch.setattr(compare_snapshots, "require_unique", spy_ids)
    monkeypatch.setattr(compare_snapshots, "iter_rows", spy_rows)
    assert find_changes(str(output)).changed == 1
    assert sum(buckets) == 2 * 2000  # for each of the two snapshots
    assert max(buckets) < 2 * 128
    assert [columns for columns, rows in reads if rows >= 2000] == [["id"]]


def test_command_writes_a_new_directory_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0))
    run(tmp_path / "in", tmp_path / "out")
    arguments = ["changes", str(tmp_path / "out"), "--output", str(tmp_path / "target")]
    assert main(arguments) == 0
    assert "20 added, 0 changed, 0 removed" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "target").iterdir())
    assert names == ["added-00000.parquet", "changed-00000.parquet", "changes.json", "removed-00000.parquet"]
    assert main(arguments) == 2
    assert f"--output {tmp_path / 'target'} is not empty: name a new directory" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for target in ("out/snapshots/mine", "out/snapshots", "link/snapshots/a/b"):
        assert main([*arguments[:3], str(tmp_path / target)]) == 2
        assert f"{target} is among the snapshots of" in capsys.readouterr().err
    assert len(list((tmp_path / "out/snapshots").iterdir())) == 1
    assert main(["changes", str(tmp_path / "out"), "--from", "nothing"]) == 1
    assert "no finished snapshot 'nothing'" in capsys.readouterr().err


def test_directories_that_changes_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what is wrong with the directory, before any row is compared: here no row can be read."""
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0))
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "file").touch()
    (tmp_path / "nested/empty").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for part in directory_of(tmp_path / "out").glob("part-*"):
        part.unlink()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SnapshotError):
        find_changes("../out", target="../new")
    for target, problem in {
        "../file": "--output ../file cannot be a directory, because ../file is not one: name another path",
        "../file/x/y": "--output ../file/x/y cannot be a directory, because ../file is not one: name another path",
        "../nested": "--output ../nested is not empty: name a new directory",
        "../here": "--output ../here is the current directory or a mount point, which",
        ".": "--output . is the current directory or a mount point, which",
    }.items():
        with pytest.raises(ValueError, match=re.escape(problem)):
            find_changes("../out", target=target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "here", "in", "nested", "out"]


def test_empty_directory_and_a_link_to_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0))
    run(tmp_path / "in", tmp_path / "out")
    for name in ("empty", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for name, directory in {"empty/": "empty", "link": "elsewhere"}.items():
        find_changes(str(tmp_path / "out"), target=f"{tmp_path}/{name}")
        assert len(ids(tmp_path / directory, "added")) == 20
    assert (tmp_path / "link").is_symlink()


def test_object_store_gets_the_summary_last(tmp_path: Path, store: Store) -> None:
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0))
    run(tmp_path / "in", tmp_path / "out")
    target = f"{store.url}/changes"
    changes = find_changes(str(tmp_path / "out"), target=target)
    assert sorted(store.names("changes/")) == sorted(f"changes/{name}" for name in [*changes.files, "changes.json"])
    last = [request for request in store.seen if request.method in ("POST", "PUT")][-1]
    assert "changes.json" in last.path or b"changes.json" in last.body
    with pytest.raises(ValueError, match="is not empty: name a new directory"):
        find_changes(str(tmp_path / "out"), target=target)


@pytest.mark.slow
def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "in/0.jsonl", rows_of(0))
    run(tmp_path / "in", tmp_path / "out")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result_directory, "write_atomically", fail)
    with pytest.raises(SnapshotError, match="No space left"):
        find_changes(str(tmp_path / "out"), target=str(tmp_path / "target"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


TAGS = st.sampled_from([None, 0.0, 0.5, float("nan")])


@settings(max_examples=40, deadline=None)
@given(
    before=st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 3), TAGS)),
    now=st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 3), TAGS)),
)
def test_rows_match_as_in_a_dictionary(
    before: dict[int, tuple[int, float | None]], now: dict[int, tuple[int, float | None]]
) -> None:
    def table(rows: dict[int, tuple[int, float | None]]) -> pa.Table:
        columns = {
            "id": pa.array([str(key) for key in rows], pa.string()),
            "content_hash": pa.array([bytes([text] * 16) for text, _ in rows.values()], pa.binary(16)),
            "tag": pa.array([tag for _, tag in rows.values()], pa.float64()),
            "tags": pa.array([[tag] for _, tag in rows.values()], pa.list_(pa.float64())),
            "place": pa.array(range(len(rows)), pa.int64()),
        }
        return pa.table(columns)

    added, changed, removed = compare_rows.match_rows(table(before), table(now).drop_columns([]))
    keys = list(now)
    assert [keys[n] for n in np.flatnonzero(added)] == [key for key in now if key not in before]
    assert [keys[n] for n in np.flatnonzero(changed)] == [
        key for key in now if key in before and repr(now[key]) != repr(before[key])
    ]
    assert sorted(removed.to_pylist()) == sorted(str(key) for key in before if key not in now)


def test_buckets_hold_a_million_rows(tmp_path: Path) -> None:
    assert [compare_rows.bits_for(rows) for rows in (0, 1, 1 << 20, (1 << 20) + 1, 1 << 22, 1 << 30)] == [
        0,
        0,
        0,
        1,
        2,
        10,
    ]
    split = compare_rows.SplitById(tmp_path / "split", 2)
    with split:
        for number in range(3):
            split.add(batch_of([f"{number} {n}" for n in range(50)], ["a"] * 50, np.ones((50, 2), np.float32)))
    tables = list(split)
    assert len(tables) == 4
    assert sum(map(len, tables)) == 150
    assert len({name for table in tables for name in table["id"].to_pylist()}) == 150


def test_rows_that_come_one_by_one_are_split_in_large_pieces(tmp_path: Path) -> None:
    """A record batch has a head of some hundred bytes."""
    split = compare_rows.SplitById(tmp_path / "split", 4)
    rows = [pa.record_batch({"id": [f"{n:032}"]}) for n in range(2000)]
    with split:
        for row in rows:
            split.add(row)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 2 * sum(row.nbytes for row in rows)
    assert sorted(id for table in split for id in table["id"].to_pylist()) == [f"{n:032}" for n in range(2000)]
