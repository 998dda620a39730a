"""Convolutions with batch norm and ReLU fused in: oneDNN's packed weights if this torch has them, else plain torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import as_tensor

NORM_EPSILON = 1e-5


def fold_norm(state: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias, float64, of a convolution without bias that a batch norm with stored statistics follows."""
    weight = state[f"{convolution}.weight"].double()  # [out, in / groups, height, width]
    scale, shift, mean, variance = (
        state[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale * (variance + NORM_EPSILON).rsqrt()  # [out]
    return weight * factor[:, None, None, None], shift - mean * factor


class Convolution:
    """A convolution of channels_last tensors, alone, followed by ReLU, or added to another tensor with ReLU after the sum.

    Args:
        weight: [out, in / groups, height, width].
        bias: [out].
        stride: The step of both axes.
        padding: Zeros around both axes.
        groups: Groups of channels.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = bias
        self.stride, self.padding, self.groups = [stride] * 2, [padding] * 2, groups

    def __call__(self, x: Tensor) -> Tensor:
        """Return convolution(x): [n, in, height, width] to [n, out, height, width]."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)

    def relu(self, x: Tensor) -> Tensor:
        """Return relu(convolution(x))."""
        return self(x).relu_()

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """Return relu(other + convolution(x)); `other` may be overwritten."""
        return self(x).add_(other).relu_()


class PackedConvolution(Convolution):
    """A Convolution in oneDNN's own weight layout, which applies the sum and ReLU while the result is still in the cache.

    It uses private operators of torch, those that torch.compile emits for a CPU. Only `convolution` below creates one, after
    `packed_works` has checked their results.

    Args:
        shape: Of the input. For inputs of another height or width the weights would be rearranged in every call.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        *,
        shape: Sequence[int],
    ) -> None:
        super().__init__(weight, bias, stride, padding, groups)
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        self.weight = reorder(weight, self.padding, self.stride, [1, 1], groups, list(shape))

    def __call__(self, x: Tensor) -> Tensor:
        """Return convolution(x): [n, in, height, width] to [n, out, height, width]."""
        return self._pointwise(x, "none")

    def relu(self, x: Tensor) -> Tensor:
        """Return relu(convolution(x))."""
        return self._pointwise(x, "relu")

    def _pointwise(self, x: Tensor, operation: str) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise.default
        geometry = (self.padding, self.stride, [1, 1], self.groups)
        return as_tensor(run(x, self.weight, self.bias, *geometry, operation, [], ""))

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """Return relu(other + convolution(x)); `other` is overwritten."""
        run = torch.ops.mkldnn._convolution_pointwise_.binary
        geometry = (self.padding, self.stride, [1, 1], self.groups)
        return as_tensor(run(other, x, self.weight, self.bias, *geometry, "add", 1.0, "relu", [], ""))


def convolution(
    weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, groups: int = 1, *, shape: Sequence[int]
) -> Convolution:
    """Return the fastest correct convolution on this machine, for weight and bias of one dtype and device.

    `shape` is that of its inputs, of any batch size.
    """
    if weight.device.type == "cpu" and packed_works(weight.dtype):
        return PackedConvolution(weight, bias, stride, padding, groups, shape=shape)
    return Convolution(weight, bias, stride, padding, groups)


@functools.cache
def packed_works(dtype: torch.dtype) -> bool:
    """Return whether this torch on this CPU has packed convolutions that agree with plain ones on a small example."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, other = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((2, 16, 6, 5), (32, 16, 3, 3), (32,), (2, 32, 6, 5))
    )
    x, other = (each.contiguous(memory_format=torch.channels_last) for each in (x, other))
    plain = Convolution(weight, bias, padding=1)
    tolerance = 1e-4 if dtype == torch.float32 else 0.5  # values near 30: one bfloat16 step there is 1/8
    try:
        packed = PackedConvolution(weight, bias, padding=1, shape=x.shape)
        pairs = [
            (packed(x), plain(x)),
            (packed.relu(x), plain.relu(x)),
            (packed.add_relu(x, other.clone()), plain.add_relu(x, other)),
        ]
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return all(torch.allclose(actual, expected, rtol=0.0, atol=tolerance) for actual, expected in pairs)
