"""ResNeXt-50 32x4d with an attention branch per stage, as AudioCLIP's audio head has it.

From "ESResNe(X)t-fbsp: Learning Robust Time-Frequency Transformation of Audio" (Guzhov et al., 2021). Letters in shape
comments: n tracks, c channels of each, t frames of a spectrogram, h and w height and width.

Each channel goes through the network by itself; the features of a track's channels are added in front of the last layer.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convolution import NORM_EPSILON, Convolution, Packed, computed_dtype, convolution, fold_norm
from ..linear import Linear, linear
from .shapes import BLOCKS, GROUPS, KERNELS

PACK_AT = 4  # micro-batches of one length: packing the weights for it takes as long as four micro-batches save
ROWS = (
    16  # of a product with the weights behind the network: these are 24 MB, which a product reads for one row as for 16
)
MAX_PACKED = 2  # lengths whose weights are kept packed: 128 MB each in float32


class AudioTower:
    """The network from spectrograms to vectors.

    Args:
        state: AudioCLIP's names (audio.conv1.weight, ...) to float32 tensors.
        device: The device that it computes on.
        dtype: The type that it computes in; sums over positions and the last layer are always float32.
        own_statistics: Whether batch norms use the statistics of each channel of a track instead of the stored ones.
    """

    def __init__(
        self, state: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype, own_statistics: bool = False
    ) -> None:
        self.device, self.dtype = device, computed_dtype(device, dtype)
        layers = _Layers(state, device, (dtype, self.dtype), own_statistics)
        self.stem = layers.make("conv1", "bn1", 2, (3, 3))
        self.stages = [
            [_Block(layers, f"layer{stage}.{block}", 1 if stage == 1 or block else 2) for block in range(blocks)]
            for stage, blocks in enumerate(BLOCKS, 1)
        ]
        self.gates = [_Gate(layers, f"att{stage}", kernel) for stage, kernel in enumerate(KERNELS[:4], 1)]
        self.last_gate = _LastGate(layers)
        self.fc = linear(*(state[f"audio.fc.{part}"].detach().float().to(device) for part in ("weight", "bias")))
        self.dim = state["audio.fc.weight"].shape[0]
        self._lock, self._packed, self._seen = threading.Lock(), OrderedDict[int, Packed](), Counter[int]()

    def expect(self, frames: int, batches: int) -> None:
        """Prepare for that many micro-batches of that many frames: pack weights for a length that comes often."""
        with self._lock:
            if frames in self._packed:
                self._packed.move_to_end(frames)
                return
            self._seen[frames] += batches
            if self._seen[frames] >= PACK_AT:
                del self._seen[frames]
                self._packed[frames] = {}
                while len(self._packed) > MAX_PACKED:
                    self._packed.popitem(last=False)

    @torch.inference_mode()
    def __call__(self, spectrograms: Tensor, channels: int = 1) -> Tensor:
        """Return float32 vectors [n, dim] of spectrograms [n * c, 3, 341, t] of n tracks of so many channels."""
        return self.project(self.features(spectrograms), channels)

    @torch.inference_mode()
    def features(self, spectrograms: Tensor) -> Tensor:
        """Return means and maxima, float32 [n * c, 2, 2048], of spectrograms [n * c, 3, 341, t]: what `project` takes."""
        packed = self._packed.get(spectrograms.shape[3])
        x = spectrograms.to(self.dtype).contiguous(memory_format=torch.channels_last)
        x = max_pool(self.stem(x, packed, "relu"), [3, 3])
        for stage, (blocks, gate) in enumerate(zip(self.stages, self.gates, strict=True)):
            z = _halve(x) if stage else x
            for block in blocks:
                x = block(x, packed)
            x = x.mul_(gate(z, packed))  # [n * c, 256 << stage, h, w]
        return torch.stack([x.mean((2, 3), dtype=torch.float32), x.amax((2, 3)).float()], 1)

    @torch.inference_mode()
    def project(self, features: Tensor, channels: int = 1) -> Tensor:
        """Return float32 vectors [n, dim] of features [n * c, 2, 2048] of n tracks of so many channels."""
        pooled = features[:, 0] * self.last_gate(features[:, 1])  # [n * c, 2048]
        return _in_blocks(self.fc, pooled.view(-1, channels, pooled.shape[1]).sum(1))


def _in_blocks(layer: Linear, x: Tensor) -> Tensor:
    """Return the layer's results for x [n, in] by products of always as many rows, so that none depends on the others."""
    padded = F.pad(x, (0, 0, 0, -len(x) % ROWS))
    return torch.cat([layer(block) for block in torch.split(padded, ROWS)])[: len(x)]


