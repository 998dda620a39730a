"""Engines that start with the launcher: FlinkRunner and SparkRunner by name, as docs/runners.md has them, and Prism."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from audioclip_beam.pipeline.snapshots.run_directory import list_runs
from tests.support.corpus import embed
from tests.support.engine_jobs import WorkerHead, assert_real_heads, results, write_corpus
from tests.support.engines import local_job_server, page_command, prism
from tests.support.pages import blocks, expected_output, read_page, sections
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


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """Prism, which Beam would end at the exit of this process, if the folder for its temporary files still existed."""
    require("go")
    path = prism()
    yield path
    for child in psutil.Process().children():
        if Path(child.exe()) == path.resolve():
            child.kill()
            child.wait()


def test_rows_are_equal_to_a_local_runs(program: Path, tmp_path: Path) -> None:
    """Rows, vectors in every bit and rejected rows, with workers in the launcher."""
    shards = write_corpus(tmp_path / "in", 5_000)
    options = {"runner": "PrismRunner", "prism_location": str(program), "environment_type": "LOOPBACK"}
    embed(shards, tmp_path / "remote", WorkerHead(tmp_path / "log"), **options)
    embed(shards, tmp_path / "local")
    assert results(tmp_path / "remote") == results(tmp_path / "local")


def test_sounds_and_pictures_are_those_of_a_local_run(program: Path, tmp_path: Path) -> None:
    """By the real encoders: rows are equal, vectors within the heads' tolerance."""
    options = {"runner": "PrismRunner", "prism_location": str(program), "environment_type": "LOOPBACK"}
    assert_real_heads(tmp_path, options)


@pytest.mark.parametrize("section", ["RunInference", "Pictures and sounds"])
def test_examples_on_the_default_runner(section: str, program: Path, tmp_path: Path, vocabulary: Path) -> None:
    """Where Prism is available, Beam's default runner hands pipelines over to it: the page's examples print the same."""
    used, script = tmp_path / "used", tmp_path / "prism"
    script.write_text(f'#!/bin/sh\ntouch {used}\nexec {program} "$@"\n')
    script.chmod(0o755)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / vocabulary.name).symlink_to(vocabulary)
    code = blocks(sections(read_page("docs/beam.md"))[section], "python")[0]
    code = code.replace('"full"', '"untrained"').replace("Pipeline()", f"Pipeline(argv=['--prism_location={script}'])")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()) == sorted(expected_output(code))
    assert used.exists(), "Beam did not start Prism"
