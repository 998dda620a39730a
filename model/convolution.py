"""Convolutions with batch norm, activation and sum fused in: by oneDNN if this torch has it, else by plain torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import as_tensor

NORM_EPSILON = 1e-5
TILE = 32  # numbers in bfloat16 of a row of a tile of AMX


@dataclass(eq=False)
class Convolution:
    """A convolution of channels_last tensors.

    Attributes:
        weight: [out, in / groups, height, width], channels_last.
        bias: [out].
        stride: The step of both axes.
        padding: Zeros above and below, and at both sides.
        groups: Groups of channels.
    """

    weight: Tensor
    bias: Tensor
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def __call__(self, x: Tensor, packed: Packed | None = None, activation: str = "none") -> Tensor:
        """Return the convolution of x [n, in, h, w], followed by "relu", "sigmoid" or "none"."""
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        return y if activation == "none" else torch.relu_(y) if activation == "relu" else torch.sigmoid_(y)

    def add(self, x: Tensor, residual: Tensor, packed: Packed | None = None) -> Tensor:
        """Return relu(residual + convolution of x); residual may be overwritten."""
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        return torch.relu_(y.add_(residual))


# Weights in the layouts that oneDNN chose for one size of input. With another size they would be rearranged in every call,
# silently, which takes up to ten times as long as the convolution.
Packed = dict[Convolution, Tensor]


class FusedConvolution(Convolution):
    """A Convolution by oneDNN, which applies activations and sums while the result is still in the cache.

    It uses private operators of torch, those that torch.compile emits for a CPU. Only `convolution` below creates one, after
    `fused_works` has checked their results.
    """

    def __call__(self, x: Tensor, packed: Packed | None = None, activation: str = "none") -> Tensor:
        """Return the convolution of x [n, in, h, w], followed by "relu", "sigmoid" or "none"."""
        narrow = self.stride == 2 and x.shape[3] < 3 and x.dtype == torch.bfloat16
        if narrow:  # oneDNN 3.12 with AMX returns memory that it did not write if the result is one column wide
            x = F.pad(x, (0, 3 - x.shape[3])).contiguous(memory_format=torch.channels_last)
        weight = self._weight_for(x, packed)
        y = as_tensor(
            torch.ops.mkldnn._convolution_pointwise.default(
                x, weight, self.bias, self.padding, [self.stride] * 2, [1, 1], self.groups, activation, [], ""
            )
        )
        return y[..., :1].contiguous(memory_format=torch.channels_last) if narrow else y

    def add(self, x: Tensor, residual: Tensor, packed: Packed | None = None) -> Tensor:
        """Return relu(residual + convolution of x); residual may be overwritten."""
        weight = self._weight_for(x, packed)
        sizes = self.padding, [self.stride] * 2, [1, 1], self.groups
        return as_tensor(
            torch.ops.mkldnn._convolution_pointwise_.binary(
                residual, x, weight, self.bias, *sizes, "add", 1.0, "relu", [], ""
            )
        )

    def reordered(self, shape: Sequence[int]) -> Tensor:
        """Return the weight in the layout for inputs of a shape; their number hardly matters."""
        return as_tensor(
            torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, [self.stride] * 2, [1, 1], self.groups, list(shape)
            )
        )

    def _weight_for(self, x: Tensor, packed: Packed | None) -> Tensor:
        """Return the weight as it is, or packed for the size of x; `packed` belongs to that size and is filled here."""
        if packed is None:
            return self.weight
        if self not in packed:
            packed[self] = self.reordered(x.shape)
        return packed[self]


def convolution(  # noqa: PLR0917
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    shape: Sequence[int] | None = None,
) -> Convolution:
    """Return the fastest correct convolution on this machine, for weight and bias of one dtype and device.

    Args:
        weight: [out, in / groups, height, width].
        bias: [out].
        stride: The step of both axes.
        padding: Zeros above and below, and at both sides.
        groups: Groups of channels.
        shape: That of its inputs if it is always the same: the weight is then packed for it.
    """
    weight = weight.contiguous(memory_format=torch.channels_last)
    if weight.device.type != "cpu" or not fused_works(weight.dtype):
        return Convolution(weight, bias, stride, padding, groups)
    if weight.dtype == torch.bfloat16 and groups > 1 and weight.shape[1] > 1 and has_tiles():
        weight, groups = merge_groups(weight, groups, TILE // weight.shape[1])
    fused = FusedConvolution(weight, bias, stride, padding, groups)
    if shape is not None:
        fused.weight = fused.reordered(shape)
    return fused


def merge_groups(weight: Tensor, groups: int, count: int) -> tuple[Tensor, int]:
    """Return the same convolution with groups that are `count` times as wide, as far as that divides their number.

    The new weights are zeros. AMX takes up to twice as long for groups narrower than a tile as for groups that fill one.

    Args:
        weight: [out, in / groups, height, width].
        groups: Groups of channels.
        count: How many of them become one.
    """
    count = math.gcd(max(1, count), groups)
    out, inputs, height, width = weight.shape
    narrow = weight.view(groups // count, count, out // groups, inputs, height, width)
    wide = weight.new_zeros(groups // count, count, out // groups, count, inputs, height, width)
    for each in range(count):
        wide[:, each, :, each] = narrow[:, each]
    merged = wide.view(out, count * inputs, height, width)
    return merged.contiguous(memory_format=torch.channels_last), groups // count


def has_tiles() -> bool:
    """Return whether the CPU has AMX, whose products in bfloat16 are those of whole tiles."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


@functools.cache
def fused_works(dtype: torch.dtype) -> bool:
    """Return whether this torch on this CPU has fused convolutions that agree with plain ones on small examples."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)

    def agrees(groups: int) -> bool:
        x, residual, bias = random(2, 64, 9, 7), random(2, 32, 5, 4), torch.randn(32, generator=generator).to(dtype)
        arguments = random(32, 64 // groups, 3, 3), bias, 2, (1, 1), groups
        plain, fused = Convolution(*arguments), FusedConvolution(*arguments)
        packed = FusedConvolution(fused.reordered(x.shape), *arguments[1:])
        ways: list[tuple[FusedConvolution, Packed | None]] = [(fused, None), (fused, {}), (packed, None)]
        pairs = [
            (one(x, weights, activation), plain(x, None, activation))
            for one, weights in ways
            for activation in ("none", "relu", "sigmoid")
        ]
        pairs += [(one.add(x, residual.clone(), weights), plain.add(x, residual.clone())) for one, weights in ways]
        share = 1e-5 if dtype == torch.float32 else 0.02
        return all((actual - expected).abs().max() <= share * expected.abs().max() for actual, expected in pairs)

    try:
        return agrees(1) and agrees(16)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


def computed_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a network computes whose weights are rounded to `dtype`.

    A CPU without products in bfloat16 would take many times as long for them as for float32.
    """
    slow = device.type == "cpu" and dtype == torch.bfloat16 and not fused_works(dtype)
    return torch.float32 if slow else dtype


def fold_norm(state: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias, float64, of a convolution that a batch norm with stored statistics follows."""
    weight = state[f"{convolution}.weight"].detach().double()  # [out, in / groups, height, width]
    bias = state.get(f"{convolution}.bias", torch.zeros(())).detach().double()
    scale, shift, mean, variance = (
        state[f"{norm}.{part}"].detach().double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (variance + NORM_EPSILON).sqrt()  # [out]
    return weight * factor[:, None, None, None], (bias - mean) * factor + shift
