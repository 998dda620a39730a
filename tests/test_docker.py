"""The Dockerfile without an engine: what it copies exists, and what it runs also works in an empty environment."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments) of the Dockerfile, in order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, rest in lines]


def arguments_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_the_image_runs_the_command_as_nobody_special() -> None:
    """A pinned Python, no root, and the console script as entry point; the user is a number, which needs no passwd."""
    assert arguments_of("FROM") == ["python:3.11-slim"]
    assert arguments_of("ENTRYPOINT") == ['["audioclip-text"]']
    names = [instruction for instruction, _ in instructions()]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name == "RUN")
    (user,) = arguments_of("USER")
    assert int(user) > 0
    (settings,) = arguments_of("ENV")
    assert {"USER", "HOME"} == {setting.partition("=")[0] for setting in settings.split()}


def test_what_is_copied_exists_and_is_let_in() -> None:
    """Every source of a COPY is in the project, and .dockerignore, which keeps all else out, names it."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for copy in arguments_of("COPY"):
        *sources, _ = copy.split()
        assert all((ROOT / source).exists() for source in sources)
        assert set(sources) <= let_in


@pytest.mark.slow
def test_the_pip_steps_work_in_an_empty_environment(tmp_path: Path) -> None:
    """The image's pip commands, run in its order over its files; torch and the packages, which take minutes, come
    from the environment of the tests, and pip's resolver looks at every pin all the same."""
    context, home = tmp_path / "context", tmp_path / "venv"
    context.mkdir()
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next(home.glob("lib/python*/site-packages"))
    (site / "needs.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    ran = 0
    for instruction, rest in instructions():
        if instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, context / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, context)
        if instruction == "RUN":
            assert rest.startswith("python -m pip install"), f"no test runs {rest!r}"
            command = [str(python), *shlex.split(rest)[1:]]
            done = subprocess.run(command, cwd=context, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            ran += 1
    assert ran == 2
    answer = subprocess.run([home / "bin" / "audioclip-text", "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"audioclip-text {version('audioclip-text')}"
    listed = subprocess.run(
        [home / "bin" / "audioclip-text", *default_arguments()], capture_output=True, text=True, check=True
    )
    assert "usage: audioclip-text" in listed.stdout


def default_arguments() -> list[str]:
    """The image's default arguments."""
    (command,) = arguments_of("CMD")
    return [word.strip(' "') for word in command.strip("[]").split(",")]
