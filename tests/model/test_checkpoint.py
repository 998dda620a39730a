"""Checkpoints: the released format, its extract, untrained weights, and files that are none of them."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audioclip_text.model import TextEncoder, load_checkpoint
from audioclip_text.model.checkpoint import CheckpointError, extract, text_shapes, untrained_state, weights_digest
from tests.conftest import DATA


def test_a_released_file_gives_its_text_head(checkpoint_file: Path) -> None:
    """Of 861 tensors the 152 of the text head are read, as float32."""
    checkpoint = load_checkpoint(checkpoint_file)
    keys = json.loads((DATA / "keys.json").read_text())
    text = {name: shape for name, (shape, _) in keys.items() if not name.startswith(("visual.", "audio."))}
    assert {name: list(tensor.shape) for name, tensor in checkpoint.state.items()} == text
    assert {tensor.dtype for tensor in checkpoint.state.values()} == {torch.float32}
    assert (checkpoint.name, checkpoint.untrained) == ("AudioCLIP-Full-Training.pt", False)


def test_the_extract_has_the_same_weights_in_half_the_bytes(checkpoint_file: Path, safetensors_file: Path) -> None:
    """A text-only .safetensors has the same weights digest, and so the same fingerprint, as the .pt it came from."""
    assert weights_digest(load_checkpoint(checkpoint_file).state) == weights_digest(
        load_checkpoint(safetensors_file).state
    )
    assert os.path.getsize(safetensors_file) < 256e6 < os.path.getsize(checkpoint_file)
    assert not list(safetensors_file.parent.glob("*.tmp"))


def test_both_files_give_the_goldens_vectors(checkpoint_file: Path, safetensors_file: Path, vocabulary: Path) -> None:
    """.pt, .safetensors and "untrained" of one seed embed alike."""
    texts = ["dog barking", "rain on a tin roof"]
    first, *others = (
        TextEncoder.load(path, tokenizer_path=vocabulary).encode(texts)
        for path in (checkpoint_file, safetensors_file, "untrained")
    )
    assert all((other == first).all() for other in others)


def test_untrained_weights_are_made_in_seconds_and_say_so() -> None:
    """Seeded noise of the full shapes, the same on every machine."""
    began = time.perf_counter()
    checkpoint = load_checkpoint("untrained")
    assert time.perf_counter() - began < 20
    assert checkpoint.untrained
    assert checkpoint.name == "untrained"
    assert weights_digest(untrained_state(1)) != checkpoint.sha256 == weights_digest(checkpoint.state)


def test_an_extract_of_untrained_weights_stays_untrained(tmp_path: Path) -> None:
    """Nothing made with seeded weights loses that mark on the way through a file."""
    extract("untrained", tmp_path / "head.safetensors")
    assert load_checkpoint(tmp_path / "head.safetensors").untrained


def _small(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A small text head, with tensors replaced or (None) left out."""
    state: dict[str, torch.Tensor] = {
        name: torch.rand(shape) for name, shape in text_shapes(64, 2, 100, 77, 32).items()
    }
    for name, tensor in changes.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ln_final.bias": None}, "ln_final.bias is missing"),
        ({"transformer.resblocks.1.attn.in_proj_bias": None}, "transformer.resblocks.1.attn.in_proj_bias is missing"),
        ({"surprise": torch.rand(3)}, "surprise is not known"),
        ({"ln_final.bias": torch.rand(3)}, r"ln_final.bias has shape \[3\] instead of \[64\]"),
        ({"ln_final.bias": torch.ones(64, dtype=torch.int64)}, "ln_final.bias is torch.int64, no float"),
        ({"ln_final.bias": torch.full((64,), torch.nan)}, "ln_final.bias holds NaN or infinity"),
        ({"text_projection": None}, "has no text head"),
    ],
)
def test_a_wrong_text_head_is_refused_by_name(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    """Missing, unknown, misshapen, non-float and non-finite tensors are an error that names them."""
    torch.save(_small(**changes), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pt")


def test_other_sizes_load(tmp_path: Path) -> None:
    """CLIP text heads of other widths and depths are read from their shapes."""
    torch.save(_small() | {"visual.x": torch.rand(2)}, tmp_path / "a.pt")
    assert len(load_checkpoint(tmp_path / "a.pt").state) == len(text_shapes(64, 2))


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tensors are read from a .pt; code in it never runs."""
    monkeypatch.chdir(tmp_path)
    torch.save({"text_projection": _Evil()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps(_Evil()))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(name)
    assert not Path("pwned").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Cut-off, empty, foreign and lying files are each one clear error."""
    torch.save(_small(), tmp_path / "good.pt")
    save_file(_small(), tmp_path / "good.safetensors")
    data, tensors = (tmp_path / "good.pt").read_bytes(), (tmp_path / "good.safetensors").read_bytes()
    torch.save({"state_dict": _small()}, tmp_path / "nested.pt")
    for name, content in {
        "cut.pt": data[: len(data) // 2],
        "empty.pt": b"",
        "text.pt": b"this is no checkpoint",
        "cut.safetensors": tensors[: len(tensors) // 2],
        "lying.safetensors": (2**40).to_bytes(8, "little") + tensors[8:],
        "empty.safetensors": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="no flat state dict of tensors but state_dict"):
        load_checkpoint(tmp_path / "nested.pt")
    with pytest.raises(CheckpointError, match="run `audioclip-text fetch full`"):
        load_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        extract(tmp_path / "good.pt", tmp_path / "out.pt")
