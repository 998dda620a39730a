"""FlinkRunner and SparkRunner by name: one command, as docs/runners.md has it, with the engine in Beam's job server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from audioclip_beam.pipeline.snapshots.run_directory import list_runs
from tests.support.engines import local_job_server, page_command
from tests.support.paths import ROOT
from tests.support.tools import require

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


@pytest.mark.parametrize("runner", ["Flink", "Spark"])
def test_the_command_of_the_page(runner: str, tmp_path: Path, vocabulary: Path) -> None:
    """The samples are embedded; the job server ends with the run, of which nothing is left but its snapshot."""
    require("java", "mvn")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / vocabulary.name).symlink_to(vocabulary)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    flags = page_command("Flink and Spark on one machine", f"{runner}Runner", {})[1:]
    jar = local_job_server(runner, tmp_path)
    # A new interpreter: Beam ends the job server when its process exits, and a fork of the tests' exits otherwise.
    command = [sys.executable, "-m", "audioclip_beam.pipeline", *flags, f"--{runner.lower()}_job_server_jar={jar}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "298 read = 296 embedded + 0 reused + 2 rejected" in done.stdout
    assert len(list_runs(str(tmp_path / "out" / runner.lower()))) == 1
    processes = psutil.process_iter(["cmdline"])
    assert not [process for process in processes if str(jar) in (process.info["cmdline"] or [])]
