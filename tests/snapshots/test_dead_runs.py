"""A run is dead only if that is known: jobs whose service does not know count as alive, and asking takes seconds at most."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.remote import job_service
from audioclip_beam.pipeline.remote.job_service import RemoteJob
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots import dead_runs as dead_runs_module
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.dead_runs import dead_runs
from audioclip_beam.pipeline.snapshots.run_directory import list_runs, record_job, remove_dead_run, run_path, start_run
from audioclip_beam.pipeline.validation import validate
from tests.support import object_stores
from tests.support.corpus import write_jsonl
from tests.support.http_server import serving
from tests.support.object_stores import Store
from tests.support.remote_jobs import job_server
from tests.support.stub import StubHead
from tests.support.users import unprivileged

store = object_stores.store

HOURS = 3600


def lone_run(output: Path, job: RemoteJob | None) -> str:
    """Make the directory of a remote run whose launcher is gone; return its name."""
    name, lock = start_run(str(output), "0123456789", detached=True)
    if job:
        record_job(str(output), name, job)
    assert lock
    lock.release()
    return name


def dead(output: Path) -> list[str]:
    return list(dead_runs(str(output), list_runs(str(output)))[0])


def notes(output: Path) -> list[str]:
    return dead_runs(str(output), list_runs(str(output)))[1]


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that accepts connections and sends nothing."""
    with socket.create_server(("localhost", 0)) as server:
        yield f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An endpoint at which nothing listens."""
    with socket.create_server(("localhost", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


def test_a_job_server_that_cannot_be_reached(tmp_path: Path, closed: str) -> None:
    """Its run counts as alive; the note names the file to remove if the job has ended, and then the run is dead."""
    run = lone_run(tmp_path, RemoteJob("job-17", "PortableRunner", closed))
    path = Path(run_path(str(tmp_path), run), "run.json")
    assert dead(tmp_path) == []
    assert notes(tmp_path) == [
        f"{run} may still be running at {closed} (job job-17), which does not report its state: its files are neither "
        f"reused nor removed; if it has ended, remove {path}"
    ]
    path.unlink()
    assert dead(tmp_path) == [run]


def test_a_job_server_that_was_restarted(tmp_path: Path) -> None:
    """A job that it does not know counts as alive."""
    with job_server() as endpoint:
        lone_run(tmp_path, RemoteJob("job-17", "PortableRunner", endpoint))
        assert dead(tmp_path) == []
        assert "which does not report its state" in notes(tmp_path)[0]


def test_a_job_server_of_the_launcher_itself(tmp_path: Path) -> None:
    """No one can be asked: the run counts as alive."""
    run = lone_run(tmp_path, RemoteJob("job-17", "FlinkRunner"))
    assert dead(tmp_path) == []
    assert notes(tmp_path)[0].startswith(f"{run} may still be running at FlinkRunner (job job-17)")


def test_services_that_do_not_answer_cost_one_wait(
    tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs at a job server and two at Dataflow, both silent: the check ends after one limit in all."""
    monkeypatch.setattr(job_service, "ANSWER_SECONDS", 1.0)
    for number in range(3):
        lone_run(tmp_path, RemoteJob(f"job-{number}", "PortableRunner", silent))
    for number in range(2):
        lone_run(tmp_path, RemoteJob(f"id-{number}", "DataflowRunner", f"http://{silent}", "project", "region"))
    start = time.monotonic()
    assert dead(tmp_path) == []
    assert time.monotonic() - start < 4, "not five waits"


def test_a_run_without_a_job_is_dead_after_a_day_without_files(tmp_path: Path) -> None:
    """Its launcher was killed before it knew the job's id: the job may have been submitted."""
    run = lone_run(tmp_path, None)
    directory = Path(run_path(str(tmp_path), run))
    (note,) = notes(tmp_path)
    assert note.endswith(f"until the newest is 24 hours old; if it has ended, remove {directory / 'run.json'}")
    files = sorted(directory.iterdir())
    assert len(files) > 1
    for path in files:  # the newest decides
        assert dead(tmp_path) == []
        os.utime(path, (time.time() - 25 * HOURS,) * 2)
    assert dead(tmp_path) == [run]


def test_listings_of_a_dry_run_are_kept_for_a_day(tmp_path: Path) -> None:
    """It may still be running; neither it nor one that was killed is worth a note."""
    directory = Path(run_path(str(tmp_path), ".plan-0123"))
    directory.mkdir(parents=True)
    listing = directory / "_shards.parquet"
    listing.touch()
    for _ in range(2):
        assert (dead(tmp_path), notes(tmp_path)) == ([], [])
    os.utime(listing, (time.time() - 25 * HOURS,) * 2)
    assert (dead(tmp_path), notes(tmp_path)) == ([".plan-0123"], [])


def test_listings_of_a_dry_run_on_an_object_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("out/snapshots/.plan-0123/_shards.parquet", b"listing")
    assert dead_runs(f"{store.url}/out", list_runs(f"{store.url}/out")) == ({}, [])
    monkeypatch.setattr(dead_runs_module, "UNKNOWN_RUN_SECONDS", -60)
    assert list(dead_runs(f"{store.url}/out", list_runs(f"{store.url}/out"))[0]) == [".plan-0123"]


