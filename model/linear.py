"""Linear layers with the following operation fused in: oneDNN's packed weights if this torch has them, else plain torch."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """x @ weight.T + bias, alone, followed by SiLU, or added to a residual stream; weight [out, in], bias [out]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """Return linear(x): [n, in] to [n, out]."""
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """Return silu(linear(x)): [n, in] to [n, out]."""
        return F.silu(F.linear(x, self.weight, self.bias), inplace=True)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + linear(x): x [n, in] and residual [n, out] to [n, out]."""
        return F.linear(x, self.weight, self.bias).add_(residual)


class PackedLinear(Linear):
    """A Linear in oneDNN's own weight layout, which applies SiLU and the sum while the product is still in the cache.

    It uses private operators of torch, those that torch.compile emits for a CPU. Only `linear` below creates one, after
    `packed_works` has checked their results.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return linear(x): [n, in] to [n, out]."""
        return as_tensor(torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], ""))

    def silu(self, x: Tensor) -> Tensor:
        """Return silu(linear(x)): [n, in] to [n, out]."""
        return as_tensor(torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], ""))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + linear(x): x [n, in] and residual [n, out] to [n, out]."""
        return as_tensor(torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add"))


def as_tensor(result: object) -> Tensor:
    """Return `result` typed as a tensor, which torch.ops does not promise; raise TypeError for anything else."""
    if not isinstance(result, Tensor):
        raise TypeError(f"a oneDNN operator returned {type(result).__name__}, not a tensor")
    return result


def linear(weight: Tensor, bias: Tensor) -> Linear:
    """Return the fastest correct layer on this machine, for weight [out, in] and bias [out] of one dtype and device."""
    packed = weight.device.type == "cpu" and packed_works(weight.dtype)
    return PackedLinear(weight, bias) if packed else Linear(weight, bias)


@functools.cache
def packed_works(dtype: torch.dtype) -> bool:
    """Return whether this torch on this CPU has packed layers that agree with plain ones on a small example."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 64), (48, 64), (48,), (5, 48))
    )
    plain = Linear(weight, bias)
    tolerance = 1e-4 if dtype == torch.float32 else 0.25  # values near 8: one bfloat16 step there is 1/16
    try:
        packed = PackedLinear(weight, bias)
        pairs = [
            (packed(x), plain(x)),
            (packed.silu(x), plain.silu(x)),
            (packed.add(x, residual), plain.add(x, residual)),
        ]
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return all(torch.allclose(actual, expected, rtol=0.0, atol=tolerance) for actual, expected in pairs)
