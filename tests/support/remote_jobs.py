"""Jobs on Beam's own job server, which runs them in this process, and their launchers in processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apache_beam.runners.portability.local_job_service import LocalJobServicer

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.publish.publish_snapshot import PublishSnapshot
from audioclip_beam.pipeline.remote.worker_reports import RunReports
from audioclip_beam.pipeline.run.runner import run
from tests.support.stub import StubHead

IN_SERVER = "beam:env:embedded_python:v1"  # workers in the process of the job server
# Of a job whose workers are elsewhere.
FLAGS = "--runner=PortableRunner", "--environment_type=EXTERNAL", "--environment_config=localhost:1"


@contextmanager
def job_server() -> Iterator[str]:
    """Serve jobs on loopback, in this process; yield HOST:PORT."""
    service = LocalJobServicer()
    port = service.start_grpc_server(0)
    try:
        yield f"localhost:{port}"
    finally:
        service.stop()


class Gate:
    """A gate that holds the first job that is about to publish, in this process, until `opened` is set; others pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        process = PublishSnapshot.process

        def wait(step: PublishSnapshot, element: Any) -> Any:
            if not self.reached.is_set():
                self.reached.set()
                self.opened.wait(120)
            return process(step, element)

        monkeypatch.setattr(PublishSnapshot, "process", wait)


def remote_run(shards: str, output: str, options: dict[str, Any]) -> None:
    """Embed `shards` with the stub model, for a process of its own."""
    chosen = EmbedOptions(input=[shards], output=output, **options)
    corpus = EmbedCorpus(chosen, StubHead())
    try:
        run(corpus, chosen)
    finally:
        corpus.close()


def report_error(folder: Path) -> None:
    """Report an error into the run directory out/snapshots/run in `folder`, as a worker does."""
    run = folder / "out/snapshots/run"
    run.mkdir(parents=True)
    with pytest.raises(FileNotFoundError), RunReports(str(run)).errors():
        raise FileNotFoundError("no vocabulary file at /nowhere")
