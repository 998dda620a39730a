"""Standard streams that are closed, full or not read: no traceback, and after publishing exit status 0."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from audioclip_beam.pipeline.snapshots.commit import current_name
from tests.support.program import run_program
from tests.support.snapshots import batch_of, write_snapshot

CLOSED = "<&- >&- 2>&-"


@pytest.mark.slow
@pytest.mark.parametrize("redirect", [CLOSED, ">/dev/full 2>/dev/full", "2>&1 | true"])
def test_a_published_run_exits_with_0(tmp_path: Path, small_head: str, vocabulary: Path, redirect: str) -> None:
    """The snapshot is published, so that the exit status is 0 although no one reads the summary."""
    (tmp_path / "a.txt").write_text("dog\n")
    flags = ["--input", "a.txt", "--output", "out", "--checkpoint", small_head, "--tokenizer_path", vocabulary]
    result = run_program("embed", *flags, redirect=redirect, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert current_name(str(tmp_path / "out")) is not None


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output directory with one snapshot."""
    folder = tmp_path_factory.mktemp("streams") / "out"
    write_snapshot(folder, [batch_of(["a", "b"], ["one", "two"], np.eye(4, dtype=np.float32)[:2])], 4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirect", "status", "message"),
    [
        (CLOSED, 0, ""),
        ("2>&-", 0, ""),
        ("| true", 141, ""),
        (">/dev/full", 1, "audioclip: error: standard output cannot be written: No space left on device\n"),
        (">/dev/full 2>&1", 1, ""),
    ],
)
def test_a_command_whose_result_is_its_output(output: Path, redirect: str, status: int, message: str) -> None:
    """A reader that has seen enough gives the status that a shell gives; a full disk is one line and status 1."""
    result = run_program("log", output, redirect=redirect)
    assert (result.returncode, result.stderr) == (status, message)


@pytest.mark.slow
def test_a_change_that_was_made_exits_with_0(output: Path) -> None:
    """For gc, as for every command that changes files, the status says whether that succeeded."""
    result = run_program("gc", output, "--keep", "1", redirect=">/dev/full")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_closed_stderr_hides_an_error_but_not_the_status(tmp_path: Path) -> None:
    """The exit status of a usage error is 2, whether or not its message can be written."""
    assert run_program("gc", "out", redirect="2>&-", cwd=tmp_path).returncode == 2
    assert run_program("gc", "out", redirect="2>/dev/full", cwd=tmp_path).returncode == 2


THREADS = """
import os, sys
from audioclip_beam.pipeline.cli import app
from audioclip_beam.pipeline.search import exact_search
before = len(os.listdir("/proc/self/task"))
status = app.main()
print(len(os.listdir("/proc/self/task")) - before)
sys.exit(status)
"""


@pytest.mark.slow
def test_a_query_that_fails_at_once_has_started_no_thread(output: Path) -> None:
    """A thread of Arrow that still releases what it has read when the process ends would abort it, now and then."""
    result = run_program("search", output, "missing.npy", program=(sys.executable, "-c", THREADS))
    assert (result.returncode, result.stdout) == (2, "0\n"), result
