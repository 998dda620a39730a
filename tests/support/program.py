"""The program `audioclip`, in a new process, as users and schedulers start it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = (sys.executable, "-m", "audioclip_beam.pipeline")


def run_program(
    *arguments: object, redirect: str = "", cwd: Path | None = None, program: Sequence[str | Path] = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; `redirect` is what a shell would have after it, as in `>&-` or `| true`."""
    command = ["bash", "-c", f'set -o pipefail; "$@" {redirect}', "bash", *map(str, [*program, *arguments])]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def start_program(
    *arguments: object, prefix: Sequence[str] = (), cwd: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the program, after the words of `prefix`; its outputs go to the files stdout and stderr in `cwd`."""
    with (cwd / "stdout").open("w") as stdout, (cwd / "stderr").open("w") as stderr:
        default_signals = "env", "--default-signal=HUP,INT"  # which the tests ignore themselves if they run under nohup
        command = [*default_signals, *prefix, *PROGRAM, *map(str, arguments)]
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr, text=True)
