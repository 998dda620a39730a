"""Convolutions with the following operation fused in: oneDNN's if this torch has them, else plain torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import as_tensor


@dataclass(eq=False)
class Convolution:
    """A convolution by weight [out, in / groups, height, width], channels_last, and bias [out] or None."""

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def __call__(self, x: Tensor, packed: Packed | None, activation: str = "none") -> Tensor:
        """Return the convolution of x [n, in, h, w], followed by "relu", "sigmoid" or "none"."""
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        return y if activation == "none" else torch.relu_(y) if activation == "relu" else torch.sigmoid_(y)

    def add(self, x: Tensor, residual: Tensor, packed: Packed | None) -> Tensor:
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

    def __call__(self, x: Tensor, packed: Packed | None, activation: str = "none") -> Tensor:
        """Return the convolution of x [n, in, h, w], followed by "relu", "sigmoid" or "none"."""
        weight = self._weight_for(x, packed)
        return as_tensor(
            torch.ops.mkldnn._convolution_pointwise.default(
                x, weight, self.bias, self.padding, [self.stride] * 2, [1, 1], self.groups, activation, [], ""
            )
        )

    def add(self, x: Tensor, residual: Tensor, packed: Packed | None) -> Tensor:
        """Return relu(residual + convolution of x); residual may be overwritten."""
        weight = self._weight_for(x, packed)
        sizes = self.padding, [self.stride] * 2, [1, 1], self.groups
        return as_tensor(
            torch.ops.mkldnn._convolution_pointwise_.binary(
                residual, x, weight, self.bias, *sizes, "add", 1.0, "relu", [], ""
            )
        )

    def _weight_for(self, x: Tensor, packed: Packed | None) -> Tensor:
        """Return the weight as it is, or packed for the size of x; `packed` belongs to that size and is filled here."""
        if packed is None:
            return self.weight
        if self not in packed:
            packed[self] = as_tensor(
                torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight, self.padding, [self.stride] * 2, [1, 1], self.groups, list(x.shape)
                )
            )
        return packed[self]


def convolution(
    weight: Tensor, bias: Tensor | None, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1
) -> Convolution:
    """Return the fastest correct convolution on this machine, for weight and bias of one dtype and device."""
    fused = weight.device.type == "cpu" and fused_works(weight.dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return (FusedConvolution if fused else Convolution)(weight, bias, stride, padding, groups)


@functools.cache
def fused_works(dtype: torch.dtype) -> bool:
    """Return whether this torch on this CPU has fused convolutions that agree with plain ones on a small example."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)

    x, residual, bias = random(2, 64, 9, 7), random(2, 32, 5, 4), torch.randn(32, generator=generator).to(dtype)
    arguments = random(32, 4, 3, 3), bias, 2, (1, 1), 16
    plain, tolerance = Convolution(*arguments), 1e-4 if dtype == torch.float32 else 0.25
    weights: tuple[Packed | None, Packed] = None, {}
    try:
        fused = FusedConvolution(*arguments)
        pairs = [
            *(
                (fused(x, packed, activation), plain(x, None, activation))
                for packed in weights
                for activation in ("none", "relu", "sigmoid")
            ),
            *((fused.add(x, residual.clone(), packed), plain.add(x, residual, None)) for packed in weights),
        ]
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return all(torch.allclose(actual, expected, rtol=0.0, atol=tolerance) for actual, expected in pairs)
