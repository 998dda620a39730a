"""A job on a remote runner: its endpoint is checked first, and a signal ends the launcher, not the job."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2 as api
from apache_beam.portability.api import beam_job_api_pb2_grpc
from apache_beam.runners.portability.portable_runner import PipelineResult, PortableRunner

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.embed_command import with_outcome
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions, ends_with_launcher
from audioclip_beam.pipeline.prepare.job import prepare_job
from audioclip_beam.pipeline.remote.worker_reports import RunReports
from audioclip_beam.pipeline.run.flink_job import FlinkJob
from audioclip_beam.pipeline.run.plan_pipeline import count_changes
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.run.signals import handle_signals
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.dead_runs import dead_runs
from audioclip_beam.pipeline.snapshots.run_directory import list_runs
from tests.support.http_server import serving
from tests.support.program import start_program
from tests.support.remote_jobs import FLAGS, IN_SERVER, Gate, job_server, remote_run
from tests.support.stub import StubHead


class EndlessJobs(beam_job_api_pb2_grpc.JobServiceServicer):
    """A job server of Flink's whose only job, job-17, runs until `ended` is set."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.cancelled = self.broken = False

    def DescribePipelineOptions(self, request: object, context: object) -> api.DescribePipelineOptionsResponse:
        kinds = {"retries": api.PipelineOptionType.INTEGER, "reuse_objects": api.PipelineOptionType.BOOLEAN}
        kinds |= {"jar": api.PipelineOptionType.ARRAY, "flink_master": api.PipelineOptionType.STRING}
        kinds["device"] = api.PipelineOptionType.STRING  # a name of this project's own
        options = [api.PipelineOptionDescriptor(name=name, type=kind) for name, kind in kinds.items()]
        return api.DescribePipelineOptionsResponse(options=options)

    def Prepare(self, request: api.PrepareJobRequest, context: object) -> api.PrepareJobResponse:
        self.options = dict(request.pipeline_options)
        return api.PrepareJobResponse(preparation_id="job-17_id")

    def Run(self, request: object, context: object) -> api.RunJobResponse:
        return api.RunJobResponse(job_id="job-17_id")

    def Cancel(self, request: object, context: object) -> api.CancelJobResponse:
        self.cancelled = True
        self.ended.set()
        return api.CancelJobResponse(state=api.JobState.CANCELLED)

    def GetState(self, request: object, context: object) -> api.JobStateEvent:
        return api.JobStateEvent(state=api.JobState.CANCELLED if self.cancelled else api.JobState.RUNNING)

    def GetStateStream(self, request: object, context: grpc.ServicerContext) -> Iterator[api.JobStateEvent]:
        yield api.JobStateEvent(state=api.JobState.RUNNING)
        self.ended.wait()
        if self.broken:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if self.cancelled:
            yield api.JobStateEvent(state=api.JobState.CANCELLED)

    def GetMessageStream(self, request: object, context: object) -> Iterator[api.JobMessagesResponse]:
        self.ended.wait()
        yield from ()


