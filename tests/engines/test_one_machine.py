"""FlinkRunner and SparkRunner by name: one command, as docs/runners.md has it, with the engine in Beam's job server."""

from __future__ import annotations

from pathlib import Path

import pytest

from audioclip_text.pipeline.snapshots.run_directory import list_runs
from tests.support.commands import run_command
from tests.support.engines import local_job_server, page_command, require
from tests.support.paths import ROOT

pytestmark = [pytest.mark.extra, pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


@pytest.mark.parametrize("runner", ["Flink", "Spark"])
def test_the_command_of_the_page(runner: str, tmp_path: Path, vocabulary: Path) -> None:
    """The samples are embedded, and nothing of the run is left but its snapshot."""
    require("java", "mvn")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / vocabulary.name).symlink_to(vocabulary)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    command = page_command("Flink and Spark on one machine", f"{runner}Runner", {})[1:]
    jar = local_job_server(runner, tmp_path)
    done = run_command(tmp_path, *command, f"--{runner.lower()}_job_server_jar={jar}")
    assert done.status == 0, done.stderr
    assert "298 read = 296 embedded + 0 reused + 2 rejected" in done.stdout
    assert len(list_runs(str(tmp_path / "out" / runner.lower()))) == 1