def test_the_lock_of_a_launcher_decides_first(tmp_path: Path, closed: str) -> None:
    """While the launcher waits for the job, no service is asked and nothing is noted."""
    name, lock = start_run(str(tmp_path), "0123456789", detached=True)
    record_job(str(tmp_path), name, RemoteJob("job-17", "PortableRunner", closed))
    assert (dead(tmp_path), notes(tmp_path)) == ([], [])
    assert lock
    lock.release()
    assert notes(tmp_path)


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_another_process(tmp_path: Path) -> None:
    """The run is alive as long as that process holds it."""
    name, lock = start_run(str(tmp_path), "0123456789")
    assert lock
    lock.release()
    assert dead(tmp_path) == [name]
    command = [sys.executable, "-c", HOLDER, os.path.join(run_path(str(tmp_path), name), "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        assert dead(tmp_path) == []
        process.communicate()
    assert dead(tmp_path) == [name]


def test_a_user_who_may_only_read() -> None:
    """`plan` and `gc --dry_run` of another user than the one of the runs: nothing is written."""
    with tempfile.TemporaryDirectory() as folder:  # only root may enter the directories that pytest makes for root
        output = Path(folder)
        names = []
        for after in ("", "20990101T000000Z-01234567"):
            name, lock = start_run(folder, "0123456789", after=after)
            names.append(name)
            assert lock
            lock.release()
        without_lock = Path(run_path(folder, names[1]))
        (without_lock / "run.lock").unlink()
        for path in (output, *output.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with unprivileged():
            assert dead(output) == names
        assert not list(without_lock.iterdir())
        for path in (output, *output.rglob("*")):
            path.chmod(0o755)


def test_a_run_that_publishes_while_it_is_asked_for_is_not_dead(tmp_path: Path) -> None:
    """Its directory was listed before the manifest was written."""
    run = lone_run(tmp_path, None)
    directory = Path(run_path(str(tmp_path), run))
    runs = list_runs(str(tmp_path))
    (directory / "manifest.json").write_text("{}")
    (directory / "run.json").unlink()
    assert dead_runs(str(tmp_path), runs) == ({}, [])


@pytest.fixture
def dataflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, object]]]:
    """Serve Dataflow's REST interface: yield its URL, and the answers by path, status codes or states."""
    answers: dict[str, object] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path, 404)
            body = b"{}" if isinstance(answer, int) else b'{"id": "x", "currentState": "%s"}' % str(answer).encode()
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}", answers


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        *((f"JOB_STATE_{state}", True) for state in ("DONE", "FAILED", "CANCELLED", "DRAINED")),
        *((f"JOB_STATE_{state}", False) for state in ("RUNNING", "PENDING", "QUEUED", "CANCELLING", "UPDATED", "NEW")),
        *((status, False) for status in (302, 401, 403, 404, 500)),
    ],
)
def test_dataflow(tmp_path: Path, dataflow: tuple[str, dict[str, object]], answer: object, ended: bool) -> None:
    """The state by project, region and job id; what is not known to have ended counts as alive."""
    url, answers = dataflow
    answers["/v1b3/projects/my-project/locations/europe-west4/jobs/2026-11-25_id"] = answer
    run = lone_run(tmp_path, RemoteJob("2026-11-25_id", "DataflowRunner", url, "my-project", "europe-west4"))
    assert dead(tmp_path) == ([run] if ended else [])


def test_only_google_gets_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint is read from a file that others may have written."""
    requests: list[object] = []
    monkeypatch.setattr("apache_beam.internal.gcp.auth.get_service_credentials", requests.append)
    monkeypatch.setattr("requests.Session.get", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    hosts = [
        "http://dataflow.googleapis.com",
        "https://googleapis.com.evil.example",
        "https://dataflow.googleapis.com@evil",
    ]
    for number, host in enumerate(hosts):
        lone_run(tmp_path, RemoteJob(f"id-{number}", "DataflowRunner", host, "p", "r"))
    assert dead(tmp_path) == []
    assert requests == []
    lone_run(tmp_path, RemoteJob("id", "DataflowRunner", "https://dataflow.googleapis.com", "p", "r"))
    assert dead(tmp_path) == []
    assert len(requests) == 1


def test_a_run_that_takes_the_name_of_a_dead_one_is_not_removed(tmp_path: Path) -> None:
    """Another process removes the dead run's directory while the new run starts; neither this run nor gc then removes it."""
    output = tmp_path / "out"
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}])
    options = EmbedOptions(input=tmp_path / "a.jsonl", output=output)
    now = datetime.now(UTC)
    head = StubHead()
    fingerprint = head.info().storing("float32").fingerprint[:8]
    times = [now + timedelta(seconds=second) for second in range(100)]
    directories = [output / "snapshots" / f"{time:%Y%m%dT%H%M%SZ}-{fingerprint}" for time in times]
    for directory in directories:
        directory.mkdir(parents=True)
    corpus = EmbedCorpus(options, head)
    assert len(corpus.job.earlier.dead_runs) == 100
    for directory in directories:
        directory.rmdir()
    run(corpus, options)
    name = current_name(str(output))
    assert name in [directory.name for directory in directories]
    assert validate(str(output)).valid
    assert not remove_dead_run(str(output), str(name))
    corpus.close()
    live, lock = start_run(str(output), fingerprint)
    assert not remove_dead_run(str(output), live)
    assert lock
    lock.release()
    assert remove_dead_run(str(output), live)
