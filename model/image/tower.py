"""CLIP's modified ResNet-50, AudioCLIP's image network, with stored batch statistics folded into its convolutions.

From "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al., 2021). Letters in shape
comments: n pictures, c channels, s positions of the last layer, k heads, d = c / k.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convolution import Convolution, computed_dtype, convolution, fold_norm
from ..linear import Linear, linear
from .shapes import PREFIX, blocks_of

SIDE = 224  # pixels of a picture's width and height
HEAD_WIDTH = 64  # of every published CLIP; a state dict does not contain it
# Pictures that convolutions on a CPU compute at a time, measured: more have tensors of over 32 MB, which glibc gives back to
# the kernel after every layer, fewer make small products. The batch size hardly matters for the layout of the weights.
TOGETHER = 8


class ImageTower:
    """An image network whose shapes are those of the state dict.

    Args:
        state: AudioCLIP's names (visual.conv1.weight, ..., visual.attnpool.c_proj.bias) to float32 tensors.
        device: The device that it computes on.
        dtype: The type that it computes in.
    """

    def __init__(self, state: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, computed_dtype(device, dtype)
        build = _Builder(state, device, (dtype, self.dtype))
        half = SIDE // 2
        self.stem = [
            build("conv1", "bn1", SIDE, stride=2, padding=1),
            build("conv2", "bn2", half, padding=1),
            build("conv3", "bn3", half, padding=1),
        ]
        side, self.blocks = half // 2, []
        for layer, count in enumerate(blocks_of(state), 1):
            for number in range(count):
                stride = 2 if layer > 1 and number == 0 else 1
                self.blocks.append(Block(build, f"layer{layer}.{number}", side, stride))
                side //= stride
        self.pool = AttentionPool(build)
        self.dim = self.pool.dim

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the float32 vectors [n, dim] of n normalised pictures, channels_last [n, 3, 224, 224]."""
        x = x.to(self.device, self.dtype)
        parts = torch.split(x, TOGETHER) if self.device.type == "cpu" else [x]
        return self.pool(torch.cat([self._convolve(part) for part in parts])).float()

    def _convolve(self, x: Tensor) -> Tensor:
        """Return the features [n, c, 7, 7] of pictures [n, 3, 224, 224]."""
        for layer in self.stem:
            x = layer(x, activation="relu")
        x = F.avg_pool2d(x, 2)
        for block in self.blocks:
            x = block(x)
        return x


class _Builder:
    """Makes the layers of a state dict, rounded to the first of two types, for computing in the second."""

    def __init__(
        self, state: Mapping[str, Tensor], device: torch.device, dtypes: tuple[torch.dtype, torch.dtype]
    ) -> None:
        self.state, self.device, self.dtypes = state, device, dtypes

    def round(self, tensor: Tensor) -> Tensor:
        """Return a tensor, rounded, on the device."""
        rounded, computed = self.dtypes
        return tensor.detach().to(self.device, rounded).to(computed)

    def __call__(self, name: str, norm: str, side: int, stride: int = 1, padding: int = 0) -> Convolution:
        """Return the convolution `name`, followed by the batch norm `norm`, for inputs of `side` x `side`."""
        weight, bias = map(self.round, fold_norm(self.state, f"{PREFIX}{name}", f"{PREFIX}{norm}"))
        return convolution(weight, bias, stride, (padding, padding), shape=(TOGETHER, weight.shape[1], side, side))


class Block:
    """A bottleneck: 1x1, 3x3, average pooling if its stride is 2, 1x1, plus a shortcut."""

    def __init__(self, build: _Builder, name: str, side: int, stride: int) -> None:
        self.stride = stride
        self.conv1 = build(f"{name}.conv1", f"{name}.bn1", side)
        self.conv2 = build(f"{name}.conv2", f"{name}.bn2", side, padding=1)
        self.conv3 = build(f"{name}.conv3", f"{name}.bn3", side // stride)
        self.shortcut = None
        if f"{PREFIX}{name}.downsample.0.weight" in build.state:
            self.shortcut = build(f"{name}.downsample.0", f"{name}.downsample.1", side // stride)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [n, c, height, width] to [n, c', height / stride, width / stride]; x may be overwritten."""
        y = self.conv2(self.conv1(x, activation="relu"), activation="relu")
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        return self.conv3.add(y, x if self.shortcut is None else self.shortcut(x))


class AttentionPool:
    """Multi-head attention of the mean over all positions to the mean and the positions, then a projection.

    Only the mean is a query, so keys and values of the positions are never computed: with q of the mean, the scores are
    (Wk^T q) x, the key's bias shifts all of them alike and drops out of the softmax, and Wv is applied to the weighted sum.
    """

    def __init__(self, build: _Builder) -> None:
        def get(name: str) -> Tensor:
            return build.round(build.state[f"{PREFIX}attnpool.{name}"])

        def layer(name: str) -> Linear:
            return linear(get(f"{name}.weight"), get(f"{name}.bias"))

        self.positions = get("positional_embedding")  # [1 + s, c]
        self.query, self.project = layer("q_proj"), layer("c_proj")
        width = self.positions.shape[1]
        self.heads = max(1, width // HEAD_WIDTH)
        self.keys = get("k_proj.weight").view(self.heads, -1, width)  # [k, d, c]
        self.values = get("v_proj.weight").view(self.heads, -1, width)  # [k, d, c]
        self.value_bias = get("v_proj.bias")
        self.dim = build.state[f"{PREFIX}attnpool.c_proj.weight"].shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [n, c, height, width] to [n, dim]."""
        x = x.flatten(2).transpose(1, 2)  # [n, s, c]
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positions  # [n, 1 + s, c]
        query = self.query(x[:, 0]).view(len(x), self.heads, -1).transpose(0, 1)  # [k, n, d]
        probes = torch.bmm(query, self.keys).transpose(0, 1)  # [n, k, c]
        scores = torch.bmm(probes, x.transpose(1, 2)).float() * self.keys.shape[1] ** -0.5  # [n, k, 1 + s]
        context = torch.bmm(scores.softmax(-1).to(x.dtype), x).transpose(0, 1)  # [k, n, c]
        attended = torch.bmm(context, self.values.transpose(1, 2)).transpose(0, 1)  # [n, k, d]
        return self.project(attended.reshape(len(x), -1) + self.value_bias)
