"""File systems without locks: one behavior for each error that means it, a lock file, a marker and one note."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from audioclip_beam.model.files import locked
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io import json_file
from audioclip_beam.pipeline.io.json_file import describe_lock, has_ended, owner, process, update_json, write_json
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.dead_runs import dead_runs
from audioclip_beam.pipeline.snapshots.history import gc, rollback
from audioclip_beam.pipeline.snapshots.run_directory import NO_LOCKS_NOTE, end_run, list_runs, run_path, start_run
from audioclip_beam.pipeline.validation import validate
from tests.support.corpus import embed, write_jsonl
from tests.support.no_locks import fail_locks, preload
from tests.support.stub import StubHead

ERRORS = ["ENOLCK", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EINVAL"]


@pytest.fixture(params=ERRORS)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let locks fail, waits for a lock file be short, and warnings be errors."""
    fail_locks(monkeypatch, getattr(errno, request.param))
    monkeypatch.setattr(json_file, "LOCK_CHECK_SECONDS", 0.01)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "flock")
        yield


def ended() -> int:
    """Return the process id of a program that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as program:
        return program.pid


@pytest.mark.usefixtures("without_locks")
def test_snapshots_are_published_under_a_lock_file(tmp_path: Path) -> None:
    """Two nights, a rollback and a removal: each publishes, notes it once, and leaves neither lock nor marker."""
    source, out = write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}]), tmp_path / "out"
    for text in ("cat", "cow"):
        manifest, embedded = embed(source, out)
        assert manifest["notes"].count(NO_LOCKS_NOTE) == 1
        write_jsonl(source, [{"text": "dog"}, {"text": text}])
    assert embedded == ["cat"], "the first night's vectors are reused"
    assert dead_runs(str(out), list_runs(str(out))) == ({}, [])
    first, second = list_runs(str(out))
    assert rollback(str(out)) == run_path(str(out), first)
    assert current_name(str(out)) == first
    assert gc(str(out), 1) == []
    assert rollback(str(out), second) == run_path(str(out), second)
    assert {path.name for path in out.iterdir()} == {"current.json", "snapshots"}
    assert not [path for path in out.rglob("*") if path.name in ("run.json", "run.lock")]
    assert validate(str(out)).checks[0].faults == 0


@pytest.mark.usefixtures("without_locks")
def test_runs_are_dead_when_their_process_has_ended(tmp_path: Path) -> None:
    """One of this machine; another machine's is named with the file to remove, until it is a day old."""
    name, lock = start_run(str(tmp_path), "0123456789")
    marker = Path(run_path(str(tmp_path), name), "run.json")
    assert lock is None
    dead, notes = dead_runs(str(tmp_path), list_runs(str(tmp_path)))
    assert (dead, len(notes)) == ({}, 1), "it is this process's"
    assert notes[0].endswith(f"if it has ended, remove {marker}")

    alive = json.loads(marker.read_text())
    marker.write_text(json.dumps({**alive, "process": ended()}))
    assert list(dead_runs(str(tmp_path), list_runs(str(tmp_path)))[0]) == [name]
    marker.write_text(json.dumps({**alive, "process": ended(), "machine": "another"}))
    assert dead_runs(str(tmp_path), list_runs(str(tmp_path)))[0] == {}
    os.utime(marker, (time.time() - 25 * 3600,) * 2)
    assert list(dead_runs(str(tmp_path), list_runs(str(tmp_path)))[0]) == [name]
    end_run(str(tmp_path), name)
    assert not marker.exists()


