"""docs/from-jina.md: equal vectors through Beam, its commands and snippet, its parameters."""

from __future__ import annotations

import inspect
import json
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

from audioclip_beam.pipeline import TextEmbeddingHandler
from tests.support.pages import ROOT, blocks, read_page, run_blocks, sections
from tests.support.snapshots import directory_of

PAGE = read_page("docs/from-jina.md")


@pytest.mark.slow
def test_the_vectors_are_equal(vocabulary: Path) -> None:
    """Compare the vectors of TextEmbeddingHandler in a pipeline with those of the original code, within 2e-5."""
    with np.load(ROOT / "tests" / "data" / "embeddings.npz") as file:
        texts, expected = json.loads(str(file["texts"])), file["embeddings"]

    def check(results: list[tuple[int, np.ndarray]]) -> None:
        assert len(results) == len(texts)
        for number, vector in results:
            assert vector.dtype == np.float32
            assert np.abs(vector - expected[number]).max() <= 2e-5

    handler = TextEmbeddingHandler("untrained", tokenizer_path=str(vocabulary), device="cpu", max_batch_size=64)
    with beam.Pipeline("FnApiRunner") as pipeline:
        results = pipeline | beam.Create(list(enumerate(texts))) | RunInference(KeyedModelHandler(handler))
        assert_that(results | beam.MapTuple(lambda number, result: (number, result.inference)), check)


@pytest.mark.slow
def test_the_commands_and_the_snippet(tmp_path: Path, checkpoint_file: Path, vocabulary: Path) -> None:
    """Embed documents and chunks by the page's commands, with a file of the released format in place of the download."""
    (tmp_path / ".cache").mkdir()
    for file in (checkpoint_file, vocabulary):
        (tmp_path / ".cache" / file.name).symlink_to(file)
    (documents,) = blocks(PAGE, "json")
    (tmp_path / "docs.jsonl").write_text(documents)
    run_blocks(PAGE, "sh", tmp_path, skip={"audioclip fetch full"})  # 537 MB; fetch has its own tests
    run_blocks(PAGE, "python", tmp_path)
    table = ds.dataset(sorted(directory_of(tmp_path / "out" / "docs").glob("part-*.parquet"))).to_table()
    assert sorted(table["id"].to_pylist()) == ["c1", "c2", "d1", "d2"]
    assert table.schema.field("embedding").type.list_size == 1024


def test_the_parameters_exist() -> None:
    """Check that every flag and argument of the table exists."""
    table = sections(PAGE)["Parameters"]
    flags = set(re.findall(r"`(--[a-z_]+)", table)) - {"--gpus"}
    command = [sys.executable, "-m", "audioclip_beam.pipeline", "embed", "--help"]
    help_page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(flags) >= 7
    assert all(flag in help_page for flag in flags), flags
    handler = inspect.signature(TextEmbeddingHandler).parameters
    assert {"tokenizer_path", "device", "max_batch_size"} <= set(handler)
    assert all(f"`{name}" in table for name in ("tokenizer_path", "device", "max_batch_size"))
