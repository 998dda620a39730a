"""Wrong clocks and concurrent runs: names keep their order, and one run at a time publishes."""

from __future__ import annotations

import os
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io import json_file
from audioclip_beam.pipeline.snapshots import run_directory
from audioclip_beam.pipeline.snapshots.commit import current_name, publish
from audioclip_beam.pipeline.snapshots.dead_runs import dead_runs
from audioclip_beam.pipeline.snapshots.history import rollback
from audioclip_beam.pipeline.snapshots.run_directory import list_runs, run_path, start_run
from tests.support.corpus import embed, read, write_jsonl
from tests.support.faults import Fault, Faults
from tests.support.processes import start_process
from tests.support.slow_run import slow_run
from tests.support.snapshots import write_snapshot

FINGERPRINT = "0123456789abcdef"


def _rows(count: int) -> list[dict[str, object]]:
    return [{"id": f"r{n}", "text": f"text number {n}"} for n in range(count)]


def _set_clock(monkeypatch: pytest.MonkeyPatch, change: timedelta) -> None:
    """Shift the clock that runs take their names from by `change`."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + change  # type: ignore[arg-type]

    monkeypatch.setattr(run_directory, "datetime", Wrong)


@pytest.mark.slow
def test_snapshots_sort_by_age_after_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with the clock set back a year is still the newest: it reuses, and rollback goes to the one before it."""
    names = []
    for night, change in enumerate((timedelta(0), timedelta(days=-365), timedelta(hours=-3))):
        _set_clock(monkeypatch, change)
        write_jsonl(tmp_path / "a.jsonl", _rows(10 + night))
        manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")
        assert len(texts) == (10 if night == 0 else 1)
        names.append(manifest["snapshot"])
        monkeypatch.undo()
    assert names == sorted(names)
    assert rollback(str(tmp_path / "out")) == run_path(str(tmp_path / "out"), names[1])
    assert len(read(tmp_path / "out")) == 11


def test_lock_and_not_the_clock_decides_whether_a_run_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk, a clock that is wrong by a year makes neither a living run dead nor a dead run alive."""
    output = str(tmp_path)
    name, lock = start_run(output, FINGERPRINT)
    for days in (-365, 0, 365):
        _set_clock(monkeypatch, timedelta(days=days))
        assert dead_runs(output, list_runs(output)) == ({}, [])
        monkeypatch.undo()
    assert lock is not None
    lock.release()
    for days in (-365, 0, 365):
        _set_clock(monkeypatch, timedelta(days=days))
        assert list(dead_runs(output, list_runs(output))[0]) == [name]
        monkeypatch.undo()


def test_other_name_is_tried_only_if_the_name_is_used(tmp_path: Path) -> None:
    """Runs that start in one second get different names; a directory that cannot be made is an error without a retry."""
    names = [start_run(str(tmp_path), FINGERPRINT)[0] for _ in range(5)]
    assert len(set(names)) == 5
    faults = Faults(tmp_path / "other")
    with faults.armed(Fault("start", 2)), pytest.raises(SnapshotError, match="Input/output error"):
        start_run(str(tmp_path / "other"), FINGERPRINT)
    assert faults.seen["start"] < 5, "it retried"
    assert os.listdir(tmp_path / "other/snapshots") == []


@pytest.mark.slow
def test_rollback_skips_snapshots_that_were_rolled_back(tmp_path: Path) -> None:
    """Rollback goes to the snapshot that the current one followed, not to one that was rolled back in between."""
    names = []
    for night in range(4):
        write_jsonl(tmp_path / "a.jsonl", _rows(10 + night))
        names.append(embed(tmp_path / "a.jsonl", tmp_path / "out")[0]["snapshot"])
        if night == 2:
            rollback(str(tmp_path / "out"))
    rollback(str(tmp_path / "out"))
    assert current_name(str(tmp_path / "out")) == names[1]


@pytest.mark.slow
def test_files_lost_before_publishing_fail_the_run(tmp_path: Path) -> None:
    """A file that is removed or truncated while the job runs fails it, so no manifest names a missing file."""
    write_jsonl(tmp_path / "a.jsonl", _rows(30))
    for harm in (os.unlink, lambda path: os.truncate(path, 100)):

        def meanwhile(harm=harm) -> None:  # type: ignore[no-untyped-def]
            newest = max((tmp_path / "out/snapshots").iterdir())
            harm(next(newest.glob("part-*.parquet")))

        faults = Faults(tmp_path)
        fault = Fault("rename", 2, meanwhile=meanwhile)
        with (
            faults.armed(fault),
            pytest.raises(RuntimeError, match=r"1 of \d finished files are gone from .*or not as"),
        ):
            embed(tmp_path / "a.jsonl", tmp_path / "out", max_file_rows=10)
        assert current_name(str(tmp_path / "out")) is None
    assert embed(tmp_path / "a.jsonl", tmp_path / "out")[0]["counts"]["read"] == 30


@pytest.mark.slow
def test_two_concurrent_processes(tmp_path: Path) -> None:
    """One run publishes, the other fails and changes nothing; the next run reuses all rows and removes the remains."""
    write_jsonl(tmp_path / "a.jsonl", _rows(500))
    shards, output, errors = (
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "out"),
        [tmp_path / f"errors{n}" for n in range(2)],
    )
    both = [start_process(slow_run, shards, output, str(tmp_path / f"log{n}"), stderr=errors[n]) for n in range(2)]
    for process in both:
        process.join(timeout=120)
    assert sorted(process.exitcode or 0 for process in both) == [0, 1]
    assert "RuntimeError: the current snapshot is now" in errors[both[0].exitcode == 0].read_text()
    assert len(read(tmp_path / "out")) == 500
    manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", force=True)
    assert texts == []
    assert manifest["counts"]["reused"] == 500
    assert all((path / "manifest.json").exists() for path in (tmp_path / "out/snapshots").iterdir())


def test_run_that_cannot_start_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam makes a temporary directory per pipeline; it is removed even if the run fails at its start."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write_jsonl(tmp_path / "a.jsonl", _rows(3))
    for effect in ("start", "write"):
        with Faults(tmp_path / "out").armed(Fault(effect, lasting=True)), pytest.raises(RuntimeError):
            embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_manifest_is_written_under_the_lock_of_the_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another run holds it, there is neither a manifest nor a pointer."""
    monkeypatch.setattr(json_file, "LOCAL_LOCK_SECONDS", 0.1)
    manifest = write_snapshot(tmp_path, [], 8)
    written = tmp_path / "current.json", Path(run_path(str(tmp_path), manifest["snapshot"]), "manifest.json")
    for path in written:
        path.unlink()
    with FileLock(tmp_path / "publish.lock"), pytest.raises(SnapshotError, match="another run holds .*publish.lock"):
        publish(str(tmp_path), manifest)
    assert not any(path.exists() for path in written)
    publish(str(tmp_path), manifest)
    assert all(path.exists() for path in written)
