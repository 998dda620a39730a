"""Checkpoints: the released format, its extract, untrained weights, and files that are not checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from audioclip_beam.model import TextEncoder
from audioclip_beam.model.checkpoint import (
    CheckpointError,
    extract,
    load_checkpoint,
    resolve_checkpoint,
    weights_digest,
)
from audioclip_beam.model.text.shapes import SCALES, text_shapes
from tests.support.paths import DATA
from tests.support.released_file import RELEASED_BYTES, write_released


def test_a_released_file_yields_its_text_head(checkpoint_file: Path) -> None:
    """The 152 tensors of the text head are read out of 861, as float32; layout and size are those of the released file."""
    assert checkpoint_file.stat().st_size == RELEASED_BYTES
    checkpoint = load_checkpoint(checkpoint_file)
    keys = json.loads((DATA / "keys.json").read_text())
    text = {name: shape for name, (shape, _) in keys.items() if not name.startswith(("visual.", "audio."))}
    assert {name: list(tensor.shape) for name, tensor in checkpoint.state.items()} == text
    assert {tensor.dtype for tensor in checkpoint.state.values()} == {torch.float32}
    assert (checkpoint.name, checkpoint.untrained) == ("AudioCLIP-Full-Training.pt", False)


@pytest.mark.slow
def test_the_extract_has_the_same_weights_in_half_the_bytes(checkpoint_file: Path, safetensors_file: Path) -> None:
    """A text-only .safetensors has the same weights digest, and so the same fingerprint, as the .pt it came from."""
    assert weights_digest(load_checkpoint(checkpoint_file).state) == weights_digest(
        load_checkpoint(safetensors_file).state
    )
    assert os.path.getsize(safetensors_file) < 256e6 < os.path.getsize(checkpoint_file)
    assert not list(safetensors_file.parent.glob("*.tmp"))


SMALL_SHAPES = {name: (shape, "float32") for name, shape in text_shapes(64, 2, 100, 77, 32).items()}
OTHER_SHAPES = {"visual.x": ((3,), "float32"), "audio.fbsp.bias": ((0,), "float32"), "audio.n": ((), "int64")}


def test_the_released_layout_keeps_every_number(tmp_path: Path) -> None:
    """Tensors on cuda:0 under 14-digit keys, empty tensors and integers of other towers, and _metadata are all read."""
    state = _small()
    write_released(tmp_path / "a.pt", SMALL_SHAPES | OTHER_SHAPES, {name: t.numpy() for name, t in state.items()})
    loaded = torch.load(tmp_path / "a.pt", map_location="cpu", weights_only=True)
    assert loaded._metadata["transformer.resblocks.0.mlp.gelu"] == {"version": 1}
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert all(torch.equal(checkpoint.state[name], tensor) for name, tensor in state.items())
    assert len(checkpoint.state) == len(state)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_pickle_protocol_is_named(tmp_path: Path, protocol: int, recwarn: pytest.WarningsRecorder) -> None:
    """Protocol 3 is read, without a warning; the error for a later one names it instead of suspecting code."""
    write_released(tmp_path / "a.pt", SMALL_SHAPES, {}, protocol=protocol)
    if protocol == 3:
        load_checkpoint(tmp_path / "a.pt")
    else:
        with pytest.raises(CheckpointError, match=rf"a\.pt has pickle protocol {protocol}, .*without pickle_protocol$"):
            load_checkpoint(tmp_path / "a.pt")
    assert not recwarn.list


def test_a_file_without_checksums_is_refused(tmp_path: Path) -> None:
    """The error reports missing checksums, not wrong ones: damage could not be found."""
    write_released(tmp_path / "a.pt", SMALL_SHAPES, {}, checksums=False)
    with pytest.raises(CheckpointError, match=r"a\.pt has no checksums, .*set_crc32_options\(True\)$"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_an_extract_has_the_usual_mode(tmp_path: Path, umask: int) -> None:
    """The umask decides who can read the extract, as for any new file."""
    torch.save(_small(), tmp_path / "a.pt")
    previous = os.umask(umask)
    try:
        extract(tmp_path / "a.pt", tmp_path / "new" / "head.safetensors")
    finally:
        os.umask(previous)
    assert (tmp_path / "new" / "head.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["head.safetensors"]


def test_an_extract_replaces_the_target_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while writing leaves the earlier file as it is, and no temporary file."""
    torch.save(_small(), tmp_path / "a.pt")
    (tmp_path / "head.safetensors").write_bytes(b"earlier")

    def fail(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("audioclip_beam.model.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        extract(tmp_path / "a.pt", tmp_path / "head.safetensors")
    assert (tmp_path / "head.safetensors").read_bytes() == b"earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt", "head.safetensors"}


@pytest.mark.slow
def test_all_formats_give_equal_vectors(checkpoint_file: Path, safetensors_file: Path, vocabulary: Path) -> None:
    """.pt, .safetensors and "untrained" of one seed give the same bits."""
    texts = ["dog barking", "rain on a tin roof"]
    first, *others = (
        TextEncoder.load(path, tokenizer_path=vocabulary).encode(texts)
        for path in (checkpoint_file, safetensors_file, "untrained")
    )
    assert all((other == first).all() for other in others)


def test_untrained_weights_are_fast_and_marked() -> None:
    """Seeded weights of the full shapes are the same on every machine, and are marked as untrained."""
    began = time.perf_counter()
    checkpoint = load_checkpoint("untrained")
    assert time.perf_counter() - began < 20
    assert checkpoint.untrained
    assert checkpoint.name == "untrained"
    # The digest of the weights of embeddings.npz.
    assert checkpoint.sha256 == "339486188e28483e40cf769b13d8dd3190dadfdf572597dc6e4c5a102c0e7a8c"
    assert checkpoint.sha256 == weights_digest(checkpoint.state)


def test_shapes_built_in_code_are_the_released_ones() -> None:
    """text_shapes and the logit scales are the names and shapes of the released file's text head."""
    keys = json.loads((DATA / "keys.json").read_text())
    text = {name: tuple(shape) for name, (shape, _) in keys.items() if not name.startswith(("visual.", "audio."))}
    assert {**text_shapes(), **dict.fromkeys(SCALES, ())} == text


def test_the_digest_depends_on_names_shapes_and_values() -> None:
    """What changes a vector changes the digest; the order of tensors, their precision and the logit scales do not."""
    state = {"a": torch.arange(4.0), "b": torch.ones(2)}
    digest = weights_digest(state)
    assert digest == weights_digest({"b": torch.ones(2).half(), "a": torch.arange(4.0), "logit_scale": torch.ones(())})
    others = [{"a": torch.arange(4.0), "c": torch.ones(2)}, {"a": torch.arange(4.0).reshape(2, 2), "b": torch.ones(2)}]
    others.append({"a": torch.arange(4.0), "b": torch.ones(2) + 1e-6})
    assert len({digest, *map(weights_digest, others)}) == 4


@pytest.mark.slow
def test_an_extract_of_untrained_weights_stays_untrained(tmp_path: Path) -> None:
    """Untrained weights keep their mark in a file."""
    extract("untrained", tmp_path / "head.safetensors")
    assert load_checkpoint(tmp_path / "head.safetensors").untrained


@pytest.mark.slow
def test_an_extract_names_its_source(checkpoint_file: Path, safetensors_file: Path) -> None:
    """Its metadata contain name and sha256 of the .pt, and no mark of untrained weights."""
    with safetensors.safe_open(safetensors_file, framework="pt") as opened:
        metadata = opened.metadata()
    sha256 = hashlib.sha256(checkpoint_file.read_bytes()).hexdigest()
    assert metadata == {"source": checkpoint_file.name, "source_sha256": sha256}
    assert load_checkpoint(checkpoint_file).sha256 == sha256
    assert load_checkpoint(safetensors_file).sha256 == hashlib.sha256(safetensors_file.read_bytes()).hexdigest()


FLOAT4 = getattr(torch, "float4_e2m1fn_x2", torch.float8_e4m3fn)  # torch has it from version 2.8 on


def _head(width: int) -> dict[str, torch.Tensor]:
    """A small text head."""
    return {name: torch.rand(shape) for name, shape in text_shapes(width, 2, 100, 77, 32).items()}


def _small(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A small text head, with tensors replaced or (None) left out."""
    state = _head(64)
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
        (
            {"ln_final.bias": torch.ones(64, dtype=torch.int64)},
            "ln_final.bias is torch.int64 .*not a plain float tensor",
        ),
        (
            {"text_projection": torch.ones(64, 32, dtype=torch.uint8).view(FLOAT4)},
            f"text_projection is {FLOAT4} .*not a plain float tensor of 16, 32 or 64 bits",
        ),
        (
            {"ln_final.bias": torch.ones(64, dtype=torch.uint8).view(torch.float8_e5m2)},
            "ln_final.bias is torch.float8_e5m2 .*not a plain float tensor of 16, 32 or 64 bits",
        ),
        (
            {"text_projection": torch.nested.nested_tensor([torch.ones(3, 32), torch.ones(2, 32)])},
            r"text_projection is torch.float32 \(nested, cpu\), not a plain float tensor",
        ),
        (
            {"ln_final.bias": torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])},
            r"ln_final.bias is torch.float32 \(nested, cpu\), not a plain float tensor",
        ),
        (
            {"positional_embedding": torch.rand(1, 64)},
            "positional_embedding has 1 row, and every text has a start and an end token",
        ),
        ({"ln_final.bias": torch.ones(64).to_sparse()}, "ln_final.bias is torch.float32 .*not a plain float tensor"),
        (
            {"ln_final.bias": torch.empty(64, device="meta")},
            "ln_final.bias is torch.float32 .*not a plain float tensor",
        ),
        ({"token_embedding.weight": torch.rand(1, 64).expand(10**10, 64)}, "has less data than its shape needs"),
        (
            {"token_embedding.weight": torch.rand(0, 64)},
            r"token_embedding.weight has shape \[0, 64\], not that of a filled matrix",
        ),
        ({"text_projection": torch.rand(64)}, r"text_projection has shape \[64\], not that of a filled matrix"),
        ({"ln_final.bias": torch.full((64,), torch.nan)}, "ln_final.bias contains NaN or infinity"),
        ({"text_projection": None}, "text_projection is missing"),
        (_head(72), "width 72 is not a multiple of 64, the width of an attention head"),
    ],
)
def test_faults_of_a_text_head_are_named(tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    """Tensors that are missing, unknown, not finite, not floats or of the wrong shape are an error that names them."""
    torch.save(_small(**changes), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pt")


def test_the_shortest_context_embeds_a_text(tmp_path: Path, vocabulary: Path) -> None:
    """Two tokens, start and end, are enough for a vector."""
    torch.save(
        {name: torch.rand(shape) for name, shape in text_shapes(64, 2, context=2, dim=32).items()}, tmp_path / "a.pt"
    )
    encoder = TextEncoder.load(tmp_path / "a.pt", tokenizer_path=vocabulary, device="cpu")
    assert encoder.encode(["dog"]).shape == (1, 32)


def test_other_sizes_load(tmp_path: Path) -> None:
    """CLIP text heads of other widths and depths load by their shapes, widened to plain float32."""
    half = {name: torch.nn.Parameter(tensor.half()) for name, tensor in _small().items()}
    torch.save(half | {"visual.x": torch.rand(2)}, tmp_path / "a.pt")
    state = load_checkpoint(tmp_path / "a.pt").state
    assert len(state) == len(text_shapes(64, 2))
    assert {(tensor.dtype, tensor.requires_grad) for tensor in state.values()} == {(torch.float32, False)}


def test_an_error_names_ten_faults_and_counts_the_others(tmp_path: Path) -> None:
    """The message for a file of another kind stays short."""
    torch.save(_small() | {f"extra{n}": torch.rand(2) for n in range(12)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="extra9 is not known; and 2 more; give a released .pt, or"):
        load_checkpoint(tmp_path / "a.pt")


def test_full_and_partial_name_the_released_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words name the files that fetch writes to .cache; if they are missing, the error names the command."""
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("partial", "folder") == str(Path("folder", "AudioCLIP-Partial-Training.pt"))
    assert resolve_checkpoint("some.pt") == "some.pt"
    with pytest.raises(CheckpointError, match=f"nearest existing path is {tmp_path}.: run `audioclip fetch partial`"):
        load_checkpoint("partial")
    with pytest.raises(CheckpointError, match="it is not a regular file.: run `audioclip fetch full`"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "command"),
    [
        (".cache/AudioCLIP-Partial-Training.pt", "fetch partial"),
        (".cache/AudioCLIP-Full-Training.pt", "fetch full"),
        ("models/AudioCLIP-Partial-Training.pt", "fetch partial --dir models"),
        ("models/my-partial.pt", "fetch partial"),
        ("models/mine.pt", "fetch full"),
        ("partial.safetensors", "fetch full"),
    ],
)
def test_the_advice_names_the_released_file_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, command: str
) -> None:
    """The command in the error fetches the file with that name to its directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"^no checkpoint at {path} .*: run `audioclip {command}`, or give"):
        load_checkpoint(path)


class _Evil:
    """An object whose unpickling runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tensors are read from a .pt; code in it never runs."""
    monkeypatch.chdir(tmp_path)
    torch.save({"text_projection": _Evil()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps(_Evil()))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(name)
    assert not Path("pwned").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Truncated, empty and forged files, and files of another kind, each give one clear error."""
    torch.save(_small(), tmp_path / "good.pt")
    save_file(_small(), tmp_path / "good.safetensors")
    data, tensors = (tmp_path / "good.pt").read_bytes(), (tmp_path / "good.safetensors").read_bytes()
    torch.save({"state_dict": _small()}, tmp_path / "nested.pt")
    torch.save(_small() | {3: torch.rand(2)}, tmp_path / "number.pt")
    torch.save(_small(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name, content in {
        "cut.pt": data[: len(data) // 2],
        "empty.pt": b"",
        "text.pt": b"not a checkpoint",
        "cut.safetensors": tensors[: len(tensors) // 2],
        "forged.safetensors": (2**40).to_bytes(8, "little") + tensors[8:],
        "empty.safetensors": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)
    for name, message in {
        "nested.pt": "not contain a flat state dict of tensors but state_dict: save",
        "number.pt": "not contain a flat state dict of tensors but 3: save",
        "legacy.pt": "not a PyTorch zip archive: .* by torch before 1.6",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="run `audioclip fetch full`"):
        load_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        extract(tmp_path / "good.pt", tmp_path / "out.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_random_damage_gives_an_error_or_a_text_head(tmp_path: Path, name: str) -> None:
    """Damage to a file's structure never raises another exception."""
    torch.save(_small(), tmp_path / "a.pt")
    save_file(_small(), tmp_path / "a.safetensors")
    good, chance = (tmp_path / name).read_bytes(), random.Random(5)
    refused = 0
    for _ in range(100):
        bad = bytearray(good)
        for _ in range(chance.choice([1, 3, 20])):
            bad[chance.choice([chance.randrange(6000), -1 - chance.randrange(6000)])] = chance.randrange(256)
        (tmp_path / f"bad{name}").write_bytes(bad)
        try:
            load_checkpoint(tmp_path / f"bad{name}")
        except CheckpointError:
            refused += 1
    assert 20 < refused <= 100


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_weights_do_not_change_with_their_file(tmp_path: Path, name: str) -> None:
    """A file that is overwritten or truncated after loading leaves the weights as they are."""
    state = _small()
    (torch.save if name == "a.pt" else save_file)(state, tmp_path / name)
    checkpoint = load_checkpoint(tmp_path / name)
    with (tmp_path / name).open("r+b") as handle:
        handle.write(bytes((tmp_path / name).stat().st_size))
        handle.flush()
        assert all(torch.equal(checkpoint.state[key], tensor) for key, tensor in state.items())
        handle.truncate(0)
    assert all(torch.equal(checkpoint.state[key], tensor) for key, tensor in state.items())
