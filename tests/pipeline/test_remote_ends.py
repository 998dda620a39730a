"""Remote runs whose launcher is gone: their files are reused when the job has ended, and left alone before that."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2 as api
from apache_beam.portability.api import beam_job_api_pb2_grpc

from audioclip_beam.pipeline.io.filesystem import list_directory, read
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.history import gc
from audioclip_beam.pipeline.snapshots.run_directory import list_runs, run_path
from audioclip_beam.pipeline.validation import validate
from tests.support import object_stores
from tests.support.corpus import embed, write_jsonl
from tests.support.processes import start_process
from tests.support.remote_jobs import IN_SERVER, Gate, job_server, remote_run


@pytest.fixture(params=["disk", "gs"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An output on a local disk, and one on an object store."""
    if request.param == "disk":
        yield str(tmp_path / "out")
        return
    with object_stores.connected("gs", monkeypatch) as store:
        yield f"{store.url}/out"


@pytest.fixture
def remote() -> Iterator[dict[str, Any]]:
    """Options of a job on a job server in this process."""
    with job_server() as endpoint:
        yield {"runner": "PortableRunner", "job_endpoint": endpoint, "environment_type": IN_SERVER}


def files(output: str, run: str) -> dict[str, bytes]:
    """Return the finished part files of a run."""
    paths = [file.path for file in list_directory(run_path(output, run))]
    return {path: read(path) or b"" for path in paths if "/part-" in path and path.endswith(".parquet")}


def only_run(output: str) -> str:
    """Return the name of the one run directory."""
    (name,) = list_runs(output)
    return name


def marker(output: str, run: str) -> dict[str, Any]:
    return json.loads(read(f"{run_path(output, run)}/run.json") or b"{}")  # type: ignore[no-any-return]


def state_of(endpoint: str, job: str) -> int:
    with grpc.insecure_channel(endpoint) as channel:
        request = api.GetJobStateRequest(job_id=job)
        return int(beam_job_api_pb2_grpc.JobServiceStub(channel).GetState(request).state)


@pytest.mark.slow
def test_the_files_of_a_failed_remote_run_are_reused_at_once(
    tmp_path: Path, output: str, remote: dict[str, Any]
) -> None:
    """The launcher marks it as ended: the next run asks no one, embeds nothing again, and removes the directory."""
    rows = [{"text": f"text {n}"} for n in range(40)]
    shard = write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": None}])
    with pytest.raises(RuntimeError, match="1 of 41 rows are rejected"):
        embed(shard, output, max_rejected="0", **remote)  # type: ignore[arg-type]
    failed = only_run(output)
    assert files(output, failed)
    assert not read(f"{run_path(output, failed)}/run.json")
    manifest, texts = embed(shard, output)  # type: ignore[arg-type]
    assert (manifest["counts"]["reused"], texts) == (40, [])
    assert only_run(output) == manifest["snapshot"] != failed


def start_and_kill(shards: Path, output: str, options: dict[str, Any], gate: Gate) -> str:
    """Start a launcher, and kill it when its job is about to publish; return the name of the run."""
    stderr = shards.with_name("stderr")
    process = start_process(remote_run, str(shards), output, options, stderr=stderr)
    assert gate.reached.wait(60), stderr.read_text()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return only_run(output)


def wait_for_end(endpoint: str, job: str, state: int) -> None:
    deadline = time.monotonic() + 60
    while state_of(endpoint, job) == api.JobState.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert state_of(endpoint, job) == state


@pytest.mark.slow
def test_a_job_that_outlives_its_launcher_keeps_its_files_until_it_ends(
    tmp_path: Path,
    output: str,
    remote: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After SIGKILL of the launcher, runs and gc name the job and leave its files; after its end they are reused."""
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"text {name}{n}"} for n in range(20)])
    gate, endpoint = Gate(monkeypatch), remote["job_endpoint"]
    run = start_and_kill(tmp_path / "a.jsonl", output, remote, gate)
    mark = marker(output, run)
    assert (mark["runner"], mark["endpoint"]) == ("PortableRunner", endpoint)
    finished = files(output, run)
    assert finished

    manifest, texts = embed(tmp_path / "b.jsonl", output)  # type: ignore[arg-type]
    note = (
        f"{run} is still running at {endpoint} (job {mark['job']}, RUNNING): its files are neither reused nor removed; if "
        f"Flink's or Spark's own page shows that it has failed, remove {output}/snapshots/{run}/run.json: their job server "
        f"does not learn that once the launcher is dead"
    )
    assert note in manifest["notes"]
    assert len(texts) == 20
    assert gc(output, 1) == []
    assert note in caplog.messages
    assert files(output, run) == finished

    gate.opened.set()
    wait_for_end(endpoint, mark["job"], api.JobState.FAILED)  # another run has published
    manifest, texts = embed(tmp_path / "a.jsonl", output)  # type: ignore[arg-type]
    assert (manifest["counts"]["reused"], texts) == (20, [])
    assert run not in list_runs(output)


@pytest.mark.slow
def test_a_job_that_publishes_after_its_launcher_was_killed(
    tmp_path: Path, output: str, remote: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot is current and is kept, although its marker is still present."""
    shard = write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(20)])
    gate = Gate(monkeypatch)
    run = start_and_kill(shard, output, remote, gate)
    gate.opened.set()
    wait_for_end(remote["job_endpoint"], marker(output, run)["job"], api.JobState.DONE)
    assert current_name(output) == run
    assert gc(output, 1) == []
    assert validate(output).valid
    manifest, texts = embed(shard, output)  # type: ignore[arg-type]
    assert (manifest["previous"], texts) == (run, [])
