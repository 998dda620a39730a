"""Commands work for a user id without a name and a home directory, as in many containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

UID = 54321
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
}
# Two ways to become that user: a user namespace, which needs no rights; and root's right to change the user.
PREFIXES = (
    ["unshare", "--user", f"--map-user={UID}", f"--map-group={UID}"],
    ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"],
)


@pytest.fixture
def prefix() -> list[str]:
    """Return the beginning of a command that runs as UID."""
    code = f"import os, audioclip_beam, sys; sys.exit(os.getuid() != {UID})"
    for prefix in PREFIXES:
        if shutil.which(prefix[0]):
            command = [*prefix, sys.executable, "-c", code]
            if subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0:
                return prefix
    pytest.skip("this machine lets no process run as another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a directory that every user can enter and write to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.slow
def test_a_user_id_without_a_name_runs_commands(
    prefix: list[str], folder: Path, small_head: str, vocabulary: Path
) -> None:
    """embed, validate, report and gc succeed, and nothing warns about a missing user."""
    (folder / "a.txt").write_text("dog\ncat\n")
    shutil.copy(small_head, folder)
    (folder / Path(small_head).name).chmod(0o644)
    flags = ["--input", "a.txt", "--output", "out", "--checkpoint", Path(small_head).name]
    flags += ["--tokenizer_path", str(vocabulary)]
    commands = ["embed", *flags], ["validate", "out"], ["report", "out", "--remake"], ["gc", "out", "--keep", "1"]
    code = (
        f"from audioclip_beam.pipeline.cli import main\nfor command in {commands!r}: assert main(command) == 0, command"
    )
    command = [*prefix, sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "passwd" not in done.stderr
    assert "uid not found" not in done.stderr


@pytest.mark.slow
def test_the_owner_of_a_lock_is_its_user_id(prefix: list[str]) -> None:
    """A lock file names the user id if there is no name."""
    code = "from audioclip_beam.pipeline.io.json_file import owner; print(owner()['owner'])"
    command = [*prefix, sys.executable, "-c", code]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith(f"{UID}@"), done.stderr[-2000:]
