"""Workers in processes of their own: no stray file can hide a module, and one that ends fails the run."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.run.worker_processes import LOCAL_START, WorkerProcess, worker_path
from tests.support.corpus import write_jsonl
from tests.support.program import run_program
from tests.support.tools import free_port

PYTHON = sys.executable
WORKER = "--direct_running_mode", "multi_processing", "--direct_num_workers", "1"
WORKERS = *WORKER[:-1], "2"
RAISE = "raise SystemExit('a stray module was imported')\n"
STRAY = {
    "queue.py": RAISE,
    "random.py": RAISE,
    "types.py": RAISE,
    "numpy/__init__.py": RAISE,
    "torch.py": "",
    "grpc.py": "",
    "google/__init__.py": "",
    "apache_beam/__init__.py": RAISE,
    "audioclip_beam/__init__.py": RAISE,
    "sitecustomize.py": RAISE,
    "usercustomize.py": RAISE,
}


@pytest.fixture
def arguments(tmp_path: Path, small_head: str, vocabulary: Path) -> list[str]:
    """A command over three texts."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ("dog", "cat", "rain")])
    model = "--checkpoint", small_head, "--tokenizer_path", str(vocabulary)
    return ["embed", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), *model]


def write_stray(folder: Path) -> Path:
    """Write modules that would hide those of workers into a folder."""
    for name, text in STRAY.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
