"""docs/object-stores.md: its commands work as shown, except for the ports."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import metadata
from pathlib import Path

import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from audioclip_beam.pipeline.cli import main
from tests.support.pages import ROOT, blocks, read_page
from tests.support.tools import free_port

SET_UP, S3, GCS = (block.splitlines() for block in blocks(read_page("docs/object-stores.md"), "sh"))


@contextmanager
def server(line: str, port: int) -> Iterator[None]:
    """Run a server with a line of the page, on `port`."""
    command = shlex.split(re.sub(r"\b(5000|9023)\b", str(port), line.removesuffix("&")))
    command[0] = str(Path(sys.executable).parent / command[0])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def test_the_named_extras_exist() -> None:
    """Check the extras against setup.py; no test installs them."""
    extras = metadata("audioclip-beam").get_all("Provides-Extra") or []
    assert [line.removeprefix("./scripts/setup.sh ") for line in SET_UP] == ["gcp", "aws"]
    assert {"gcp", "aws"} <= set(extras)


@pytest.mark.slow
@pytest.mark.usefixtures("vocabulary")
@pytest.mark.parametrize("lines", [S3, GCS], ids=["s3", "gs"])
def test_every_command_works_as_shown(
    lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Start the server, upload the object, embed the corpus there, list the snapshots and clean up."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("apache_beam.internal.gcp.auth._Credentials._credentials_init", True)
    port = free_port()
    install, start, export, *commands = lines
    assert install.startswith("pip install ")  # it is installed for the tests
    for name, value in (pair.split("=", 1) for pair in export.removeprefix("export ").split()):
        monkeypatch.setenv(name, re.sub(r"\b(5000|9023)$", str(port), value))
    FileSystems.set_options(PipelineOptions([]))  # with others come other clients, which read the environment
    with server(start, port):
        for line in commands:
            program, *arguments = shlex.split(line)
            if program == "audioclip":
                assert main(arguments) == 0, capsys.readouterr().err
            else:
                assert program == "python"
                subprocess.run([sys.executable, *arguments], check=True, timeout=60)
    assert re.search(r"(\d+) read = \1 embedded \+ 0 reused \+ 0 rejected", capsys.readouterr().out)