def test_a_lock_that_this_machine_cannot_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with locks runs, and one that mounts the same directory without them leaves the run alone."""
    name, lock = start_run(str(tmp_path), "0123456789")
    assert lock
    with monkeypatch.context() as patch:
        fail_locks(patch, errno.ENOLCK)
        dead, notes = dead_runs(str(tmp_path), list_runs(str(tmp_path)))
    assert dead == {}
    assert notes[0].endswith(f"if it has ended, remove {run_path(str(tmp_path), name)}/run.lock")
    lock.release()
    assert list(dead_runs(str(tmp_path), list_runs(str(tmp_path)))[0]) == [name]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"process": "ended"}, True),
        ({"process": "ended", "machine": "another"}, False),
        ({"process": 1}, False),
        ({"process": "7"}, False),
        ({"process": -1}, False),
        ({"process": 0}, False),
        ({"process": None}, False),
        ({"process": "ended", "machine": None}, False),
    ],
)
def test_whether_a_process_has_ended(changes: dict[str, object], expected: bool) -> None:
    """It counts as ended only if that is certain."""
    changes = {name: ended() if value == "ended" else value for name, value in changes.items()}
    assert has_ended({**owner(), **process(), **changes}) is expected
    assert has_ended(owner()) is False


@pytest.mark.usefixtures("without_locks")
def test_a_lock_file_that_was_left_behind(tmp_path: Path) -> None:
    """Of a dead process of this machine it does not count; another one is named before the model runs."""
    path, lock = str(tmp_path / "out/current.json"), tmp_path / "out/current.json.lock"
    (tmp_path / "out").mkdir()
    mine = {**owner(), **process()}
    write_json(str(lock), {**mine, "process": ended()})
    assert describe_lock(path) == ""
    update_json(path, lambda _: {"snapshot": "one"})
    assert not lock.exists()

    write_json(str(lock), {**mine, "owner": "ann@host:7", "process": ended(), "machine": "another"})
    note = (
        f"ann@host:7 holds {lock}, without which no run can publish for 10 minutes: remove it if that process has ended"
    )
    with pytest.raises(SnapshotError, match="ann@host:7 holds"):
        update_json(path, lambda _: {"snapshot": "two"})
    (tmp_path / "out/current.json").unlink()
    (tmp_path / "a.txt").write_text("dog\n")
    corpus = EmbedCorpus(EmbedOptions(input=f"{tmp_path}/a.txt", output=f"{tmp_path}/out"), StubHead())
    assert note in corpus.job.notes
    write_json(str(lock), {**mine, "machine": "another", "time": time.time() - 601})
    assert describe_lock(path) == ""


@pytest.mark.usefixtures("without_locks")
def test_what_is_fetched_is_locked_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process at a time; a file that stays is named with its remedy."""
    monkeypatch.setattr("audioclip_beam.model.files.LOCK_SECONDS", 0.1)
    for _ in range(2):
        with locked(tmp_path / "x.lock"):
            assert (tmp_path / "x.lock.held").exists()
        assert not list(tmp_path.iterdir())
    with (
        locked(tmp_path / "x.lock"),
        pytest.raises(OSError, match=r"x\.lock\.held shows that another process works there: remove it if none does"),
        locked(tmp_path / "x.lock"),
    ):
        pass


def test_other_errors_of_locks_stay_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_locks(monkeypatch, errno.EIO)
    with pytest.raises(SnapshotError, match="cannot be written: Input/output error"):
        start_run(str(tmp_path / "out"), "0123456789")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_the_command_line_without_locks(tmp_path: Path, vocabulary: Path, small_head: str) -> None:
    """A run prints the note once and no warning, and leaves no lock."""
    (tmp_path / "more.jsonl").write_text('{"text": "a dog"}\n')
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), **preload(tmp_path, errno.ENOLCK)}
    command = f"-m audioclip_beam.pipeline embed --checkpoint {small_head} --tokenizer_path {vocabulary} --output out"
    done = subprocess.run(
        [sys.executable, *command.split(), "--input", "more.jsonl"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 read = 1 embedded" in done.stdout
    assert (done.stdout + done.stderr).count(NO_LOCKS_NOTE) == 1
    assert "Warning" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"current.json", "snapshots"}
