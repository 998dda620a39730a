"""A job on a remote runner: its endpoint is checked first, and a signal ends the launcher, not the job."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2 as api
from apache_beam.portability.api import beam_job_api_pb2_grpc

from audioclip_text.pipeline.cli import main
from tests.support.program import start_program

FLAGS = "--runner=PortableRunner", "--environment_type=EXTERNAL", "--environment_config=localhost:1"


class EndlessJobs(beam_job_api_pb2_grpc.JobServiceServicer):
    """A job server whose only job, job-17, runs until `ended` is set."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.cancelled = False

    def DescribePipelineOptions(self, request: object, context: object) -> api.DescribePipelineOptionsResponse:
        return api.DescribePipelineOptionsResponse()

    def Prepare(self, request: object, context: object) -> api.PrepareJobResponse:
        return api.PrepareJobResponse(preparation_id="job-17")

    def Run(self, request: object, context: object) -> api.RunJobResponse:
        return api.RunJobResponse(job_id="job-17")

    def Cancel(self, request: object, context: object) -> api.CancelJobResponse:
        self.cancelled = True
        return api.CancelJobResponse()

    def GetStateStream(self, request: object, context: object) -> Iterator[api.JobStateEvent]:
        yield api.JobStateEvent(state=api.JobState.RUNNING)
        self.ended.wait()

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


@pytest.mark.slow
def test_a_signal_names_the_job_that_goes_on(
    tmp_path: Path, jobs: tuple[EndlessJobs, int], small_head: str, vocabulary: Path
) -> None:
    """The launcher ends with the signal's status; the job is not cancelled, and its run directory stays."""
    service, port = jobs
    (tmp_path / "a.txt").write_text("dog\n")
    flags = ["--input", "a.txt", "--output", "out", "--checkpoint", small_head, "--tokenizer_path", vocabulary, *FLAGS]
    process = start_program("embed", *flags, f"--job_endpoint=localhost:{port}", cwd=tmp_path)
    stderr, deadline = tmp_path / "stderr", time.monotonic() + 120
    while "Beam's job id: job-17" not in stderr.read_text():
        assert process.poll() is None, stderr.read_text()
        assert time.monotonic() < deadline, stderr.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    (run,) = (tmp_path / "out/snapshots").iterdir()
    assert stderr.read_text().splitlines()[-1] == (
        "audioclip-text: error: interrupted by SIGTERM: job job-17 goes on at PortableRunner; `audioclip-text log out` "
        f"lists {run.name} when it is published"
    )
    assert not service.cancelled


@pytest.mark.parametrize("listens", [True, False], ids=["accepts and says nothing", "refuses"])
@pytest.mark.parametrize("command", ["embed", "plan"])
def test_an_endpoint_that_does_not_answer(
    tmp_path: Path, listens: bool, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the endpoint, in the time of --job_server_timeout and at most 20 seconds, before anything starts."""
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
