"""The Dockerfile, without Docker: the files that it copies exist, and its steps also work in an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, its arguments) of the Dockerfile, in order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, rest in lines]


def arguments_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def lock() -> dict[str, tuple[str, list[str]]]:
    """Return version and sha256 hashes of each package in requirements.lock."""
    text = (ROOT / "requirements.lock").read_text()
    found = re.findall(r"^([\w.-]+)==(\S+) *((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\w", text, re.MULTILINE)), "a line is not a pin with hashes"
    return {canonicalize_name(name): (version, re.findall(r"[0-9a-f]{64}", hashes)) for name, version, hashes in found}


def test_one_image_for_workers_launcher_and_local_use() -> None:
    """It is Beam's image of the pinned version with its entry point, and Google's launcher added; it has no health check."""
    beam = lock()["apache-beam"][0]
    assert arguments_of("FROM") == [
        "gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00 AS launcher",
        f"apache/beam_python3.11_sdk:{beam}",
    ]
    assert arguments_of("ENTRYPOINT") == ['["/opt/apache/beam/boot"]']
    assert not arguments_of("HEALTHCHECK")
    (settings,) = arguments_of("ENV")
    environment = dict(setting.split("=") for setting in settings.split())
    assert {"USER", "HOME"} < set(environment)
    assert environment["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64", "where Dataflow puts the driver"
    assert environment["FLEX_TEMPLATE_PYTHON_PY_FILE"] == "/opt/audioclip-beam/flex_launcher.py"
    copies = [copy.split()[-2:] for copy in arguments_of("COPY") if copy.startswith("--from=launcher")]
    assert copies == [["/opt/google/dataflow/python_template_launcher"] * 2]


def test_requirements_come_before_files_that_change_more_often() -> None:
    """A change in the project leaves the layer with torch and CUDA unchanged; pip checks what was installed."""
    steps = [f"{name} {rest}" for name, rest in instructions()]
    place = {
        part: next(n for n, step in enumerate(steps) if part in step) for part in ("lock", "hashes", "model model")
    }
    assert place["lock"] < place["hashes"] < place["model model"]
    place |= {"check": next(n for n, step in enumerate(steps) if "pip check" in step)}
    assert place["model model"] < place["check"]
    fetching = [rest for rest in arguments_of("RUN") if "pip install" in rest and "--no-deps" not in rest]
    assert all("--require-hashes" in rest and "--no-build-isolation" in rest for rest in fetching), (
        "hashes are not required"
    )
    assert fetching


@pytest.mark.parametrize(
    ("conflict", "builds"),
    [
        ("", True),
        ("google-cloud-profiler 4.1.0 requires x, which is not installed.", True),
        ("torch 2.10.0 has requirement sympy>=1.13, but you have sympy 1.0.", False),
        ("audioclip-beam 0.1.0 requires ftfy, which is not installed.", False),
    ],
)
def test_only_conflicts_of_locked_packages_end_the_build(conflict: str, builds: bool, tmp_path: Path) -> None:
    """The base image's own packages may conflict with each other: pip checks all of them."""
    (step,) = [rest for rest in arguments_of("RUN") if "pip check" in rest]
    (tmp_path / "python").write_text(f"#!/bin/sh\necho '{conflict}'\nexit {int(bool(conflict))}\n")
    (tmp_path / "python").chmod(0o755)
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    done = subprocess.run(
        ["sh", "-c", step.replace("/tmp/", f"{tmp_path}/")],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == builds, done
    assert conflict in done.stdout


def test_the_locked_torch_runs_on_the_drivers_of_dataflow() -> None:
    """Its CUDA is 12, for which driver 525 is new enough; all of its CUDA packages are of that version."""
    cuda = {name: version for name, (version, _) in lock().items() if name.startswith("nvidia-")}
    assert cuda["nvidia-cuda-runtime-cu12"].startswith("12.")
    assert all(name.endswith("-cu12") for name in cuda)


def test_copied_files_exist_and_are_in_the_build_context() -> None:
    """Every source of a COPY is in the project, and .dockerignore, which excludes everything else, names it."""
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [copy.split()[:-1] for copy in arguments_of("COPY") if not copy.startswith("--from=")]
    sources = {source for copied in copies for source in copied}
    assert {"model", "pipeline"} <= sources <= included
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_lock_contains_all_requirements_at_the_pinned_versions() -> None:
    """Base, gcp and aws, with their dependencies; constraints.txt and the lock agree on versions, except torch's."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line[:1] not in ("#", ""):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    locked, needs = lock(), requires("audioclip-beam")
    assert needs
    for line in needs:
        need = Requirement(line)
        if not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in ("", "gcp", "aws")):
            version, hashes = locked[canonicalize_name(need.name)]
            assert need.specifier.contains(version)
            assert hashes
    assert {name for name, (version, _) in locked.items() if pins.get(name, version) != version} == {"torch"}
    assert "google-cloud-dataflow-client" in locked


@pytest.mark.slow
def test_the_steps_work_in_an_empty_environment(tmp_path: Path) -> None:
    """The image's RUN steps run in its order over its files.

    Packages come from the environment of the tests, whose torch is a CPU build: the lock is shortened to the packages
    that are installed, and pip checks their versions.
    """
    context, home = tmp_path / "context", tmp_path / "venv"
    context.mkdir()
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next(home.glob("lib/python*/site-packages"))
    (site / "needs.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    environment = {**os.environ, "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    steps = 0
    for instruction, rest in instructions():
        if instruction == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, context / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, context)
            if "requirements.lock" in sources:
                shorten(context / "requirements.lock")
        # The tests' environment has another torch, and so other packages, which the check would compare.
        if instruction == "RUN" and "pip check" not in rest:
            done = subprocess.run(
                ["bash", "-c", rest], cwd=context, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-2000:]
            steps += 1
    assert steps == 3
    answer = subprocess.run([home / "bin" / "audioclip", "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"audioclip {version('audioclip-beam')}"
    launcher = [python, context / "flex_launcher.py", "--help"]
    launched = subprocess.run(launcher, capture_output=True, text=True, check=True)
    assert "usage: audioclip embed" in launched.stdout


def shorten(file: Path) -> None:
    """Remove from a lock file torch, whose build differs here, and the packages that are not installed."""
    installed = {
        canonicalize_name(package.name)  # by path: setuptools, if imported, adds the packages that it bundles
        for package in distributions(path=[path for path in sys.path if path.endswith("site-packages")])
    }
    kept = [
        f"{name}=={version} " + " ".join(f"--hash=sha256:{each}" for each in hashes)
        for name, (version, hashes) in lock().items()
        if name != "torch" and name in installed
    ]
    assert len(kept) > 50
    file.write_text("\n".join(kept) + "\n")
