"""Clocks that are wrong, and runs that meet: names keep their order, leases end, and one run at a time publishes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from audioclip_text.pipeline.errors import SnapshotError
from audioclip_text.pipeline.io import json_file as pointer
from audioclip_text.pipeline.snapshots import run_directory as run_dirs
from audioclip_text.pipeline.snapshots.commit import current_name
from audioclip_text.pipeline.snapshots.history import rollback
from audioclip_text.pipeline.snapshots.run_directory import is_alive, list_runs, run_path, start_run
from tests.support.corpus import embed, read, write_jsonl
from tests.support.faults import Fault, Faults

ROOT = Path(__file__).parents[2]
FINGERPRINT = "0123456789abcdef"


def _rows(count: int) -> list[dict[str, object]]:
    return [{"id": f"r{n}", "text": f"text number {n}"} for n in range(count)]


def _set_clock(monkeypatch: pytest.MonkeyPatch, change: timedelta) -> None:
    """The clock that runs take their names from, off by `change`."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + change  # type: ignore[arg-type]

    monkeypatch.setattr(run_dirs, "datetime", Wrong)


def test_snapshots_sort_by_age_after_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night with the clock a year back is still the newest: it reuses, and rollback goes to the one before it."""
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


def test_a_living_run_is_alive_by_its_lock_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk neither a year ahead nor a year back makes a dead run of a living one, or the other way round."""
    output = str(tmp_path)
    name, lock = start_run(output, FINGERPRINT)
    for days in (-365, 0, 365):
        _set_clock(monkeypatch, timedelta(days=days))
        assert is_alive(output, name, list_runs(output)[name])
        monkeypatch.undo()
    assert lock is not None
    lock.release()
    for days in (-365, 0, 365):
        _set_clock(monkeypatch, timedelta(days=days))
        assert not is_alive(output, name, list_runs(output)[name])
        monkeypatch.undo()


def test_a_lease_from_before_the_clock_was_set_back_does_not_hold_until_then(tmp_path: Path) -> None:
    """A lock file says when it was taken; a time that is still to come is no reason to wait for it."""
    path = str(tmp_path / "current.json")
    for ahead, free in ((-2, False), (300, False), (86_400, True), (-86_400, True)):
        pointer.write_json(f"{path}.lock", {"owner": "ann@host:7", "time": time.time() + ahead})
        if free:
            with pointer._lock_file(path):
                pass
            assert not Path(f"{path}.lock").exists()
        else:
            with pytest.raises(SnapshotError, match="ann@host:7 holds"), pointer._lock_file(path):
                pass


def test_a_name_is_looked_for_only_where_it_is_taken(tmp_path: Path) -> None:
    """Runs that begin in one second step out of each other's way; a directory that cannot be made is an error at once."""
    names = [start_run(str(tmp_path), FINGERPRINT)[0] for _ in range(5)]
    assert len(set(names)) == 5
    faults = Faults(tmp_path / "other")
    with faults.armed(Fault("start", 2)), pytest.raises(SnapshotError, match="Input/output error"):
        start_run(str(tmp_path / "other"), FINGERPRINT)
    assert faults.seen["start"] < 5, "it tried again"
    assert os.listdir(tmp_path / "other/snapshots") == []


def test_rollback_goes_to_what_the_current_snapshot_followed(tmp_path: Path) -> None:
    """Not to one that was gone back from: that one was bad."""
    names = []
    for night in range(4):
        write_jsonl(tmp_path / "a.jsonl", _rows(10 + night))
        names.append(embed(tmp_path / "a.jsonl", tmp_path / "out")[0]["snapshot"])
        if night == 2:
            rollback(str(tmp_path / "out"))
    rollback(str(tmp_path / "out"))
    assert current_name(str(tmp_path / "out")) == names[1]


def test_files_lost_before_publishing_are_missed(tmp_path: Path) -> None:
    """What somebody removed from a running job's directory, or cut short, fails it: no manifest names what is not there."""
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


def test_two_runs_at_once_in_processes_of_their_own(tmp_path: Path) -> None:
    """One publishes, the other says so and leaves it alone; the next run finds a whole store and clears up."""
    write_jsonl(tmp_path / "a.jsonl", _rows(500))
    command = [sys.executable, "-m", "tests.support.slow_run", str(tmp_path / "a.jsonl"), str(tmp_path / "out")]
    both = [
        subprocess.Popen([*command, str(tmp_path / f"calls{n}")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert "RuntimeError: another run published" in errors[both[0].returncode == 0]
    assert len(read(tmp_path / "out")) == 500
    manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")
    assert texts == []
    assert manifest["counts"]["reused"] == 500
    assert all((path / "manifest.json").exists() for path in (tmp_path / "out/snapshots").iterdir())


def test_a_run_that_cannot_start_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam makes a directory for each pipeline; it goes with a run that fails, however early."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write_jsonl(tmp_path / "a.jsonl", _rows(3))
    for effect in ("start", "write"):
        with Faults(tmp_path / "out").armed(Fault(effect, lasting=True)), pytest.raises(RuntimeError):
            embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert list((tmp_path / "tmp").iterdir()) == []
