"""The notebook runs from its first cell to its last, and its saved outputs are those of the run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.pages import ROOT, environment_of_the_tests

NOTEBOOK = ROOT / "examples" / "from_shards_to_search.ipynb"


@pytest.mark.slow
def test_from_shards_to_search(tmp_path: Path, vocabulary: Path) -> None:
    """Run the notebook in an empty checkout: no cell fails, and the saved outputs are those of this run."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / vocabulary.name).symlink_to(vocabulary)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    saved = outputs(notebook)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path / "examples"}}
    ).execute()
    assert outputs(notebook) == saved, f"run {NOTEBOOK.name} again and save it"
    assert "298, 'embedded': 296, 'reused': 0, 'rejected': 2" in " ".join(saved)
    assert "7 read = 7 embedded + 0 reused + 0 rejected" in " ".join(saved)
    assert "sounds/bell.ogg\n  1.00  bell.ogg\n" in " ".join(saved), "a sound is nearest to itself"
    for name in ("notebook", "notebook-sounds"):
        assert list((tmp_path / "out" / name / "snapshots").glob("*/manifest.json"))


@pytest.mark.slow
def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    """Without the vocabulary the first command fails, and its error is in the cell."""
    (tmp_path / "examples").mkdir()
    shutil.copytree(ROOT / "examples" / "shards", tmp_path / "examples" / "shards")
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    script = next(cell.source for cell in cells if cell.source.startswith("%%bash\n")).removeprefix("%%bash\n")
    process = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path / "examples",
        env=environment_of_the_tests(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode != 0
    assert "error: no vocabulary at" in process.stdout


def outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the outputs of the cells without stderr, and without the last digits of numbers."""
    texts = []
    for cell in notebook.cells:
        parts = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        text = "".join(part.get("text") or part.get("data", {}).get("text/plain", "") for part in parts)
        texts.append(re.sub(r"(\d\.\d\d)\d", r"\1", text))
    return texts
