"""Fixtures for all tests: the vocabulary, the tokenizer, and checkpoints in the released file's format."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from audioclip_beam.model import ClipTokenizer
from audioclip_beam.model.checkpoint import extract
from audioclip_beam.model.text.shapes import text_shapes, untrained_state
from tests.support.paths import DATA, ROOT
from tests.support.released_file import write_released


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that take long first, so that no worker works long after the others have ended."""
    seconds = Counter[Path]()
    for item in items:
        seconds[item.path] += (
            30 if item.get_closest_marker("network") else 3 if item.get_closest_marker("slow") else 0.1
        )
    items.sort(key=lambda item: -seconds[item.path])


# Garbage collection takes a fifth of the time of the imports and of small runs, which create many objects in few cycles.
gc.disable()


def pytest_collection_finish() -> None:
    """Take the modules that are imported now out of the garbage collector's rounds, which are rare during the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests a directory for temporary files, open to all users as /tmp is, and remove it with what is left there.

    Programs that are killed leave their temporary files, and Spark and Flink hundreds of megabytes.
    """
    tmp_path_factory.getbasetemp()  # stays where it is
    with tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o1777)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", folder)
            patch.setenv("JAVA_TOOL_OPTIONS", f"-Djava.io.tmpdir={folder}")
            patch.setattr(tempfile, "tempdir", None)
            yield


@pytest.fixture(scope="session", autouse=True)
def _no_waits_for_the_disk() -> Iterator[None]:
    """Skip fsync: processes are killed in the tests, and the machine is not, and a run waits for the disk ten times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _beam_caches() -> Iterator[None]:
    """Let Beam inspect each function and parse the same flags once, not in every run; tests without Beam do not wait.

    With BEAM_CACHES=off it is left as users have it.
    """
    if "apache_beam" not in sys.modules or os.environ.get("BEAM_CACHES") == "off":
        yield
        return
    from tests.support.beam_caches import beam_caches

    with beam_caches():
        yield


@pytest.fixture(scope="session")
def vocabulary() -> Path:
    """Path of CLIP's vocabulary."""
    path = ROOT / ".cache" / "bpe_simple_vocab_16e6.txt.gz"
    if not path.exists():
        pytest.fail(f"no vocabulary at {path}: run `audioclip fetch vocabulary` in {ROOT}, or ./scripts/test.sh")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> ClipTokenizer:
    """Tokenizer over CLIP's vocabulary."""
    return ClipTokenizer(vocabulary)


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a file in the released one's layout and size: seeded weights in the text head, zeros in the other tensors.

    The text head, extracted, is beside it; all workers of a test run share both.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path = folder / "AudioCLIP-Full-Training.pt"
    with FileLock(folder / "checkpoint.lock"):
        if not path.exists():
            shapes = json.loads((DATA / "keys.json").read_text())
            write_released(path, shapes, {name: tensor.numpy() for name, tensor in untrained_state().items()})
            extract(path, path.with_name("text-head.safetensors"))
    return path


@pytest.fixture(scope="session")
def safetensors_file(checkpoint_file: Path) -> Path:
    """Path of the text head of `checkpoint_file`, extracted."""
    return checkpoint_file.with_name("text-head.safetensors")


@pytest.fixture(scope="session")
def small_head(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a text head of two layers, dim 32: quick to load, real to run."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    torch.manual_seed(1)
    torch.save({name: torch.randn(shape) * 0.1 for name, shape in text_shapes(64, 2, dim=32).items()}, path)
    return str(path)
