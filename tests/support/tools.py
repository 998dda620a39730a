"""What a test needs of its machine, programs and a network: without them it is skipped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

# What pip, Maven, Go and npm print if the network, and not the project, is at fault; in lower case.
_NO_NETWORK = (
    "temporary failure in name resolution",
    "name or service not known",
    "network is unreachable",
    "no route to host",
    "connection refused",
    "connection reset",
    "connection timed out",
    "unknown host",
    "could not transfer artifact",
    "no such host",
    "i/o timeout",
    "tls handshake timeout",
    "module lookup disabled",
    "newconnectionerror",
    "enotfound",
    "eai_again",
    "econnrefused",
)


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require(*tools: str) -> None:
    """Skip the test if one of these programs is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")


def run_online(
    command: Sequence[object], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> None:
    """Run a command that fetches; skip the test if no network answers, and fail if the command fails otherwise."""
    words, variables = [str(word) for word in command], {**os.environ, **(environment or {})}
    done = subprocess.run(words, env=variables, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        printed = (done.stdout + done.stderr).strip()
        if any(message in printed.lower() for message in _NO_NETWORK):
            pytest.skip(f"no network: {printed.splitlines()[-1][:300]}")
        pytest.fail(f"{' '.join(words)}: {printed[-2000:]}")
