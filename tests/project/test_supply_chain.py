"""What the project is made of is pinned to the last package, can be listed and looked up; SECURITY.md names real tests."""

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

from tests.support.environments import create_environment
from tests.support.paths import ROOT

TOOLS = ("cyclonedx-bom==7.5.0", "pip-audit==2.10.1")


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What setup.py asks for, the tests' extra with it."""
    given: dict[str, object] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    needs, extras = given["install_requires"], given["extras_require"]
    assert isinstance(needs, list)
    assert isinstance(extras, dict)
    return [*needs, *extras["test"]]


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            found.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    return found


def reached(needs: list[str]) -> set[str]:
    """Every package that those need here, and what these need, and so on."""
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
            pytest.fail(f"{need.name} is asked for and not installed: ./scripts/test.sh installs it")
        for line in map(Requirement, inner):
            if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                todo.append(line)
    return {name for name, _ in seen}


def test_every_package_that_is_reached_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transitive ones too, as they are installed here; what torch brings for CUDA it pins itself."""
    missing = reached(asked_for(monkeypatch)) - set(pins())
    missing = {name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not missing, f"constraints.txt has no pin for {', '.join(sorted(missing))}"


def test_pins_are_exact_sorted_and_one_for_each_python() -> None:
    """One version for each Python that we allow."""
    for name, lines in pins().items():
        for python in ("3.10", "3.11", "3.12", "3.13"):
            here = [pin for pin in lines if not pin.marker or pin.marker.evaluate({"python_version": python})]
            assert len(here) <= 1, f"{name} is pinned twice for Python {python}"
        for pin in lines:
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is no exact version"
    names = [re.split("[= ]", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    names = [name.replace("_", "-") for name in names if not name.startswith("#")]
    assert names == sorted(names)


def test_security_names_tests_and_commands_that_are_there() -> None:
    """Each promise is held by a file that exists and is not empty of tests; each command is a script."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 7
    for row in rows:
        files = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert files, f"no test holds: {row}"
        assert all(re.search(r"^def test_", (ROOT / file).read_text(), re.MULTILINE) for file in files)
    scripts = set(re.findall(r"`(scripts/\w+\.sh)", page))
    assert scripts == {"scripts/audit.sh", "scripts/sbom.sh"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_security_tells_the_limits_that_the_code_has() -> None:
    """Its figures are those of pipeline/pages.py."""
    from audioclip_text.pipeline.readers.parquet_limits import NESTED_BYTES, NESTED_VALUES, PAGE_BYTES

    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8").replace("\n", " ")
    for figure in (
        f"{NESTED_VALUES:,} values",
        f"{NESTED_BYTES >> 20} MiB a row group",
        f"above {PAGE_BYTES >> 20} MiB",
    ):
        assert figure in page


def test_a_bill_of_materials_lists_what_is_installed(tmp_path: Path) -> None:
    """CycloneDX in JSON, with a version and a package URL for each dependency."""
    path = f"{create_environment('supply-chain', *TOOLS)}:{os.environ['PATH']}"
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
def test_a_script_whose_tool_is_missing_says_so(tmp_path: Path, script: str) -> None:
    """With the command that installs it, and a status of its own."""
    done = subprocess.run(
        ["/bin/bash", str(ROOT / "scripts" / script), str(tmp_path / "x")],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not installed: pip install" in done.stderr


def test_an_audit_that_reaches_nobody_fails(tmp_path: Path) -> None:
    """What could not be looked up is no pass."""
    path = f"{create_environment('supply-chain', *TOOLS)}:{os.environ['PATH']}"
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/audit.sh", tmp_path / "scripts")
    for name in ("constraints.txt", "requirements.lock"):
        (tmp_path / name).write_text("tqdm==4.70.1\n")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [str(tmp_path / "scripts/audit.sh"), "--cache-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **nowhere, "PATH": path},
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr
