"""One head of a checkpoint at a time: memory, extracts, and files of another head."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch

from audioclip_beam.model.checkpoint import CheckpointError, extract, load_checkpoint
from audioclip_beam.model.files import sha256_of_file
from audioclip_beam.model.tensors import SCALES, weights_digest
from audioclip_beam.pipeline.cli import main
from tests.support.paths import ROOT
from tests.support.plain_image import small_image_state

PEAK = """
import sys
from audioclip_beam.model import checkpoint
from tests.support.memory import peak
checkpoint.shapes_of(sys.argv[2])
before = peak()
state = checkpoint.load_checkpoint(sys.argv[1], sys.argv[2]).state
print((peak() - before) * 1024 / sum(4 * tensor.numel() for tensor in state.values()))
"""


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Path of a file with a small image head, its counters of training, and a tensor of another head."""
    path = tmp_path / "a.pt"
    others = {"visual.bn1.num_batches_tracked": torch.tensor(1000), "audio.fbsp.bias": torch.zeros(0)}
    torch.save({**small_image_state(), **{name: torch.tensor(0.5) for name in SCALES}, **others}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("head", ["text", "image", "audio"])
@pytest.mark.skipif(sys.platform != "linux", reason="Linux gives memory of a mapped file back")
def test_a_head_takes_little_more_memory_than_its_tensors(checkpoint_file: Path, head: str) -> None:
    """A file of the released size costs less than 1.3 times the bytes of the head that is read."""
    command = [sys.executable, "-c", PEAK, str(checkpoint_file), head]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 1.3


def test_an_extract_has_its_head_and_all_scales(released: Path, tmp_path: Path) -> None:
    """Its metadata name the released file, its weights are the same, and counters of training are left out."""
    target = tmp_path / "image.safetensors"
    assert main(["extract", str(released), str(target), "--head", "image"]) == 0
    with safetensors.safe_open(target, framework="pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
    state = load_checkpoint(released, "image").state
    assert names == set(state) == set(small_image_state()) | set(SCALES)
    assert metadata == {"source": "a.pt", "source_sha256": sha256_of_file(released)}
    assert weights_digest(load_checkpoint(target, "image").state) == weights_digest(state)


def test_an_extract_of_another_head_is_refused(released: Path, tmp_path: Path) -> None:
    """The error names the head that is missing."""
    extract(released, tmp_path / "image.safetensors", "image")
    with pytest.raises(
        CheckpointError, match="does not contain an AudioCLIP text head: token_embedding.weight is missing"
    ):
        load_checkpoint(tmp_path / "image.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("visual.bn1.bias", None, "visual.bn1.bias is missing"),
        ("visual.conv3.weight", None, "visual.conv3.weight is missing"),
        ("visual.surprise", torch.rand(3), "visual.surprise is not known"),
        (
            "visual.layer1.0.conv1.weight",
            torch.rand(8, 8),
            r"conv1.weight has shape \[8, 8\] instead of \[8, 8, 1, 1\]",
        ),
        ("visual.conv3.weight", torch.rand(8), r"visual.conv3.weight has shape \[8\], not one of 4 filled dimensions"),
        ("visual.layer2.0.bn1.running_var", torch.full((16,), torch.nan), "running_var contains NaN or infinity"),
        ("visual.bn2.running_var", -torch.ones(4), "visual.bn2.running_var contains negative numbers"),
        ("visual.bn2.bias", torch.ones(4, dtype=torch.int32), "bn2.bias is torch.int32 .*not a plain float tensor"),
        ("logit_scale_ai", torch.ones(2), r"logit_scale_ai has shape \[2\] instead of \[\]"),
    ],
)
def test_faults_of_an_image_head_are_named(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    state = small_image_state()
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"does not contain an AudioCLIP image head: .*{message}"):
        load_checkpoint(tmp_path / "a.pt", "image")


def test_a_file_without_an_image_head(tmp_path: Path) -> None:
    torch.save({"token_embedding.weight": torch.rand(3, 4)}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"visual.conv3.weight is missing; .*give a released \.pt, or .*--head image"
    ):
        load_checkpoint(tmp_path / "a.pt", "image")
