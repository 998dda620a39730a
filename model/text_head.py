"""What a text head is made of: its tensors' names and shapes, what is wrong with one, its digest, and a seeded one."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

SEED = 20210624
SCALES = ("logit_scale", "logit_scale_ai", "logit_scale_at")  # for logits; no vector depends on them
SCALE_OF = {"image": "logit_scale", "audio": "logit_scale_at"}  # what texts are compared with, and by which of them
VOCABULARY_ROWS = 49_408  # CLIP's: a row for each id
_CORNERS = ("token_embedding.weight", "positional_embedding", "text_projection")


def text_shapes(
    width: int = 512, layers: int = 12, vocabulary: int = VOCABULARY_ROWS, context: int = 77, dim: int = 1024
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


def text_head_faults(state: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor that is missing, unknown, misshapen, no plain float or not finite; [] for a whole text head.

    Sizes are read from the state, so CLIP text heads of other widths and depths are whole too.
    """
    corners = {name: state[name] for name in _CORNERS if name in state}
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.") and name.count(".") > 2}
    if len(corners) < 3 or not layers:
        return [f"{name} is missing" for name in _CORNERS if name not in corners] + ["it has no layers"] * (not layers)
    matrices = [name for name, tensor in corners.items() if tensor.ndim != 2 or not tensor.numel()]
    if matrices:
        return [f"{name} has shape {list(corners[name].shape)}, no filled matrix" for name in matrices]
    vocabulary, width = corners["token_embedding.weight"].shape
    context, dim = corners["positional_embedding"].shape[0], corners["text_projection"].shape[1]
    shapes = {**dict.fromkeys(SCALES, ()), **text_shapes(width, len(layers), vocabulary, context, dim)}
    faults = [f"{name} is missing" for name in shapes if name not in state and name not in SCALES]
    if width % 64:
        faults.append(f"width {width} is no multiple of 64, the size of a head")
    for name, tensor in state.items():
        fault = _fault(tensor, shapes[name]) if name in shapes else "is not known"
        if fault:
            faults.append(f"{name} {fault}")
    return faults


def check_vocabulary(name: str, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError where the text head called `name` lacks a row for an id that the tokenizer can give."""
    rows = state["token_embedding.weight"].shape[0]
    if rows < VOCABULARY_ROWS:
        raise ValueError(
            f"{name} cannot be used: its token_embedding.weight has {rows:,} rows, and CLIP's tokenizer gives "
            f"{VOCABULARY_ROWS:,} ids; take the text head of an AudioCLIP or CLIP checkpoint"
        )


def _fault(tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    if tuple(tensor.shape) != shape:
        return f"has shape {list(tensor.shape)} instead of {list(shape)}"
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        return f"is {tensor.dtype} ({tensor.layout}, {tensor.device}), no plain float tensor"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "has less data than its shape needs"
    return None if torch.isfinite(tensor.float()).all() else "holds NaN or infinity"


def logit_scale(state: Mapping[str, Tensor], other: str) -> float:
    """What AudioCLIP multiplies cosines of texts with `other` by, "image" or "audio": e to the trained scale, 1 to 100.

    The clamp is the original's (AndreyGuzhov/AudioCLIP, model/audioclip.py, `forward`). ValueError where the state has
    no such scale, or one that is no number.
    """
    name = SCALE_OF[other]
    scale = float(state[name]) if name in state else float("nan")
    if math.isnan(scale):
        raise ValueError(f"this checkpoint holds no {name}: extract its text head again from the released file")
    return min(max(math.exp(min(scale, 10.0)), 1.0), 100.0)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, shape and float32 bytes of the tensors that make the vectors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(set(state) - set(SCALES)):
        tensor = state[name].detach().float().contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data.cast("B"))
    return digest.hexdigest()


def untrained_state(seed: int = SEED) -> dict[str, Tensor]:
    """A text head of AudioCLIP's shapes from seeded noise: for trying the machinery; its vectors mean nothing.

    Each tensor is a function of (seed, its name): uniform from a PCG64 stream, with the standard deviation that the
    reference initialiser uses for that kind of tensor.
    """
    shapes = {**text_shapes(), **dict.fromkeys(SCALES, ())}
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
