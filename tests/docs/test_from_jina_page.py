"""docs/from-jina.md is true: equal vectors on the goldens through Beam, its commands and snippet, its parameters."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow.dataset as ds
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.testing.util import assert_that

from audioclip_text.pipeline import TextEmbeddingHandler
from tests.support.snapshots import directory_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from-jina.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_vectors_are_equal(vocabulary: Path) -> None:
    """TextEmbeddingHandler in a pipeline gives what the original code does, within 2e-5, in whatever batches."""
    with np.load(ROOT / "tests" / "data" / "embeddings.npz") as file:
        texts, wanted = json.loads(str(file["texts"])), file["embeddings"]

    def check(found: list[tuple[int, np.ndarray]]) -> None:
        assert len(found) == len(texts)
        for place, vector in found:
            assert vector.dtype == np.float32
            assert np.abs(vector - wanted[place]).max() <= 2e-5

    handler = TextEmbeddingHandler("untrained", tokenizer_path=str(vocabulary), device="cpu", max_batch_size=64)
    with beam.Pipeline("FnApiRunner") as pipeline:
        results = pipeline | beam.Create(list(enumerate(texts))) | RunInference(KeyedModelHandler(handler))
        assert_that(results | beam.MapTuple(lambda place, result: (place, result.inference)), check)


@pytest.mark.slow
def test_the_commands_and_the_snippet(tmp_path: Path, checkpoint_file: Path, vocabulary: Path) -> None:
    """Documents and chunks are embedded as the page says, with a file of the released format in its place."""
    (tmp_path / ".cache").mkdir()
    for file in (checkpoint_file, vocabulary):
        (tmp_path / ".cache" / file.name).symlink_to(file)
    (tmp_path / "docs.jsonl").write_text(block("json"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = [line for line in block("sh").splitlines() if " fetch " not in line]  # 537 MB; fetch has its own tests
    for command in [["bash", "-c", line] for line in commands] + [[sys.executable, "-c", block("python")]]:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == re.findall(r"print\(.+\)  # (.+)$", PAGE, re.MULTILINE)
    tables = {
        name: ds.dataset(sorted(directory_of(tmp_path / "out" / name).glob("part-*.parquet"))).to_table()
        for name in ("docs", "chunks")
    }
    assert sorted(tables["docs"]["id"].to_pylist()) == ["d1", "d2"]
    assert tables["docs"].schema.field("embedding").type.list_size == 1024
    assert sorted(tables["chunks"]["text"].to_pylist()) == ["barking", "dog"]


def test_the_parameters_are_there() -> None:
    """Every flag and argument that the table names exists."""
    table = PAGE.split("## Parameters")[1].split("##")[0]
    flags = set(re.findall(r"`(--[a-z_]+)", table)) - {"--gpus"}
    helped = subprocess.run(
        [sys.executable, "-m", "audioclip_text.pipeline", "embed", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert len(flags) >= 7
    assert all(flag in helped for flag in flags), flags
    handler = inspect.signature(TextEmbeddingHandler).parameters
    assert {"tokenizer_path", "device", "max_batch_size"} <= set(handler)
    assert all(f"`{name}" in table for name in ("tokenizer_path", "device", "max_batch_size"))
