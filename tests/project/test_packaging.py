"""What is built and shipped: the contents of sdist and wheel, and that they work without the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def files_of_the_project() -> list[Path]:
    """Return the files that git tracks or would add; skip the test without a git checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and from it the wheel, so that the sdist must contain all that the wheel needs.

    A copy of the project is built, with files of the names that git ignores: a build writes the project's metadata into
    its directory, and for a moment it is empty, which tests in other processes would read as another version.
    """
    out, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("project")
    for path in files_of_the_project():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in (".cache", ".venv", "out"):
        (copy / name).mkdir()
        (copy / name / "ignored.py").touch()
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.mark.slow
def test_the_wheel_contains_every_package_and_nothing_else(built: Path) -> None:
    """No generic name is installed in site-packages, and type checkers see the annotations."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    expected = {
        f"audioclip_beam/{path.relative_to(ROOT)}"
        for top in ("model", "pipeline")
        for path in (ROOT / top).rglob("*.py")
    }
    data = {"model/py.typed", "pipeline/py.typed", "pipeline/report/template.html.j2"}
    data |= {f"pipeline/browse/{name}" for name in ("browse.css", "browse.js", "page.html")}
    assert inside == expected | {f"audioclip_beam/{name}" for name in data}
    metadata = next(name for name in names if name.endswith("/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert re.search("^License(-Expression)?: MIT$", text, re.MULTILINE)
    assert "Requires-Python: >=3.11" in text
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_sdist_contains_sources_and_no_ignored_files(built: Path) -> None:
    """Files that git ignores are not shipped."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = [name.partition("/")[2] for name in tar.getnames()]
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "pipeline/cli/app.py", "model/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith((".cache", ".venv", "out/"))]


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(built: Path, tmp_path: Path) -> None:
    """Installed into a separate environment, the command runs and both packages import from it."""
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next(home.glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    # Without variables that could lead pip to another environment, which has this version already.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP", "_PIP"))}
    done = subprocess.run(install, capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 0, done.stderr
    # The requirements come from the environment of the tests; its .pth that leads back to the checkout is not followed,
    # because Python reads .pth files in site directories only.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    answer = subprocess.run(
        [str(home / "bin" / "audioclip"), "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=clean,
    )
    assert answer.stdout.strip() == f"audioclip {version('audioclip-beam')}"
    code = (
        "import audioclip_beam.model.text.tokenizer as m, audioclip_beam.pipeline.embed as p; "
        "print(m.__file__); print(p.__file__)"
    )
    done = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=clean
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(site)) for line in done.stdout.split())


def test_test_files_have_different_names() -> None:
    """A name says which file failed, without its directory."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []


def test_no_file_is_large() -> None:
    """Weights, vocabularies and outputs stay out of the repository."""
    large = [str(path.relative_to(ROOT)) for path in files_of_the_project() if path.stat().st_size > 2 << 20]
    assert not large


def test_no_file_names_a_path_of_one_machine() -> None:
    """No file contains a home or scratch directory."""
    pattern = re.compile(rb"/(?:home|Users)/(?!audioclip\b)\w+/|/tmp/\w|[A-Z]:\\\\Users")
    found = {}
    for path in files_of_the_project():
        if path == Path(__file__).resolve() or path.suffix in (".npz", ".gz", ".parquet"):
            continue
        match = pattern.search(path.read_bytes())
        if match:
            found[str(path.relative_to(ROOT))] = match.group().decode()
    assert not found


def test_every_requirement_is_pinned() -> None:
    """constraints.txt pins each package that setup.py names outside the cloud extras."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, (line for line in lines if line[:1] != "#"))}
    for line in requires("audioclip-beam") or []:
        need = Requirement(line)
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in ("", "test")):
            continue
        pin = pins.get(canonicalize_name(need.name))
        assert pin, f"{need.name} is not pinned"
        assert need.specifier.contains(str(pin.specifier).removeprefix("==")), f"{pin} does not satisfy {need}"


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.14", "3.15"])
def test_the_set_up_takes_the_versions_of_python_that_the_project_supports(tmp_path: Path, version: str) -> None:
    """The classifiers name them; another version is an error, before anything is made."""
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text(  # an interpreter that says that it is of this version, and cannot make an environment
        f'#!/bin/sh\ncase "$1" in\n-c) exec {sys.executable} -c '
        f'"import sys; sys.version_info = ({version.replace(".", ", ")}, 0); $2" ;;\n'
        f"--version) echo Python {version}.0 ;;\n*) exit 1 ;;\nesac\n"
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(
        [str(tmp_path / "scripts/setup.sh")], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    refused = f"Python {version}.0, but Python {supported[0]} to {supported[-1]} is required" in done.stderr
    assert refused == (version not in supported)
    assert refused or "making .venv" in done.stderr
