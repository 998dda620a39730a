"""Every package that the project needs is pinned, listed and audited; SECURITY.md names existing tests."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.environments import supply_chain_environment
from tests.support.paths import ROOT


def requirements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the requirements in setup.py, with the tests' extra."""
    settings: dict[str, object] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: settings.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    needs, extras = settings["install_requires"], settings["extras_require"]
    assert isinstance(needs, list)
    assert isinstance(extras, dict)
    return [*needs, *extras["test"]]


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            found.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    return found


def dependencies(needs: list[str]) -> set[str]:
    """Return every package that `needs` depend on in this environment, directly or not."""
    todo, seen = [Requirement(need) for need in needs], set[tuple[str, frozenset[str]]]()
    while todo:
        need = todo.pop()
        key = canonicalize_name(need.name), frozenset(need.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            inner = distribution(need.name).requires or []
        except PackageNotFoundError:
            pytest.fail(f"{need.name} is required and not installed: run ./scripts/setup.sh test")
        for line in map(Requirement, inner):
            if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                todo.append(line)
    return {name for name, _ in seen}


def test_every_dependency_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transitive ones too, as installed; torch pins its CUDA packages itself."""
    missing = dependencies(requirements(monkeypatch)) - set(pins())
    missing = {name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not missing, f"constraints.txt has no pin for {', '.join(sorted(missing))}"


def test_pins_are_exact_sorted_and_one_for_each_package() -> None:
    """Each package has one version, for every supported Python."""
    for name, lines in pins().items():
        assert len(lines) == 1, f"{name} is pinned twice"
        (pin,) = lines
        assert pin.marker is None, f"{pin} is not for every Python"
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is not an exact version"
    names = [re.split("[= ]", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    names = [name.replace("_", "-") for name in names if not name.startswith("#")]
    assert names == sorted(names)


def test_security_names_existing_tests_and_commands() -> None:
    """Each promise names a file with tests; each command is a script."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 7
    for row in rows:
        files = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert files, f"no test is named: {row}"
        assert all(re.search(r"^def test_", (ROOT / file).read_text(), re.MULTILINE) for file in files)
    scripts = set(re.findall(r"`(scripts/\w+\.sh)", page))
    assert scripts == {"scripts/audit.sh", "scripts/sbom.sh"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_security_contains_the_limits_of_the_code() -> None:
    """Its figures are those of readers/parquet_limits.py."""
    from audioclip_beam.pipeline.readers.parquet_limits import NESTED_BYTES, NESTED_VALUES, PAGE_BYTES

    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8").replace("\n", " ")
    for figure in (
        f"{NESTED_VALUES:,} values",
        f"{NESTED_BYTES >> 20} MiB per row group",
        f"above {PAGE_BYTES >> 20} MiB",
    ):
        assert figure in page


@pytest.mark.network
def test_a_bill_of_materials_lists_what_is_installed(tmp_path: Path) -> None:
    """It is CycloneDX in JSON, with a version and a package URL for each dependency."""
    path = f"{supply_chain_environment()}:{os.environ['PATH']}"
    command = [str(ROOT / "scripts/sbom.sh"), str(tmp_path / "a.json"), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    bill = json.loads((tmp_path / "a.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    parts = {canonicalize_name(part["name"]): part for part in bill["components"]}
    for name in ("apache-beam", "torch", "pyarrow", "safetensors", "orjson"):
        assert parts[name]["version"] == distribution(name).version
        assert parts[name]["purl"].startswith(f"pkg:pypi/{name}@")


@pytest.mark.parametrize("script", ["audit.sh", "sbom.sh"])
def test_a_script_without_its_tool_is_an_error(tmp_path: Path, script: str) -> None:
    """The message contains the command that installs it, and the exit status is 2."""
    done = subprocess.run(
        ["/bin/bash", str(ROOT / "scripts" / script), str(tmp_path / "x")],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not installed: pip install" in done.stderr


@pytest.mark.network
def test_an_audit_without_a_connection_fails(tmp_path: Path) -> None:
    """A package that could not be looked up does not pass."""
    path = f"{supply_chain_environment()}:{os.environ['PATH']}"
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/audit.sh", tmp_path / "scripts")
    for name in ("constraints.txt", "requirements.lock"):
        (tmp_path / name).write_text("tqdm==4.70.1\n")
    closed_port = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [str(tmp_path / "scripts/audit.sh"), "--cache-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **closed_port, "PATH": path},
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr
