"""What all heads share about their tensors: checks, the digest, the logit scales, and seeded tensors for tests."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

# The scales of pairs of heads, for logits; no vector depends on them.
SCALES = ("logit_scale", "logit_scale_ai", "logit_scale_at")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DRAWN = 1 << 16  # numbers that are drawn at a time: what fits into a cache takes a third of the time


def kind_fault(tensor: Tensor) -> str | None:
    """Return what a tensor is that is not a plain float tensor, or None. Others may not even have a shape."""
    if tensor.dtype in _DTYPES and tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta):
        return None
    layout = "nested" if tensor.is_nested else tensor.layout
    return f"is {tensor.dtype} ({layout}, {tensor.device}), not a plain float tensor of 16, 32 or 64 bits"


def matrix_fault(tensor: Tensor) -> str | None:
    """Return what is wrong with a tensor that should be a matrix of any size, or None."""
    if fault := kind_fault(tensor):
        return fault
    if tensor.ndim != 2 or not tensor.numel():
        return f"has shape {list(tensor.shape)}, not that of a filled matrix"
    return None


def tensor_fault(tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with a tensor that should have `shape`, or None; its numbers are not read."""
    if fault := kind_fault(tensor):
        return fault
    if tuple(tensor.shape) != shape:
        return f"has shape {list(tensor.shape)} instead of {list(shape)}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "has less data than its shape needs"
    return None


def tensor_faults(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return a line for each tensor that is not one of `shapes`, or not as they say; their numbers are not read."""
    found = {
        name: tensor_fault(tensor, shapes[name]) if name in shapes else "is not known" for name, tensor in state.items()
    }
    return [f"{name} {fault}" for name, fault in found.items() if fault]


def number_fault(name: str, tensor: Tensor) -> str | None:
    """Return what is wrong with the numbers of a float tensor, or None; no temporary of its size is made."""
    if not tensor.numel():
        return None
    smallest, largest = (float(end) for end in torch.aminmax(tensor))
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        return "contains NaN or infinity"
    return "contains negative numbers" if name.endswith("running_var") and smallest < 0 else None


def logit_scale(state: Mapping[str, Tensor], name: str) -> float:
    """Return the factor by which AudioCLIP multiplies cosines of a pair of heads: exp of the scale called `name`.

    It is clamped to 1 to 100 as in the original (AndreyGuzhov/AudioCLIP, model/audioclip.py, `forward`). Raises
    ValueError if the state does not contain the scale, or if it is NaN.
    """
    scale = float(state[name]) if name in state else float("nan")
    if math.isnan(scale):
        raise ValueError(f"this checkpoint does not contain {name}: extract its head again from the released file")
    return min(max(math.exp(min(scale, 10.0)), 1.0), 100.0)


def pair_scale(state: Mapping[str, Tensor], names: Mapping[str, str], other: str) -> float:
    """Return logit_scale for the head `other`; `names` has the scale of each other head. Raise ValueError."""
    if other not in names:
        raise ValueError(f"AudioCLIP has no scale for two vectors of the {other} head: compare them by cosine")
    return logit_scale(state, names[other])


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes and float32 bytes of all tensors but the scales, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(set(state) - set(SCALES)):
        tensor = state[name].detach().float().contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data.cast("B"))
    return digest.hexdigest()


def seeded_tensor(seed: int, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> Tensor:
    """Return the float32 tensor of that name and shape for `seed`: uniform from a PCG64 stream of both."""
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())])
    values = np.empty(shape, np.float32)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _DRAWN):
        part = flat[start : start + _DRAWN]
        part[:] = bits.random_raw(part.size) >> np.uint64(40)
        part /= np.float32(1 << 24)
        part -= np.float32(0.5)
        part *= np.float32(deviation * 12**0.5)
        part += np.float32(mean)
    return torch.from_numpy(values)


def seeded_state(
    seed: int, shapes: Mapping[str, tuple[int, ...]], spread: Callable[[str, tuple[int, ...]], tuple[float, float]]
) -> dict[str, Tensor]:
    """Return tensors of these names and shapes; `spread` returns mean and standard deviation for name and shape.

    Each tensor is a function of (seed, its name).
    """

    def make(name: str) -> Tensor:
        return seeded_tensor(seed, name, shapes[name], *spread(name, shapes[name]))

    with ThreadPoolExecutor() as pool:  # numpy releases the interpreter lock while it draws
        return dict(zip(shapes, pool.map(make, shapes), strict=True))
