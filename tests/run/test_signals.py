"""SIGINT, SIGTERM and SIGHUP end a run with one line, exit status 128 + n, and nothing but its finished parts."""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from audioclip_beam.pipeline.snapshots.dead_runs import dead_runs
from audioclip_beam.pipeline.snapshots.run_directory import list_runs
from tests.support.program import start_program

WORKERS = "--direct_running_mode", "multi_processing", "--direct_num_workers", "2"
MESSAGE = "nothing was published; run the same command again, which reuses what is finished"


class Run:
    """An `embed` over many small files, in a process of its own."""

    def __init__(self, folder: Path, head: str, vocabulary: Path, *flags: str, prefix: Sequence[str] = ()) -> None:
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        (folder / "a.txt").write_text("".join(f"caption number {n} of a long list\n" for n in range(200_000)))
        given = ["--input", "a.txt", "--output", "out", "--checkpoint", head, "--tokenizer_path", str(vocabulary)]
        given += ["--batch_size", "64", "--max_file_rows", "64", *flags]
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        self.process = start_program("embed", *given, prefix=prefix, cwd=folder, env=environment)

    @property
    def error(self) -> str:
        """What the run has printed to stderr."""
        return (self.folder / "stderr").read_text()

    def wait_for_parts(self) -> None:
        """Wait until the first part file is finished."""
        deadline = time.monotonic() + 120
        while not glob.glob(f"{self.folder}/out/snapshots/*/part-*"):
            assert self.process.poll() is None, self.error
            assert time.monotonic() < deadline, self.error
            time.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        """Return this process and all its descendants."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def check_end(self, signum: int, family: Sequence[psutil.Process]) -> None:
        """Check status and message, that all processes have ended, and that only finished parts are left."""
        assert self.process.wait(timeout=60) == 128 + signum
        lines = [line for line in self.error.splitlines() if "interrupted" in line or "Traceback" in line]
        assert lines == [f"audioclip: error: interrupted by {signal.Signals(signum).name}: {MESSAGE}"]
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        (directory,) = (self.folder / "out/snapshots").iterdir()
        parts = set(directory.glob("part-*.parquet"))
        assert parts, "finished parts stay"
        rest = {path.name for path in set(directory.iterdir()) - parts if not path.name.startswith("_")}
        assert rest == {"run.lock"}
        assert {path.name for path in (self.folder / "out").iterdir()} == {"snapshots"}
        output = str(self.folder / "out")
        assert list(dead_runs(output, list_runs(output))[0]) == [directory.name]
        assert not list(self.temporary.iterdir())

    def kill(self) -> None:
        """End all processes that have not ended: those of a failed test would embed for minutes."""
        if self.process.poll() is None:
            for process in self.family():
                process.kill()
            self.process.wait()


@pytest.fixture
def start(tmp_path: Path, small_head: str, vocabulary: Path) -> Iterator[Callable[..., Run]]:
    """Start one run, with these flags and a `prefix`."""
    runs = list[Run]()

    def start(*flags: str, prefix: Sequence[str] = ()) -> Run:
        runs.append(Run(tmp_path, small_head, vocabulary, *flags, prefix=prefix))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGHUP], [signal.SIGINT] * 3], ids=["SIGHUP", "three SIGINT"])
def test_a_signal_ends_a_run(start: Callable[..., Run], signals: list[signal.Signals]) -> None:
    """One line, no spill file, no unfinished file, no temporary directory; quick repeats change nothing."""
    run = start()
    run.wait_for_parts()
    family = run.family()
    for signum in signals:
        run.process.send_signal(signum)
        time.sleep(0.02)
    run.check_end(signals[0], family)


@pytest.mark.slow
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(start: Callable[..., Run]) -> None:
    """Under nohup a run outlives its terminal, and ends at SIGTERM."""
    run = start(prefix=["nohup"])
    run.wait_for_parts()
    family = run.family()
    run.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    run.check_end(signal.SIGTERM, family)


@pytest.mark.slow
def test_worker_processes_end_too(start: Callable[..., Run]) -> None:
    """Ctrl-C at a terminal reaches workers in processes of their own as well; they print nothing and end."""
    run = start(*WORKERS)
    run.wait_for_parts()
    family = run.family()
    assert len(family) > 2
    for process in family:
        process.send_signal(signal.SIGINT)
    run.check_end(signal.SIGINT, family)


@pytest.mark.slow
def test_pid_1_of_a_container(start: Callable[..., Run]) -> None:
    """As the first process of a PID namespace, where the kernel drops signals without a handler, SIGTERM works.

    The run is PID 1, and removes no file for that of another run.
    """
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine does not allow unshare --pid")
    run = start(*WORKERS[:-1], "1", prefix=unshare)
    run.wait_for_parts()
    family = run.family()
    of_another_run = run.folder / "out/current.json.4711.tmp"
    of_another_run.touch()
    family[1].send_signal(signal.SIGTERM)
    run.process.wait(timeout=60)
    of_another_run.unlink()
    run.check_end(signal.SIGTERM, family)


HANGING = """
import os, signal, threading
from audioclip_beam.pipeline.run import signals
from audioclip_beam.pipeline.run.signals import end_on_signal, handle_signals
signals.GRACE_SECONDS, signals.MESSAGE_SECONDS = 2, 1
lock = threading.Lock()
clean_up = lambda: (os.write(1, b"cleaned up"), lock.acquire())
with handle_signals(), end_on_signal(lambda name: lock.acquire() and name, clean_up), lock:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_ends_a_run_whose_output_does_not_answer() -> None:
    """Message and clean-up need what the interrupted thread holds: both are given up, after GRACE_SECONDS together."""
    result = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (143, "cleaned up")
    assert re.fullmatch(r"audioclip: error: interrupted by SIGTERM: it is not known whether .*\n", result.stderr)


def test_a_signal_whose_message_fails_ends_a_run() -> None:
    """The current snapshot cannot be read, for instance."""
    code = HANGING.replace("lock.acquire()", "1 / 0")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (result.returncode, result.stdout) == (143, "cleaned up")
    assert re.fullmatch(r"audioclip: error: interrupted by SIGTERM: it is not known whether .*\n", result.stderr)


@pytest.mark.slow
def test_a_signal_before_the_run_starts(tmp_path: Path) -> None:
    """While Beam and torch are imported a signal ends the program in the same way."""
    code = "import os, signal, sys\nfrom audioclip_beam.pipeline.cli import app\n"
    code += "app.parse = lambda argv: os.kill(os.getpid(), signal.SIGTERM)\nsys.exit(app.main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (143, "audioclip: error: interrupted by SIGTERM\n")