@pytest.fixture
def jobs() -> Iterator[tuple[EndlessJobs, int]]:
    """Start a job server; yield it and its port."""
    service, server = EndlessJobs(), grpc.server(ThreadPoolExecutor(8))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(service, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield service, port
    service.ended.set()
    server.stop(None).wait()


def start_job(folder: Path, *flags: object) -> subprocess.Popen[str]:
    """Start a launcher, and wait until it prints the job's id."""
    (folder / "a.txt").write_text("dog\n")
    process = start_program("embed", "--input", "a.txt", "--output", "out", *flags, cwd=folder)
    stderr, deadline = folder / "stderr", time.monotonic() + 120
    while "Beam's job id: job-17_id" not in stderr.read_text():
        assert process.poll() is None, stderr.read_text()
        assert time.monotonic() < deadline, stderr.read_text()
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_a_signal_names_the_job_that_goes_on(
    tmp_path: Path, jobs: tuple[EndlessJobs, int], small_head: str, vocabulary: Path
) -> None:
    """The launcher ends with the signal's status; the job is not cancelled, and its run directory stays."""
    service, port = jobs
    model = "--checkpoint", small_head, "--tokenizer_path", vocabulary
    process = start_job(tmp_path, *model, *FLAGS, f"--job_endpoint=localhost:{port}")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    (run,) = (tmp_path / "out/snapshots").iterdir()
    marker = json.loads((run / "run.json").read_text())
    named = {name: marker[name] for name in ("job", "runner", "endpoint")}
    assert named == {"job": "job-17_id", "runner": "PortableRunner", "endpoint": f"localhost:{port}"}
    assert (tmp_path / "stderr").read_text().splitlines()[-1] == (
        f"audioclip: error: interrupted by SIGTERM: job job-17_id is still running at PortableRunner; `audioclip "
        f"log {tmp_path}/out` lists {run.name} when it is published; to cancel it at Flink: `curl -X PATCH "
        f"'http://FLINK:8081/jobs/ID?mode=cancel'`, with the ID that `curl http://FLINK:8081/jobs/overview` shows for job-17"
    )
    assert not service.cancelled


@pytest.mark.slow
def test_a_signal_ends_a_job_whose_workers_are_in_the_launcher(
    tmp_path: Path, jobs: tuple[EndlessJobs, int], small_head: str, vocabulary: Path
) -> None:
    """With LOOPBACK no job is left: the message reports that nothing was published, and the run counts as dead."""
    _, port = jobs
    model = "--checkpoint", small_head, "--tokenizer_path", vocabulary
    flags = "--runner=PortableRunner", "--environment_type=LOOPBACK", f"--job_endpoint=localhost:{port}"
    process = start_job(tmp_path, *model, *flags)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert (tmp_path / "stderr").read_text().splitlines()[-1] == (
        "audioclip: error: interrupted by SIGTERM: nothing was published; run the same command again, which reuses "
        "what is finished"
    )
    output = str(tmp_path / "out")
    assert len(dead_runs(output, list_runs(output))[0]) == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", True),
        ("--runner PrismRunner", True),
        ("--runner prism --job_endpoint localhost:1 --environment_type EXTERNAL", False),
        ("--runner PortableRunner --job_endpoint localhost:1", False),
        ("--runner PortableRunner --job_endpoint localhost:1 --environment_type LOOPBACK", True),
        ("--runner PortableRunner --job_endpoint embed", True),
        ("--runner FlinkRunner", True),
        ("--runner FlinkRunner --flink_master host:8081", False),
        ("--runner FlinkRunner --job_endpoint localhost:1", False),
        ("--runner SparkRunner", True),
        ("--runner SparkRunner --spark_master_url spark://host:7077", False),
        ("--runner DataflowRunner", False),
    ],
)
def test_which_jobs_end_with_their_launcher(flags: str, expected: bool) -> None:
    """Those whose workers, or whose whole cluster, are this process and its children."""
    assert ends_with_launcher(EmbedOptions(flags.split())) is expected


