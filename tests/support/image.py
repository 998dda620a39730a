"""The image, built by buildah, without Docker, on a base that equals Beam's: Docker Hub may be out of reach."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import apache_beam

from .paths import ROOT

NAME = "localhost/audioclip-beam"
TOOLS = ("buildah", "debootstrap", "podman", "runc", "go")
_PACKAGES = "python3,python3-pip,python3-venv,python3-dev,gcc,g++,ca-certificates"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def missing_tools() -> list[str]:
    """Return the programs that are needed and not installed; on Debian, root installs them here."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing and shutil.which("apt-get"):
        install = ["apt-get", "install", "-qy", "--no-install-recommends", *(tool for tool in missing if tool != "go")]
        subprocess.run(install, check=False, capture_output=True)
    return [tool for tool in TOOLS if not shutil.which(tool)]


def build(*arguments: str, tag: str = NAME) -> None:
    """Build the project's Dockerfile, with further arguments of `buildah bud`, and remove the image that had the tag."""
    earlier = _identity(tag)
    with tempfile.TemporaryDirectory() as folder:
        _build_bases(Path(folder))
    _run(["buildah", "bud", "--layers", "--isolation", "chroot", "--pull-never", *arguments, "-t", tag, "."], cwd=ROOT)
    if earlier not in ("", _identity(tag)):
        subprocess.run(["buildah", "rmi", earlier], check=False, capture_output=True)  # a container may still use it


def command(*arguments: str, options: Sequence[str] = (), image: str = NAME) -> list[str]:
    """Return the command line that runs a container of the image, with podman's `options`, in the host's network."""
    limits = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
    podman = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "run", "--rm", "--network", "host"]
    return [*podman, *limits, *options, image, *arguments]


def _build_bases(folder: Path) -> None:
    """Build the images that the Dockerfile starts from, under their names, if they are missing."""
    launcher, beam = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    if not _identity(f"docker.io/{beam}"):
        root = folder / "root"
        _run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root), _mirror()])
        (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
        (root / "usr/bin/python").symlink_to("python3")
        shutil.copy(_CERTIFICATES, root / _CERTIFICATES[1:])
        module = f"github.com/apache/beam/sdks/v2/python/container@v{apache_beam.__version__}"
        _run(["env", f"GOBIN={folder}", "go", "install", module])
        (root / "opt/apache/beam").mkdir(parents=True)
        shutil.move(folder / "container", root / "opt/apache/beam/boot")
        container = _run(["buildah", "from", "scratch"])
        _run(["buildah", "add", "-q", container, str(root), "/"])
        environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"PIP_CERT={_CERTIFICATES}"]
        settings = [part for variable in environment for part in ("--env", variable)]
        _run(["buildah", "config", "--entrypoint", '["/opt/apache/beam/boot"]', *settings, container])
        upgrade = ["python", "-m", "pip", "install", "-q", "--upgrade", "pip", "setuptools", "wheel"]
        _run(["buildah", "run", "--isolation", "chroot", container, "--", *upgrade])
        _commit(container, f"docker.io/{beam}")
    if not _identity(launcher):
        program = folder / "launcher/opt/google/dataflow/python_template_launcher"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\nexec true\n")
        program.chmod(0o755)
        container = _run(["buildah", "from", "scratch"])
        _run(["buildah", "add", "-q", container, str(folder / "launcher"), "/"])
        _commit(container, launcher)


def _mirror() -> str:
    """Return the address of this machine's Debian mirror."""
    for source in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        if found := re.search(r"^URIs:\s*(\S+)", source.read_text(), re.MULTILINE):
            return found[1]
    return "http://deb.debian.org/debian"


def _identity(image: str) -> str:
    """Return the id of an image, or "" if it does not exist."""
    inspect = ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", image]
    return subprocess.run(inspect, check=False, capture_output=True, text=True).stdout.strip()


def _commit(container: str, image: str) -> None:
    _run(["buildah", "commit", "-q", container, image])
    _run(["buildah", "rm", container])


def _run(arguments: Sequence[str], cwd: Path | None = None) -> str:
    """Return what a command prints; raise AssertionError with the end of its output if it fails."""
    done = subprocess.run(arguments, cwd=cwd, check=False, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout.strip()
