"""The command line in a new process, which starts in milliseconds."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from audioclip_beam.pipeline.cli import main
from tests.support.processes import start_process

SECONDS = 240


@dataclass
class Outcome:
    """The exit status of a command, and what it printed."""

    status: int | None
    stdout: str
    stderr: str


def run_command(folder: Path, *arguments: object, directory: Path | None = None) -> Outcome:
    """Run `audioclip` with these arguments in `directory`; its output is kept in `folder`."""
    outputs = [folder / ".stdout", folder / ".stderr"]
    for path in outputs:
        path.unlink(missing_ok=True)
    process = start_process(
        call_main, str(directory or folder), *map(str, arguments), stdout=outputs[0], stderr=outputs[1]
    )
    process.join(SECONDS)
    return Outcome(process.exitcode, *(path.read_text() if path.exists() else "" for path in outputs))


def call_main(directory: str, *arguments: str) -> None:
    """Run in the new process."""
    os.chdir(directory)
    sys.exit(main(list(arguments)))
