"""What every test may ask for: the vocabulary, the tokenizer, and a checkpoint in the released file's own format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from audioclip_text.model import ClipTokenizer
from audioclip_text.model.checkpoint import extract
from audioclip_text.model.text_head import text_shapes, untrained_state

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"


def own_environment(name: str, *packages: str, here: bool = False) -> Path:
    """The `bin` of an environment below .cache with `packages` in it, made once, for tools that the project needs not.

    With `here` it also sees what is installed here. Versions are those of requirements.lock where it has them. Where pip
    cannot get them the test is skipped, with what pip said.
    """
    path = ROOT / ".cache" / f"tests-{name}"
    python, done = path / "bin" / "python", path / "installed"
    wanted = f"{sys.executable} {packages}"
    if done.exists() and done.read_text() == wanted:
        return python.parent
    venv.create(path, clear=True)
    if here:
        (inside,) = path.glob("lib/python*/site-packages")
        (inside / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pins = re.findall(r"^[\w.-]+==[^ ;]+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (path / "pins.txt").write_text("\n".join(pins))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    ran = subprocess.run([*pip, "--constraint", str(path / "pins.txt"), *packages], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be had: {ran.stderr.strip().splitlines()[-1]}")
    done.write_text(wanted)
    return python.parent


@pytest.fixture(scope="session")
def vocabulary() -> Path:
    path = ROOT / ".cache" / "bpe_simple_vocab_16e6.txt.gz"
    if not path.exists():
        pytest.fail(f"no vocabulary at {path}: run `audioclip-text fetch vocabulary` in {ROOT}, or ./scripts/test.sh")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> ClipTokenizer:
    return ClipTokenizer(vocabulary)


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 861 tensors of a released checkpoint, with seeded weights in the text head and zeros elsewhere."""
    path = tmp_path_factory.mktemp("checkpoint") / "AudioCLIP-Full-Training.pt"
    seeded = untrained_state()
    keys = json.loads((DATA / "keys.json").read_text())
    state = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in keys.items()}
    torch.save(state | seeded, path)
    return path


@pytest.fixture(scope="session")
def safetensors_file(checkpoint_file: Path) -> Path:
    path = checkpoint_file.with_name("text-head.safetensors")
    extract(checkpoint_file, path)
    return path


@pytest.fixture(scope="session")
def small_head(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A two-layer text head, dim 32, in a file: quick to load, real to run."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    torch.manual_seed(1)
    torch.save({name: torch.randn(shape) * 0.1 for name, shape in text_shapes(64, 2, dim=32).items()}, path)
    return str(path)