def _halve(x: Tensor) -> Tensor:
    """Return the adaptive maximum of x [n, channels, h, w] for half the height and width, rounded up.

    As an ordinary pooling: of two positions each if the size is even, of three that overlap if it is odd.
    """
    return max_pool(x, [2 + size % 2 for size in x.shape[2:]])


def max_pool(x: Tensor, kernel: list[int]) -> Tensor:
    """Return the maximum pooling of x [n, channels, h, w], at least 0, with stride 2.

    torch also computes the places of the maxima, and compares bfloat16 as float32. Numbers of at least 0 have the order of
    their bits, so that maxima of integers take half the time. In float32 they gain nothing.

    Args:
        x: channels_last.
        kernel: 2, or 3 with a padding of 1, for each axis; 2 for even sizes only.
    """
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return F.max_pool2d(x, kernel, 2, [size - 2 for size in kernel])
    bits = x.view(torch.int16)
    for axis, size in zip((2, 3), kernel, strict=True):
        even, odd = bits.movedim(axis, 0)[::2], bits.movedim(axis, 0)[1::2]
        shape = [*bits.shape[:axis], len(even), *bits.shape[axis + 1 :]]
        bits = torch.empty(shape, dtype=torch.int16, memory_format=torch.channels_last)
        out = bits.movedim(axis, 0)
        torch.maximum(even[: len(odd)], odd, out=out[: len(odd)])
        out[len(odd) :] = even[len(odd) :]
        if size == 3:
            torch.maximum(out[1:], odd[: len(out) - 1], out=out[1:])
    return bits.view(x.dtype)