def test_the_current_folder_and_pythonpath_hide_no_module(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules of users' own, named like those of workers, are in both: every row is embedded."""
    folder = write_stray(tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", f":{folder}")
    assert main([*arguments, *WORKER]) == 0, capsys.readouterr().err
    assert "3 read = 3 embedded" in capsys.readouterr().out


@pytest.mark.slow
def test_a_program_in_a_folder_with_stray_modules(tmp_path: Path, arguments: list[str]) -> None:
    """As a user starts it."""
    done = run_program(
        *arguments, *WORKER, cwd=write_stray(tmp_path / "here"), program=[Path(sys.executable).parent / "audioclip"]
    )
    assert done.returncode == 0, done.stderr
    assert "3 read = 3 embedded" in done.stdout


def test_the_path_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process imports stays in its order; the current folder is last, behind folders that are not used."""
    monkeypatch.chdir(tmp_path)
    used = tmp_path / "used"
    used.mkdir()
    (used / "a_module_of_this_test.py").write_text("")
    before = [path for path in worker_path() if path != str(tmp_path)]
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "unused"), str(used), *sys.path])
    __import__("a_module_of_this_test")
    path = worker_path()
    assert path[-1] == str(tmp_path)
    assert path.index(str(used)) < path.index(str(tmp_path / "unused"))
    assert path.index(str(used)) < path.index(os.path.realpath(Path(pytest.__file__).parents[1]))
    assert set(path) - set(before) == {str(tmp_path), str(tmp_path / "unused"), str(used)}


START = "a worker process ended before it was connected"
MUST_WORK = "-P -c 'import apache_beam, audioclip_beam.pipeline'` must work; --direct_running_mode in_memory needs no"
IF_MEMORY = "fewer --direct_num_workers if memory was short"
ENDS = {
    "an error of an import": (
        "echo \"ImportError: cannot import name 'x'\" >&2; exit 1",
        "exit status 1, ImportError: can",
        MUST_WORK,
    ),
    "exit 0": ("exit 0", "exit status 0", MUST_WORK),
    "exit 3 without a word": ("exit 3", "exit status 3", MUST_WORK),
    "after a while": ("sleep 0.3; exit 9", "exit status 9", MUST_WORK),
    "killed": ("kill -9 $$", "ended by SIGKILL, as when memory is short", IF_MEMORY),
    "a fault": ("kill -11 $$", "ended by SIGSEGV", IF_MEMORY),
    "terminated": ("kill -15 $$", "ended by SIGTERM", IF_MEMORY),
    "out of memory in Python": ("echo MemoryError >&2; exit 1", "exit status 1, MemoryError", MUST_WORK),
    "bytes that are not text": ("printf 'bad \\377 byte\\n' >&2; exit 1", "exit status 1, bad \ufffd byte", MUST_WORK),
    "no interpreter": (None, "exit status 127, ", MUST_WORK),
    "not a program": ("", "exit status ", MUST_WORK),
}


@pytest.fixture
def broken(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Replace the interpreter of workers by a script that ends; return what the error has of it."""
    script, cause, remedy = ENDS[request.param]
    program = tmp_path / "python of workers"
    if script:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    elif script is not None:
        program.write_text("")
    monkeypatch.setattr(sys, "executable", str(program))
    return cause, remedy


@pytest.mark.parametrize("broken", ENDS, indirect=True)
def test_the_end_of_a_worker_that_is_not_connected_is_described(broken: tuple[str, str]) -> None:
    """Whatever ended it: one line with the cause and what to do."""
    errors: queue.Queue[str] = queue.Queue()
    WorkerProcess(LOCAL_START, {}, lambda _, error: errors.put(error))
    error = errors.get(timeout=15)
    assert error.startswith(f"{START} ({broken[0]}")
    assert broken[1] in error


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["an error of an import", "after a while", "killed"], indirect=True)
def test_a_worker_that_ends_before_it_is_connected(
    broken: tuple[str, str], tmp_path: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The run fails within 15 seconds, in that one line."""
    began = time.monotonic()
    assert main([*arguments, *WORKERS]) == 1
    assert time.monotonic() - began < 15
    *notes, line = capfd.readouterr().err.splitlines()
    assert not [note for note in notes if not note.startswith("audioclip: small.pt is not AudioCLIP's")]
    assert line.startswith(f"audioclip: error: {START} ({broken[0]}")
    assert broken[1] in line
    assert not list(tmp_path.glob("out/current.json"))


def test_a_worker_of_plan_that_ends(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It does not hang either."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert main(["plan", *arguments[1:], *WORKERS]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"audioclip: error: {START} (exit status 127, ")
    assert "`/nowhere/python -P -c " in error


@pytest.mark.slow
def test_one_of_two_workers_ends_while_the_other_one_starts(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run does not wait for the one that works."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nmkdir {tmp_path}/first && exit 7\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    began = time.monotonic()
    assert main([*arguments, *WORKERS]) == 1
    assert time.monotonic() - began < 15
    assert f"{START} (exit status 7): " in capfd.readouterr().err


@pytest.fixture
def pool_flags(tmp_path: Path) -> Iterator[list[str]]:
    """Start Beam's job service; yield the flags of a job in it whose workers are processes of a pool of the launcher."""
    port = free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    with (tmp_path / "service.log").open("wb") as log:
        service = subprocess.Popen([PYTHON, "-m", module, "--port", str(port)], stdout=log, stderr=log, cwd=tmp_path)
    flags = ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK"]
    yield [*flags, "--experiments=use_loopback_process_worker"]
    service.kill()
    service.wait()


@pytest.fixture
def ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the interpreter of workers by a script that ends."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.slow
@pytest.mark.usefixtures("ending")
def test_workers_of_a_pool_that_end_before_they_are_connected(
    arguments: list[str], pool_flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The pool is the launcher's, and the job service would wait for ever."""
    began = time.monotonic()
    assert main([*arguments, *pool_flags]) == 1
    assert time.monotonic() - began < 45, "30 of them for the start of the service"
    assert f"audioclip: error: {START} (" in capfd.readouterr().err


@pytest.mark.slow
def test_workers_of_a_pool(
    tmp_path: Path,
    arguments: list[str],
    pool_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """They import what the launcher imports, and their interpreter is the launcher's."""
    monkeypatch.chdir(write_stray(tmp_path / "here"))
    assert main([*arguments, *pool_flags]) == 0, capfd.readouterr().err
    assert "3 read = 3 embedded" in capfd.readouterr().out
