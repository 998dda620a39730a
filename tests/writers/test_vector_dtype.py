"""--vector_dtype float16: the vectors of float32, rounded to half precision, from the model to the readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.text.head import CANARY_TEXTS, TextSettings
from audioclip_beam.model.text.shapes import text_shapes
from audioclip_beam.pipeline.cli import main
from tests.support.corpus import read, write_jsonl
from tests.support.snapshots import directory_of

DIM = 32

TEXTS = [
    "dog barking",
    "rain on a tin roof",
    "thunder",
    "glass breaking",
    "a choir singing",
    "slow piano music",
    "wind",
]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, tokenizer: ClipTokenizer) -> Path:
    """A text head whose vectors have numbers from 1e-9 to above 65,504; in one dimension one text alone is above."""
    torch.manual_seed(1)
    state = {name: torch.randn(shape) * 0.1 for name, shape in text_shapes(64, 2, dim=DIM).items()}
    path = tmp_path_factory.mktemp("head") / "head.pt"
    torch.save(state, path)
    texts = [*TEXTS, *CANARY_TEXTS]
    numbers = np.abs(
        TextEncoder(load_checkpoint(path), tokenizer, TextSettings("small", device="cpu")).encode(texts)
    )  # [n, dim]
    second, largest = np.sort(numbers, axis=0)[-2:]  # [dim]
    ratios = np.where(numbers.argmax(axis=0) < len(TEXTS), largest / second, 0)  # no text of the canary may be rejected
    chosen = ratios.argmax()
    assert ratios[chosen] > 1.01
    scales = np.logspace(-8, 4, DIM)
    scales[chosen] = 65504 * 2 / (second + largest)[chosen]
    state["text_projection"] *= torch.tensor(scales, dtype=torch.float32)
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_float16_is_float32_rounded(
    head: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All bits are those of numpy's rounding, in a halffloat column that search and validate read."""
    shard = write_jsonl(tmp_path / "a.jsonl", [{"id": f"r{n}", "text": text} for n, text in enumerate(TEXTS)])
    tables = {}
    for stored in ("float32", "float16"):
        command = ["embed", "--input", str(shard), "--output", str(tmp_path / stored), "--id_field", "id"]
        command += ["--checkpoint", str(head), "--tokenizer_path", str(vocabulary), "--vector_dtype", stored]
        assert main(command) == 0
        tables[stored] = read(tmp_path / stored)
    element = pa.float16()
    for path in directory_of(tmp_path / "float16").glob("part-*.parquet"):
        assert pq.read_schema(path).field("embedding").type == pa.list_(
            pa.field("element", element, nullable=False), DIM
        )
    wide, half = (
        table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), DIM) for table in tables.values()
    )
    assert wide.dtype == np.float32
    assert half.dtype == np.float16
    magnitudes = np.abs(wide[wide != 0])
    assert magnitudes.min() < 6e-8  # below the smallest number of half precision
    assert magnitudes.max() > 65504  # above the largest

    # The text whose vector does not fit is rejected with float16 alone.
    with np.errstate(over="ignore"):
        rounded = wide.astype(np.float16)
    (too_large,) = np.flatnonzero(~np.isfinite(rounded).all(axis=1))
    kept = np.arange(len(TEXTS)) != too_large
    assert tables["float16"]["id"].to_pylist() == [f"r{n}" for n in np.flatnonzero(kept)]
    assert half.tobytes() == rounded[kept].tobytes()
    assert len(tables["float32"]) == len(TEXTS)
    rejected = read(tmp_path / "float16", "rejected").to_pylist()
    assert [(row["id"], row["reason"]) for row in rejected] == [(f"r{too_large}", "non-finite vector")]
    assert "does not fit float16" in rejected[0]["detail"]

    # Both commands load the model again: validate embeds the canary, search a text.
    capsys.readouterr()
    out = str(tmp_path / "float16")
    assert main(["validate", out, "--tokenizer_path", str(vocabulary)]) == 0
    assert "the checkpoint gives the 16 vectors" in capsys.readouterr().out
    text = TEXTS[int(np.flatnonzero(kept)[0])]
    assert main(["search", out, text, "--json", "--top", "1"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["queries"][0]["hits"]
    assert hit["text"] == text
    assert hit["score"] == pytest.approx(1, abs=1e-3)
