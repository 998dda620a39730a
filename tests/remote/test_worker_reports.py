"""What workers leave in the run directory of a remote job: errors that end the run, and counts."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.io.retries import StoreError
from audioclip_beam.pipeline.metrics import TALLY
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.remote import worker_reports
from audioclip_beam.pipeline.remote.worker_reports import RunReports, read_reports, remove_reports
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.run_directory import run_path
from tests.support import object_stores
from tests.support.corpus import embed
from tests.support.object_stores import Store
from tests.support.remote_jobs import IN_SERVER, job_server, report_error
from tests.support.stub import StubHead

store = object_stores.store


def reported_by_a_run(folder: Path, shard: Path, head: StubHead, *, remove: bool = False, **options: Any) -> str:
    """Return the one error that a run into out in `folder` reports before it fails; `remove` deletes the shard meanwhile."""
    with job_server() as endpoint:
        remote = {"runner": "PortableRunner", "job_endpoint": endpoint, "environment_type": IN_SERVER}
        chosen = EmbedOptions(input=shard, output=folder / "out", **remote, **options)
        corpus = EmbedCorpus(chosen, head)
        if remove:
            shard.unlink()
        with closing(corpus):
            with pytest.raises(RuntimeError) as failure:
                run(corpus, chosen)
            (error,) = set(read_reports(run_path(str(folder / "out"), str(corpus.snapshot))).errors)
    assert error == str(failure.value)
    return error


def test_a_shard_that_workers_do_not_find(tmp_path: Path) -> None:
    """It is reported: a runner that restarts its job would read it in vain each time."""
    (tmp_path / "a.txt").write_text("dog\n")
    error = reported_by_a_run(tmp_path, tmp_path / "a.txt", StubHead(), remove=True)
    assert error.endswith("restore it or leave it out, and run again")


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_text_that_is_too_long(tmp_path: Path, known: bool) -> None:
    """It is reported, too, whether the model gets it or it has an earlier vector."""
    (tmp_path / "a.txt").write_text("dog\n" + "many words " * 50)
    if known:
        embed(tmp_path / "a.txt", tmp_path / "out")
    error = reported_by_a_run(tmp_path, tmp_path / "a.txt", StubHead(), on_long="error")
    assert error.startswith("a.txt, row 1: the text has 102 tokens")


def test_an_error_of_a_run_that_has_published(tmp_path: Path) -> None:
    """A stage that is executed once more may fail permanently: the job is not cancelled, and the run does not fail."""
    report_error(tmp_path)
    run = tmp_path / "out/snapshots/run"
    assert read_reports(str(run)).errors == ["no vocabulary file at /nowhere"]
    (run / "manifest.json").write_text("{}")
    assert read_reports(str(run)).errors == []


def test_a_worker_that_reports_lists_no_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory has thousands: a worker asks for two names, until the run is published."""
    monkeypatch.setattr(worker_reports, "STORE_SECONDS", 0.02)
    directory = f"{store.url}/out/snapshots/run"
    store.put("out/snapshots/run/run.json", b"{}")
    store.seen.clear()
    TALLY["rows_read"] += 1
    RunReports(directory).start()
    deadline = time.monotonic() + 20
    while len([request for request in store.seen if "run.json" in request.path]) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not [request.path for request in store.seen if "prefix=" in request.path]
    store.put("out/snapshots/run/manifest.json", b"{}")
    while read_reports(directory).workers:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_reports_that_are_being_written_do_not_count(tmp_path: Path) -> None:
    """Nor does one that was removed since it was listed: an error without a text would end the run without a reason."""
    with pytest.raises(FileNotFoundError), RunReports(str(tmp_path)).errors():
        raise FileNotFoundError("no vocabulary file at /nowhere")
    (report,) = tmp_path.iterdir()
    report.with_name(f"{report.name}.1-abc.tmp").write_bytes(b"{")
    (tmp_path / "_worker-1.json.1-abc.tmp").write_bytes(b"{")
    (tmp_path / "_error-0.json").symlink_to(tmp_path / "removed")  # listed, and cannot be read
    reports = read_reports(str(tmp_path))
    assert reports.errors == ["no vocabulary file at /nowhere"]
    assert reports.workers == 0


def test_reports_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has been published, or has another error: no error of its end may hide that."""

    listed = []

    def fail(directory: str) -> list[object]:
        listed.append(directory)
        raise StoreError(f"{directory} cannot be listed")

    monkeypatch.setattr(worker_reports, "list_directory", fail)
    remove_reports(str(tmp_path))
    assert listed == [str(tmp_path)]


@pytest.mark.parametrize("detached", [True, False], ids=["goes on without its launcher", "ends with it"])
def test_a_worker_reports_until_its_run_has_ended(
    tmp_path: Path, detached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counts are in the run directory while that has its marker or its launcher's lock; then none are left."""
    monkeypatch.setattr(worker_reports, "REPORT_SECONDS", 0.02)
    marker, lock = tmp_path / "run.json", FileLock(tmp_path / "run.lock")
    if detached:
        marker.write_text("{}")
    else:
        lock.acquire()
    TALLY["rows_read"] += 1
    RunReports(str(tmp_path)).start()
    deadline = time.monotonic() + 20
    while read_reports(str(tmp_path)).counts["rows_read"] != TALLY["rows_read"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    marker.unlink(missing_ok=True)
    lock.release()
    while set(tmp_path.iterdir()) - {tmp_path / "run.lock"}:
        assert time.monotonic() < deadline
