"""Virtual environments for tools that the project itself does not need."""

from __future__ import annotations

import re
import sys
import sysconfig
import venv
from pathlib import Path

from filelock import FileLock

from tests.support.paths import ROOT
from tests.support.tools import run_online


def create_environment(name: str, *packages: str, see_installed: bool = False, pinned: bool = True) -> Path:
    """Return the `bin` directory of an environment below .cache that contains `packages`; create it on the first call,
    in one process at a time.

    With `see_installed` it also sees the packages of the running interpreter. Versions are those of requirements.lock,
    for packages that it lists, unless `pinned` is False. Without a network the test is skipped.
    """
    path = ROOT / ".cache" / f"tests-{name}"
    python, marker = path / "bin" / "python", path / "installed"
    contents = f"{sys.executable} {packages}"
    with FileLock(path.with_suffix(".lock")):
        if marker.exists() and marker.read_text() == contents:
            return python.parent
        venv.create(path, clear=True)
        if see_installed:
            (site,) = path.glob("lib/python*/site-packages")
            (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        lock = (ROOT / "requirements.lock").read_text() if pinned else ""
        pins = re.findall(r"^[\w.-]+==[^ ;]+", lock, re.MULTILINE)
        (path / "pins.txt").write_text("\n".join(pins))
        # A test imports little of what is installed: Python compiles that.
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
        run_online([*pip, "--constraint", path / "pins.txt", *packages])
        marker.write_text(contents)
    return python.parent


def dataflow_environment() -> Path:
    """Return the environment in which Beam has Google's client for Dataflow, of all packages of its extra `gcp`."""
    return create_environment("dataflow", "google-cloud-dataflow-client", see_installed=True)


def supply_chain_environment() -> Path:
    """Return the environment with the tools of scripts/sbom.sh and scripts/audit.sh."""
    return create_environment("supply-chain", "cyclonedx-bom==7.5.0", "pip-audit==2.10.1")