class _Layers:
    """A factory of layers, and the names, device and type that they share."""

    def __init__(
        self, state: Mapping[str, Tensor], device: torch.device, dtypes: tuple[torch.dtype, torch.dtype], by_track: bool
    ) -> None:
        self.state, self.device, self.dtypes, self.own_statistics = state, device, dtypes, by_track

    def get(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.state[f"audio.{name}"].detach().to(self.device, dtype)

    def make(self, name: str, norm: str, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1) -> _Layer:
        weight, bias, factors = self.fold(name, norm)
        return _Layer(self.convolution(weight, bias, stride, padding, groups), factors)

    def convolution(self, weight: Tensor, bias: Tensor, *geometry: Any) -> Convolution:
        """Return a convolution whose weight is rounded to the first of the dtypes, and which computes in the second."""
        rounded, computed = self.dtypes
        return convolution(weight.to(rounded).to(computed), bias.to(rounded).to(computed), *geometry)

    def fold(self, name: str, norm: str) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Return weight and bias, float64, of a convolution with its batch norm, or with the norm's own factors apart."""
        if not self.own_statistics:
            weight, bias = fold_norm(self.state, f"audio.{name}", f"audio.{norm}")
            return weight.to(self.device), bias.to(self.device), None
        weight = self.get(f"{name}.weight")
        bias = self.get(f"{name}.bias") if f"audio.{name}.bias" in self.state else weight.new_zeros(len(weight))
        return weight, bias, (self.get(f"{norm}.weight").float(), self.get(f"{norm}.bias").float())


class _Layer:
    """A convolution and its batch norm: folded into the convolution, or with the statistics of each channel of a track."""

    def __init__(self, layer: Convolution, factors: tuple[Tensor, Tensor] | None) -> None:
        self.convolution, self.factors = layer, factors

    def __call__(self, x: Tensor, packed: Packed | None, activation: str = "none") -> Tensor:
        """Compute x [n * c, in, h, w], followed by "relu", "sigmoid" or "none"."""
        if self.factors is None:
            return self.convolution(x, packed, activation)
        y = _normalize(self.convolution(x, packed), *self.factors)
        return y if activation == "none" else torch.relu_(y) if activation == "relu" else torch.sigmoid_(y)

    def add(self, x: Tensor, residual: Tensor, packed: Packed | None) -> Tensor:
        """Return relu(residual + layer(x)); residual may be overwritten."""
        if self.factors is None:
            return self.convolution.add(x, residual, packed)
        return torch.relu_(_normalize(self.convolution(x, packed), *self.factors).add_(residual))


def _normalize(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Normalize x [n * c, features, h, w] by mean and variance of each feature over height and width."""
    y = x.permute(0, 2, 3, 1).float()  # [n * c, h, w, features]
    y = y - y.mean((1, 2), keepdim=True)
    y = y.mul_(gamma / (y.square().mean((1, 2), keepdim=True) + NORM_EPSILON).sqrt()).add_(beta)
    return y.to(x.dtype).permute(0, 3, 1, 2)


class _Block:
    """A bottleneck: 1x1, grouped 3x3 and 1x1 convolutions, added to their input."""

    def __init__(self, layers: _Layers, name: str, stride: int) -> None:
        self.conv1 = layers.make(f"{name}.conv1", f"{name}.bn1")
        self.conv2 = layers.make(f"{name}.conv2", f"{name}.bn2", stride, (1, 1), GROUPS)
        self.conv3 = layers.make(f"{name}.conv3", f"{name}.bn3")
        has_shortcut = f"audio.{name}.downsample.0.weight" in layers.state
        self.shortcut = layers.make(f"{name}.downsample.0", f"{name}.downsample.1", stride) if has_shortcut else None

    def __call__(self, x: Tensor, packed: Packed | None) -> Tensor:
        """Compute x [n * c, in, h, w]; a block without a shortcut overwrites it."""
        y = self.conv2(self.conv1(x, packed, "relu"), packed, "relu")
        residual = x if self.shortcut is None else self.shortcut(x, packed)
        return self.conv3.add(y, residual, packed)


class _Gate:
    """An attention branch: factors for the output of a stage, from its input at the output's size."""

    def __init__(self, layers: _Layers, name: str, kernel: tuple[int, int]) -> None:
        weight, bias = layers.get(f"{name}.conv_depth.weight"), layers.get(f"{name}.conv_depth.bias")
        height, width = kernel
        padding = height // 2, width // 2
        self.depth = layers.convolution(weight, bias, 1, padding, len(weight))
        self.point = layers.make(f"{name}.conv_point", f"{name}.bn")

    def __call__(self, z: Tensor, packed: Packed | None) -> Tensor:
        """Return factors between 0 and 1."""
        return self.point(self.depth(z, packed), packed, "sigmoid")


class _LastGate:
    """The attention branch of the last pooling, whose input is one position. Always float32.

    With statistics of its own a single value is its own mean, so that the gate is the same for every track.
    """

    def __init__(self, layers: _Layers) -> None:
        weight, bias, factors = layers.fold("att5.conv_point", "att5.bn")
        depth, height, width = layers.get("att5.conv_depth.weight", torch.float32), *KERNELS[4]
        self.depth = depth[:, 0, height // 2, width // 2]  # [2048]: the rest of the kernel meets zeros
        self.depth_bias = layers.get("att5.conv_depth.bias", torch.float32)
        self.point = linear(weight.flatten(1).float(), bias.float())
        self.constant = None if factors is None else factors[1].sigmoid()

    def __call__(self, z: Tensor) -> Tensor:
        """Return factors for z [n * c, 2048], between 0 and 1: [n * c, 2048] or [2048]."""
        if self.constant is not None:
            return self.constant
        return _in_blocks(self.point, z * self.depth + self.depth_bias).sigmoid_()
