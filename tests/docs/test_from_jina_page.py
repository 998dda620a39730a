"""docs/from-jina.md: equal vectors through Beam, its commands and snippets, its parameters."""

from __future__ import annotations

import inspect
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.dataset as ds
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from audioclip_beam.pipeline import EmbedAudio, EmbedImage, TextEmbeddingHandler
from tests.support.pages import ROOT, blocks, read_page, run_blocks, sections
from tests.support.paths import DATA
from tests.support.plain_audio import spread
from tests.support.snapshots import directory_of
from tests.support.tracks import TRACKS, track

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


def _check_vectors(expected: dict[str, np.ndarray], tolerances: dict[str, float]) -> Any:
    """Return a check of (name, vector) by the relative difference that each may have."""

    def check(results: list[tuple[str, np.ndarray]]) -> None:
        assert sorted(name for name, _ in results) == sorted(expected)
        for name, vector in results:
            golden = expected[name]
            assert np.linalg.norm(vector - golden) / np.linalg.norm(golden) <= tolerances[name], name

    return check


@pytest.mark.slow
def test_the_image_executors_vectors() -> None:
    """Compare EmbedImage with variant="jina" with the executor's computation: of files, EXIF ignored, and of arrays."""
    with np.load(DATA / "images.npz") as file:
        names, offsets, content = json.loads(str(file["names"])), file["offsets"], file["files"].tobytes()
        places = [names.index(name) for name in ("rgb_640x480.jpg", "exif6_320x200.jpg", "wide_1000x30.jpg")]
        expected = {names[place]: file["vectors_tensor"][place] for place in places}
    files = {names[place]: content[offsets[place] : offsets[place + 1]] for place in places}
    arrays = {f"array {name}": np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for name, data in files.items()}
    expected |= {f"array {name}": vector for name, vector in expected.items()}
    with beam.Pipeline("FnApiRunner") as pipeline:
        found = (
            pipeline
            | beam.Create([*files.items(), *arrays.items()])
            | EmbedImage("untrained", device="cpu", variant="jina")
        )
        assert_that(found.good, _check_vectors(expected, dict.fromkeys(expected, 2e-5)), "good")
        assert_that(found.bad, equal_to([]), "bad")


@pytest.mark.slow
def test_the_audio_executors_vectors() -> None:
    """Compare EmbedAudio with variant="jina" with the executor's computation, of one and of two channels."""
    expected, tolerances, elements = {}, {}, []
    with np.load(DATA / "audio.npz") as file:
        for key, vectors, name in (
            ("names", "vectors_jina_evil", "voice_1654"),
            ("names", "vectors_jina_evil", "noise_1655"),
            ("stereo_names", "vectors_stereo_jina_evil", "voice_2s_stereo"),
        ):
            one = track(*TRACKS[name])
            elements.append((name, one))
            expected[name] = file[vectors][json.loads(str(file[key])).index(name)]
            tolerances[name] = max(2e-5, 5 * spread(one, jina=True))
    with beam.Pipeline("FnApiRunner") as pipeline:
        found = pipeline | beam.Create(elements) | EmbedAudio("untrained", device="cpu", variant="jina")
        assert_that(found.good, _check_vectors(expected, tolerances), "good")
        assert_that(found.bad, equal_to([]), "bad")


@pytest.mark.slow
def test_the_commands_and_the_snippets(tmp_path: Path, checkpoint_file: Path, vocabulary: Path) -> None:
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