@pytest.mark.parametrize("listens", [True, False], ids=["accepts and says nothing", "refuses"])
@pytest.mark.parametrize("command", ["embed", "plan"])
def test_an_endpoint_that_does_not_answer(
    tmp_path: Path, listens: bool, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the endpoint, in the time of --job_server_timeout and at most 30 seconds, before anything starts."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as server:
        server.bind(("localhost", 0))
        if listens:
            server.listen()
        endpoint = f"localhost:{server.getsockname()[1]}"
        flags = ["--input", "gone.txt", "--output", "out", "--checkpoint", "gone.pt", *FLAGS]
        assert main([command, *flags, f"--job_endpoint={endpoint}", "--job_server_timeout=1"]) == 1
    assert f"no job server answers at --job_endpoint {endpoint} (1 s): start it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_flink_master_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The REST port of a cluster is tried before Beam starts a job server."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        master = f"localhost:{server.getsockname()[1]}"
        flags = ["--input", "gone.txt", "--output", str(tmp_path / "out"), "--runner=FlinkRunner"]
        assert main(["embed", *flags, f"--flink_master={master}"]) == 1
    assert f"nothing answers at --flink_master {master}: " in capsys.readouterr().err


@pytest.mark.slow
def test_what_no_retry_repairs_ends_the_run(
    tmp_path: Path, jobs: tuple[EndlessJobs, int], small_head: str, vocabulary: Path
) -> None:
    """An error that a worker reports is printed within seconds, and the job is cancelled; its flags reach the server."""
    service, port = jobs
    model = "--checkpoint", small_head, "--tokenizer_path", vocabulary
    flags = f"--job_endpoint=localhost:{port}", "--retries=3", "--reuse_objects", "--jar=a", "--jar=b"
    process = start_job(tmp_path, *model, *FLAGS, *flags)
    given = {name: service.options[f"beam:option:{name}:v1"] for name in ("retries", "reuse_objects", "jar")}
    assert {**given, "jar": list(given["jar"])} == {"retries": "3", "reuse_objects": True, "jar": ["a", "b"]}
    (run,) = (tmp_path / "out/snapshots").iterdir()
    with pytest.raises(FileNotFoundError), RunReports(str(run)).errors():
        raise FileNotFoundError("no vocabulary file at /nowhere")
    assert process.wait(timeout=60) == 1
    assert "error: no vocabulary file at /nowhere; `audioclip log " in (tmp_path / "stderr").read_text()
    assert service.cancelled
    assert (
        "Flink restarts the job until its restarts are used up; to cancel it at Flink: `curl -X PATCH"
        in (tmp_path / "stderr").read_text()
    )
    assert not [*run.glob("run.json"), *run.glob("_error-*")]


class FlinkJobs(BaseHTTPRequestHandler):
    """Flink's REST interface, with the jobs `jobs` as (id, name, state); `requests` are the paths of all requests."""

    jobs: ClassVar[list[tuple[str, str, str]]] = []
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        names = "jid", "name", "state"
        self._answer(json.dumps({"jobs": [dict(zip(names, job, strict=True)) for job in self.jobs]}).encode())

    def do_PATCH(self) -> None:
        self.requests.append(self.path)
        self._answer(b"{}")

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(
    ("jobs", "cancelled"),
    [
        ([("a", "night", "FINISHED"), ("b", "other", "RUNNING"), ("c", "night", "RESTARTING")], "c"),
        ([("a", "night", "RUNNING"), ("b", "night", "RUNNING")], None),
        ([], None),
    ],
    ids=["one goes on", "two of one name", "unknown"],
)
def test_a_job_is_cancelled_at_flink(jobs: list[tuple[str, str, str]], cancelled: str | None) -> None:
    """By its name, if only one of those that go on has it."""
    FlinkJobs.jobs, FlinkJobs.requests = jobs, []
    with serving(FlinkJobs) as port:
        options = EmbedOptions([*FLAGS, f"--flink_master=localhost:{port}"])
        job = FlinkJob.of(options, "night_1a2b")
        assert job is not None
        assert job.cancel() is (cancelled is not None)
    assert FlinkJobs.requests == ["/jobs/overview", *([f"/jobs/{cancelled}?mode=cancel"] if cancelled else [])]
    assert job.cancel() is False, "no one listens any more"
    assert f"`curl -X PATCH 'http://localhost:{port}/jobs/ID?mode=cancel'`" in job.how_to_cancel


def test_a_flag_that_the_job_server_does_not_know(
    tmp_path: Path, jobs: tuple[EndlessJobs, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The nearest one that it describes is suggested."""
    flags = ["--input", "a", "--output", str(tmp_path / "out"), *FLAGS, f"--job_endpoint=localhost:{jobs[1]}"]
    assert main(["embed", *flags, "--retrys=3"]) == 2
    assert "unknown flag --retrys; did you mean --retries?" in capsys.readouterr().err


def test_a_flag_of_beams_with_a_wrong_value_beside_one_of_the_job_servers(
    tmp_path: Path, jobs: tuple[EndlessJobs, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is an error of one line, and not Beam's usage."""
    flags = ["--input", "a", "--output", str(tmp_path / "out"), *FLAGS, f"--job_endpoint=localhost:{jobs[1]}"]
    assert main(["embed", *flags, "--retries=3", "--job_server_timeout=soon"]) == 2
    error = capsys.readouterr().err
    assert "invalid int value: 'soon'" in error
    assert "usage:" not in error


@pytest.mark.parametrize(
    ("message", "local", "end"),
    [
        ("/published/a.txt cannot be read", True, "; nothing was published"),
        ("/published/a.txt cannot be read", False, "; `audioclip log out` shows whether run-1 was published"),
        ("run-1 may have been published or not: run again", True, ""),
        ("run-1 is already published, with 1 row read", False, ""),
    ],
)
def test_an_error_says_once_what_was_published(message: str, local: bool, end: str) -> None:
    """Also if a path in it has that word."""
    corpus = SimpleNamespace(local=local, snapshot="run-1", job=SimpleNamespace(output="out"))
    assert with_outcome(message, corpus) == message + end  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_job_that_takes_longer_than_a_request_to_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--job_server_timeout, 60 seconds by default, does not end the wait for the job."""
    (tmp_path / "a.txt").write_text("dog\n")
    gate, output = Gate(monkeypatch), str(tmp_path / "out")
    with job_server() as endpoint, ThreadPoolExecutor(1) as executor:
        remote = {"runner": "PortableRunner", "job_endpoint": endpoint, "environment_type": IN_SERVER}
        done = executor.submit(remote_run, str(tmp_path / "a.txt"), output, {**remote, "job_server_timeout": 2})
        assert gate.reached.wait(60)
        time.sleep(2.2)
        gate.opened.set()
        done.result(60)
    assert current_name(output)


@pytest.mark.parametrize("command", ["embed", "plan"])
def test_ctrl_c_is_handled_here_also_when_beam_has_started_a_job_server(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Beam then handles SIGINT itself: it ends the server first, and all threads that wait for it print tracebacks."""
    (tmp_path / "a.txt").write_text("dog\n")
    submit, wait, handlers = PortableRunner.run_portable_pipeline, PipelineResult.wait_until_finish, []

    def submit_as_with_a_job_server(*arguments: object) -> object:
        result = submit(*arguments)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return result

    def look_and_wait(result: PipelineResult) -> object:
        handlers.append(signal.getsignal(signal.SIGINT))
        return wait(result)

    monkeypatch.setattr(PortableRunner, "run_portable_pipeline", submit_as_with_a_job_server)
    monkeypatch.setattr(PipelineResult, "wait_until_finish", look_and_wait)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as under nohup
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with job_server() as endpoint, handle_signals():
        remote = {"runner": "PortableRunner", "job_endpoint": endpoint, "environment_type": IN_SERVER}
        if command == "embed":
            remote_run(str(tmp_path / "a.txt"), str(tmp_path / "out"), remote)
        else:
            options = EmbedOptions(input=tmp_path / "a.txt", output=tmp_path / "out", **remote)
            count_changes(prepare_job(options, StubHead()), options, None)
    (handler,) = handlers
    assert handler is not signal.default_int_handler


def test_a_connection_that_breaks(tmp_path: Path, jobs: tuple[EndlessJobs, int]) -> None:
    """The error is one line, which names the job that goes on; the run directory keeps its marker."""
    service, port = jobs
    (tmp_path / "a.txt").write_text("dog\n")
    options = EmbedOptions(
        [*FLAGS, f"--job_endpoint=localhost:{port}"], input=tmp_path / "a.txt", output=tmp_path / "out"
    )
    corpus = EmbedCorpus(options, StubHead())
    service.broken = True
    service.ended.set()
    running = "job job-17_id may still be running at PortableRunner"
    expected = rf"^the job service does not answer any more \(Socket closed\): {running}$"
    with closing(corpus), pytest.raises(RuntimeError, match=expected):
        run(corpus, options)
    assert list(tmp_path.glob("out/snapshots/*/run.json"))


def test_a_job_is_recorded_before_its_server_is_asked_again(
    tmp_path: Path, jobs: tuple[EndlessJobs, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may take half a minute, in which the launcher may be killed: the next run must know the job."""
    service, port = jobs
    (tmp_path / "a.txt").write_text("dog\n")
    options = EmbedOptions(
        [*FLAGS, f"--job_endpoint=localhost:{port}"], input=tmp_path / "a.txt", output=tmp_path / "out"
    )
    corpus, markers = EmbedCorpus(options, StubHead()), []

    def ask(options: object, job: str) -> None:
        markers.extend(json.loads(path.read_text()) for path in tmp_path.glob("out/snapshots/*/run.json"))

    monkeypatch.setattr(FlinkJob, "of", ask)
    service.broken = True
    service.ended.set()
    with closing(corpus), pytest.raises(RuntimeError, match="does not answer any more"):
        run(corpus, options)
    assert [marker.get("job") for marker in markers] == ["job-17_id"]
