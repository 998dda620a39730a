"""Pages of documentation: their sections, their fenced blocks, and a way to run the blocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from tests.support.preloaded import preloaded_programs

ROOT = Path(__file__).parents[2]


def read_page(name: str) -> str:
    """Return the text of a page, named by its path in the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def sections(page: str) -> dict[str, str]:
    """Return the text under each heading of the second level."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Return the commands of all shell blocks, in order; a line that ends in a backslash continues on the next one."""
    text = "".join(blocks(page, "sh"))
    return [line for line in re.sub(r"\\\n *", "", text).splitlines() if line]


def command_line(section: str, word: str, values: Mapping[str, object]) -> str:
    """Return the one command of a section that contains `word`, with each key of `values`, which must occur, replaced."""
    (line,) = (line for line in commands(section) if word in line)
    for part, value in values.items():
        assert part in line, f"{part} is not in {line}"
        line = line.replace(part, str(value))
    return line


def expected_output(code: str) -> list[str]:
    """Return what the comments behind the prints of a Python snippet say that it prints."""
    return re.findall(r"print\(.+\)  # (.+)$", code, re.MULTILINE)


def environment_of_the_tests() -> dict[str, str]:
    """Return the environment variables of this process, with programs first on PATH that start without imports."""
    return {**os.environ, "PATH": f"{preloaded_programs()}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run_blocks(
    page: str,
    language: str,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    python: Path | None = None,
) -> dict[str, str]:
    """Run the blocks of a page, or of a section, and return the output of each.

    Each command of a shell block ("sh") is run by itself; those in `skip` are left out, and each must occur. Each
    Python block ("python") is run as one program by the interpreter `python`, and must print what its comments say: in that
    order, except in a Beam pipeline, which promises no order.
    """
    codes = commands(page) if language == "sh" else blocks(page, language)
    program = ["bash", "-euo", "pipefail", "-c"]
    if language != "sh":
        program = [str(python or preloaded_programs() / "python"), "-c"]
    assert codes, f"the page has no {language} block"
    assert set(skip) <= set(codes), f"not on the page: {set(skip) - set(codes)}"
    outputs = {}
    for code in codes:
        if code in skip:
            continue
        process = subprocess.run(
            [*program, code],
            cwd=directory,
            env=environment or environment_of_the_tests(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert process.returncode == 0, f"{code}\n{process.stderr[-2000:]}"
        outputs[code] = process.stdout
        if language == "python":
            expected, printed = expected_output(code), process.stdout.splitlines()
            assert expected, f"no print of the snippet says what it prints:\n{code}"
            if "beam.Pipeline" in code:
                expected, printed = sorted(expected), sorted(printed)
            assert printed == expected, code
    return outputs
