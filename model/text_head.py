"""The tensors of a text head: their names and shapes, a check, a digest, and a seeded text head for tests."""

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
SCALE_NAMES = {"image": "logit_scale", "audio": "logit_scale_at"}  # which scale belongs to texts and this modality
VOCABULARY_ROWS = 49_408  # CLIP's tokenizer has this many ids, each with a row of the embedding table
_SIZE_TENSORS = ("token_embedding.weight", "positional_embedding", "text_projection")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def text_shapes(
    width: int = 512, layers: int = 12, vocabulary: int = VOCABULARY_ROWS, context: int = 77, dim: int = 1024
) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor that a text head's vectors depend on; the defaults are AudioCLIP's."""
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
    """Return a line for each tensor that is missing, unknown, not finite, not a plain float, or of the wrong shape.

    Sizes are read from the state, so CLIP text heads of other widths and depths have no faults either.
    """
    size_tensors = {name: state[name] for name in _SIZE_TENSORS if name in state}
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.") and name.count(".") > 2}
    if len(size_tensors) < 3 or not layers:
        missing = [f"{name} is missing" for name in _SIZE_TENSORS if name not in size_tensors]
        return missing + ["it has no layers"] * (not layers)
    faults = [f"{name} {fault}" for name, tensor in size_tensors.items() if (fault := _matrix_fault(tensor))]
    if faults:
        return faults
    vocabulary, width = size_tensors["token_embedding.weight"].shape
    context, dim = size_tensors["positional_embedding"].shape[0], size_tensors["text_projection"].shape[1]
    shapes = {**dict.fromkeys(SCALES, ()), **text_shapes(width, len(layers), vocabulary, context, dim)}
    faults = [f"{name} is missing" for name in shapes if name not in state and name not in SCALES]
    if context < 2:
        faults.append(f"positional_embedding has {context} row, and every text has a start and an end token")
    if width % 64:
        faults.append(f"width {width} is not a multiple of 64, the width of an attention head")
    for name, tensor in state.items():
        fault = _fault(tensor, shapes[name]) if name in shapes else "is not known"
        if fault:
            faults.append(f"{name} {fault}")
    return faults


def describe_difference(state: Mapping[str, Tensor]) -> str:
    """Return how the text head differs from AudioCLIP's, as in "512 numbers per vector instead of 1024"; "" if it does not.

    CLIP's RN50 has the same shapes, but lacks the scale that AudioCLIP trained for audio.
    """
    vocabulary, width = state["token_embedding.weight"].shape
    context, dim = state["positional_embedding"].shape[0], state["text_projection"].shape[1]
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    sizes = {
        "{} numbers per vector": (dim, 1024),
        "width {}": (width, 512),
        "{} layers": (layers, 12),
        "a context of {} tokens": (context, 77),
        "{} token ids": (vocabulary, VOCABULARY_ROWS),
    }
    differences = [f"{text.format(size)} instead of {ours}" for text, (size, ours) in sizes.items() if size != ours]
    if not differences and SCALE_NAMES["audio"] not in state:
        differences = [f"no {SCALE_NAMES['audio']}"]
    return ", ".join(differences)


def check_vocabulary(name: str, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the text head called `name` lacks an embedding for an id that the tokenizer can return."""
    rows = state["token_embedding.weight"].shape[0]
    if rows < VOCABULARY_ROWS:
        raise ValueError(
            f"{name} cannot be used: its token_embedding.weight has {rows:,} rows, and CLIP's tokenizer has "
            f"{VOCABULARY_ROWS:,} ids; use the text head of an AudioCLIP or CLIP checkpoint"
        )


def _kind_fault(tensor: Tensor) -> str | None:
    """Return what a tensor is that is not a plain float tensor, or None. Others may not even have a shape."""
    if tensor.dtype in _DTYPES and tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta):
        return None
    layout = "nested" if tensor.is_nested else tensor.layout
    return f"is {tensor.dtype} ({layout}, {tensor.device}), not a plain float tensor of 16, 32 or 64 bits"


def _matrix_fault(tensor: Tensor) -> str | None:
    """Return what is wrong with a tensor that should be a matrix of any size, or None."""
    if fault := _kind_fault(tensor):
        return fault
    if tensor.ndim != 2 or not tensor.numel():
        return f"has shape {list(tensor.shape)}, not that of a filled matrix"
    return None


def _fault(tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with a tensor that should have `shape`, or None."""
    if fault := _kind_fault(tensor):
        return fault
    if tuple(tensor.shape) != shape:
        return f"has shape {list(tensor.shape)} instead of {list(shape)}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "has less data than its shape needs"
    return None if torch.isfinite(tensor.float()).all() else "contains NaN or infinity"


def logit_scale(state: Mapping[str, Tensor], other: str) -> float:
    """Return the factor by which AudioCLIP multiplies cosines of texts with `other`, "image" or "audio": exp(scale).

    It is clamped to 1 to 100 as in the original (AndreyGuzhov/AudioCLIP, model/audioclip.py, `forward`). Raises
    ValueError if the state does not contain the scale, or if it is NaN.
    """
    name = SCALE_NAMES[other]
    scale = float(state[name]) if name in state else float("nan")
    if math.isnan(scale):
        raise ValueError(f"this checkpoint does not contain {name}: extract its text head again from the released file")
    return min(max(math.exp(min(scale, 10.0)), 1.0), 100.0)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes and float32 bytes of all tensors but the scales, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(set(state) - set(SCALES)):
        tensor = state[name].detach().float().contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data.cast("B"))
    return digest.hexdigest()


def untrained_state(seed: int = SEED) -> dict[str, Tensor]:
    """Return a text head of AudioCLIP's shapes with random weights, for testing only.

    Each tensor is a function of (seed, its name): uniform from a PCG64 stream, with the standard deviation that the
    reference initialiser uses for that kind of tensor.
    """
    shapes = {**text_shapes(), **dict.fromkeys(SCALES, ())}
    with ThreadPoolExecutor() as pool:  # numpy releases the interpreter lock while it draws
        tensors = pool.map(lambda item: _seeded(seed, *item), shapes.items())
        return dict(zip(shapes, tensors, strict=True))


def _seeded(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the float32 tensor of that name and shape for `seed`."""
    size = int(np.prod(shape, dtype=np.int64))
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(max(size, 1))
    unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)
    mean, deviation = _spread(name)
    return torch.from_numpy((np.float32(mean) + unit * np.float32(deviation * 12**0.5)).reshape(shape))


def _spread(name: str, width: int = 512, layers: int = 12) -> tuple[float, float]:
    """Return mean and standard deviation for the tensor of that name."""
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
