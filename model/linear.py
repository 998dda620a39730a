"""Linear layers with what follows them fused in: oneDNN's packed weights where this torch has them, else plain torch."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """x @ weight.T + bias, alone, with SiLU behind it, or added to a residual stream; weight [out, in], bias [out]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """Of x [n, in] makes [n, out]."""
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """Of x [n, in] makes silu(linear(x)) [n, out]."""
        return F.silu(F.linear(x, self.weight, self.bias), inplace=True)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Of x [n, in] and residual [n, out] makes residual + linear(x) [n, out]."""
        return F.linear(x, self.weight, self.bias).add_(residual)


class PackedLinear(Linear):
    """The same in oneDNN's own weight layout, with SiLU and the sum done while the product is still in the cache.

    It stands on private operators of torch, those that torch.compile emits for a CPU: only `linear` below makes one, once
    it has seen them give the right numbers.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Of x [n, in] makes [n, out]."""
        return _tensor(torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], ""))

    def silu(self, x: Tensor) -> Tensor:
        """Of x [n, in] makes silu(linear(x)) [n, out]."""
        return _tensor(torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], ""))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Of x [n, in] and residual [n, out] makes residual + linear(x) [n, out]."""
        return _tensor(torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add"))


def _tensor(result: object) -> Tensor:
    if not isinstance(result, Tensor):  # torch.ops is untyped
        raise TypeError(f"a oneDNN operator gave {type(result).__name__}, not a tensor")
    return result


def linear(weight: Tensor, bias: Tensor) -> Linear:
    """The fastest layer that is right on this machine, for weight [out, in] and bias [out] of one dtype and device."""
    packed = weight.device.type == "cpu" and packed_works(weight.dtype)
    return PackedLinear(weight, bias) if packed else Linear(weight, bias)


@functools.cache
def packed_works(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU has the packed layers, and they agree with plain ones on a small example."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    seeded = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=seeded).to(dtype) for shape in ((5, 64), (48, 64), (48,), (5, 48))
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
    return all(torch.allclose(got, wanted, rtol=0.0, atol=tolerance) for got, wanted in pairs)
