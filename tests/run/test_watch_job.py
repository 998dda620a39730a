"""The watch of a remote job: its workers' errors, its cancellation, and the counts of the progress line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from audioclip_beam.pipeline.metrics import TALLY
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run import watch_job
from audioclip_beam.pipeline.run.watch_job import JobWatch
from tests.support.remote_jobs import FLAGS, report_error


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a watch look often, and explain at once."""
    monkeypatch.setattr(watch_job, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watch_job, "START_SECONDS", 0.1)


def watch(folder: Path, flink: object = None, cancel: Callable[[], object] = bool) -> JobWatch:
    """Return the watch of a job whose run directory is out/snapshots/run in `folder`."""
    corpus = SimpleNamespace(job=SimpleNamespace(output=str(folder / "out")), snapshot="run")
    return JobWatch(corpus, SimpleNamespace(cancel=cancel), EmbedOptions([*FLAGS]), flink)  # type: ignore[arg-type]


def test_a_job_that_fails_between_two_looks(tmp_path: Path) -> None:
    """What a worker reported is read once more: the runner's own error may say less."""

    def fail() -> None:
        report_error(tmp_path)
        raise RuntimeError("failed in state FAILED: unknown error")

    job = watch(tmp_path)
    with pytest.raises(RuntimeError, match="unknown error"), job:
        fail()
    assert job.error == "no vocabulary file at /nowhere"


@pytest.mark.usefixtures("quick")
def test_workers_that_never_start_are_explained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line names the likely reasons."""
    with watch(tmp_path):
        time.sleep(0.5)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no worker has reported" in line
    assert "a worker pool must run at localhost:1 on the machine of every task manager" in line


@pytest.mark.usefixtures("quick")
def test_the_end_of_a_run_waits_until_flink_has_cancelled_it(tmp_path: Path) -> None:
    """Cancelling the job at Beam's job server ends the wait for the job, and the process would end before Flink is asked."""
    cancelled, flink = threading.Event(), SimpleNamespace()
    flink.cancel = lambda: (cancelled.wait(0.5), cancelled.set())
    report_error(tmp_path)
    deadline = time.monotonic() + 20
    with watch(tmp_path, flink) as job:
        while job.error is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert cancelled.is_set()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("answers", [True, False], ids=["its service answers", "its service does not answer"])
def test_a_job_that_does_not_end_when_it_is_cancelled(
    tmp_path: Path, answers: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is printed though the launcher still waits for the job, which on Dataflow takes minutes to end."""
    monkeypatch.setattr(watch_job, "CANCEL_SECONDS", 0.1)
    report_error(tmp_path)
    released, errors, deadline = threading.Event(), "", time.monotonic() + 20
    with watch(tmp_path, cancel=lambda: answers or released.wait(60)):
        while not errors:
            errors = capsys.readouterr().err
            assert time.monotonic() < deadline
            time.sleep(0.01)
    released.set()
    assert errors == "audioclip: no vocabulary file at /nowhere; the job is cancelled, and has not ended yet\n"


@pytest.mark.usefixtures("quick")
def test_the_counts_of_workers_are_those_of_the_progress_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are the sums of what each worker left in the run directory, and nothing is explained."""
    run = tmp_path / "out/snapshots/run"
    run.mkdir(parents=True)
    for number, rows in enumerate((20, 22)):
        (run / f"_worker-{number}.json").write_text(json.dumps({"rows_read": rows}))
    with watch(tmp_path):
        time.sleep(0.5)
    assert TALLY["rows_read"] == 42
    assert not capsys.readouterr().err
