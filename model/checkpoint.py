"""Checkpoints: find, read and check the text head, say what it is, write it as safetensors, or make an untrained one."""

from __future__ import annotations

import hashlib
import os
import pickle
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

UNTRAINED = "untrained"
RELEASED = {"full": "AudioCLIP-Full-Training.pt", "partial": "AudioCLIP-Partial-Training.pt"}
SEED = 20210624
_SCALES = ("logit_scale", "logit_scale_ai", "logit_scale_at")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or holds no AudioCLIP text head; the text says which and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A text head: `state` maps tensor names to float32 tensors, the logit scales among them.

    `name` is the file's name or "untrained", `sha256` that of the file or, untrained, of its tensors.
    """

    state: dict[str, Tensor]
    name: str
    sha256: str
    untrained: bool


def text_shapes(
    width: int = 512, layers: int = 12, vocabulary: int = 49408, context: int = 77, dim: int = 1024
) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor that makes a text head's vectors; the defaults are AudioCLIP's."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (vocabulary, width),
        "positional_embedding": (context, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, dim),
    }
    for layer in range(layers):
        for name, shape in {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }.items():
            shapes[f"transformer.resblocks.{layer}.{name}"] = shape
    return shapes


def resolve_checkpoint(word: str | os.PathLike[str], cache: str | os.PathLike[str] = ".cache") -> str:
    """Path that `word` stands for: "full" and "partial" are the released files in `cache`; "untrained" stays."""
    word = os.fspath(word)
    return str(Path(cache, RELEASED[word])) if word in RELEASED else word


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Text head of a released .pt, of a text-only .safetensors, of "full" or "partial" in .cache, or "untrained".

    Raises CheckpointError where there is none, or where tensors are missing, unknown, misshapen or not finite.
    """
    if os.fspath(path) == UNTRAINED:
        state = untrained_state()
        return Checkpoint(state, UNTRAINED, weights_digest(state), True)
    file = Path(resolve_checkpoint(path))
    if not file.is_file():
        raise CheckpointError(
            f"no checkpoint at {file}: run `audioclip-text fetch full`, give the path of a .pt or .safetensors file, or "
            f"try the machinery out with the word untrained"
        )
    tensors, untrained = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pt(file)
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(("visual.", "audio."))}
    _check(state, file)
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256") if hasattr(hashlib, "file_digest") else _digest(handle.read())
    return Checkpoint(
        {name: tensor.float() for name, tensor in state.items()}, file.name, digest.hexdigest(), untrained
    )


def _digest(data: bytes) -> hashlib._Hash:
    return hashlib.sha256(data)  # Python 3.10 has no file_digest


def _read_pt(file: Path) -> tuple[dict[str, Tensor], bool]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is no plain state dict: it is damaged, or its pickle holds more than tensors, and code in a "
            f"checkpoint is never run; fetch the released file again"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as a PyTorch checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        keys = ", ".join(map(str, list(loaded)[:5])) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise CheckpointError(f"{file} holds no flat state dict of tensors but {keys}: save model.state_dict()")
    return dict(loaded), False


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], bool]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(file), metadata.get("weights") == UNTRAINED
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from None


def _check(state: dict[str, Tensor], file: Path) -> None:
    """CheckpointError naming every tensor that is missing, unknown, misshapen, no float or not finite."""
    known = {name for name in ("token_embedding.weight", "positional_embedding", "text_projection") if name in state}
    if len(known) < 3 or any(state[name].ndim != 2 for name in known):
        raise CheckpointError(f"{file} has no text head: of the embeddings and the projection it has {sorted(known)}")
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.") and name.count(".") > 2}
    vocabulary, width = state["token_embedding.weight"].shape
    context, dim = state["positional_embedding"].shape[0], state["text_projection"].shape[1]
    shapes = text_shapes(width, len(layers), vocabulary, context, dim)
    faults = [f"{name} is missing" for name in shapes if name not in state]
    for name, tensor in state.items():
        if name in _SCALES:
            continue
        if name not in shapes:
            faults.append(f"{name} is not known")
        elif tuple(tensor.shape) != shapes[name]:
            faults.append(f"{name} has shape {list(tensor.shape)} instead of {list(shapes[name])}")
        elif not tensor.is_floating_point():
            faults.append(f"{name} is {tensor.dtype}, no float")
        elif not torch.isfinite(tensor).all():
            faults.append(f"{name} holds NaN or infinity")
    if width % 64:
        faults.append(f"width {width} is no multiple of 64, the size of a head")
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise CheckpointError(f"{file} holds no AudioCLIP text head: {'; '.join(faults[:10])}{more}")


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, shape and float32 bytes of the tensors that make the vectors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(set(state) - set(_SCALES)):
        tensor = state[name].detach().float().contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data.cast("B"))
    return digest.hexdigest()


def extract(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write the text head of checkpoint `source` to the .safetensors file `target`: 254 MB instead of 537.

    Raises CheckpointError as load_checkpoint does, and where `target` is not named .safetensors.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} must end in .safetensors, the format that is written")
    checkpoint = load_checkpoint(source)
    metadata = {"source": checkpoint.name, "source_sha256": checkpoint.sha256}
    if checkpoint.untrained:
        metadata["weights"] = UNTRAINED
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.state.items()}, temporary, metadata)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def untrained_state(seed: int = SEED) -> dict[str, Tensor]:
    """A text head of AudioCLIP's shapes from seeded noise: for trying the machinery; its vectors mean nothing.

    Each tensor is a function of (seed, its name): uniform from a PCG64 stream, with the standard deviation that the
    reference initialiser uses for that kind of tensor.
    """
    shapes = {**text_shapes(), **dict.fromkeys(_SCALES, ())}
    with ThreadPoolExecutor() as pool:  # numpy lets go of the interpreter while it draws
        tensors = pool.map(lambda item: _seeded(seed, *item), shapes.items())
        return dict(zip(shapes, tensors, strict=True))


def _seeded(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape, dtype=np.int64))
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(max(size, 1))
    unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)
    mean, deviation = _spread(name)
    return torch.from_numpy((np.float32(mean) + unit * np.float32(deviation * 12**0.5)).reshape(shape))


def _spread(name: str, width: int = 512, layers: int = 12) -> tuple[float, float]:
    """Mean and standard deviation for the tensor of that name."""
    if name.endswith(("ln_1.weight", "ln_2.weight", "ln_final.weight")):
        return 1.0, 0.1
    if name == "token_embedding.weight":
        return 0.0, 0.05
    if name == "text_projection" or name.endswith("in_proj_weight"):
        return 0.0, 1.5 * width**-0.5
    if name.endswith(("out_proj.weight", "c_proj.weight")):
        return 0.0, width**-0.5 * (2 * layers) ** -0.5
    if name.endswith("c_fc.weight"):
        return 0.0, (2 * width) ** -0.5
    return 0.0, 0.02
