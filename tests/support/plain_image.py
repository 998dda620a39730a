"""The oracle of the image head: what the originals compute, from `torch` operators alone and in the plainest form."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from audioclip_beam.model.image.shapes import image_shapes, spread
from audioclip_beam.model.tensors import SCALES, seeded_state

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def small_image_state(dim: int = 24) -> dict[str, Tensor]:
    """Return seeded weights of a small image head under AudioCLIP's names: width 8, one block per layer."""
    return seeded_state(1, {**image_shapes(8, (1, 1, 1, 1), dim), "logit_scale_ai": ()}, spread)


def plain_pixels(content: bytes, variant: str = "audioclip") -> npt.NDArray[np.float32]:
    """Return the pixels float32 [height, width, 3] in [0, 1] of an encoded picture."""
    picture = Image.open(io.BytesIO(content))
    if variant == "audioclip":
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        return np.repeat(np.asarray(picture).astype(np.float32)[:, :, None] / 65535, 3, 2)
    return np.asarray(picture.convert("RGB")).astype(np.float32) / 255


def plain_input(pixels: npt.NDArray[np.float32], variant: str = "audioclip") -> Tensor:
    """Return the network's input [3, 224, 224] for pixels [height, width, 3] in [0, 1], as torchvision's transforms do."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)
    height, width = x.shape[1:]
    short = min(height, width)
    size = [224 if edge == short else int(224 * edge / short) for edge in (height, width)]
    if size != [height, width]:
        x = F.interpolate(x[None], size, mode="bicubic", align_corners=False, antialias=variant == "audioclip")[0]
    top, left = (round((edge - 224) / 2) for edge in size)
    return (x[:, top : top + 224, left : left + 224] - MEAN) / DEVIATION


def plain_vectors(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the vectors [n, dim] of inputs [n, 3, 224, 224], in float64 and by the original's layers."""
    weights = {name.removeprefix("visual."): tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    x = x.double()
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = norm(F.conv2d(x, weights[f"conv{number}.weight"], stride=stride, padding=1), f"bn{number}").relu()
    x = F.avg_pool2d(x, 2)
    for layer in (1, 2, 3, 4):
        block = 0
        while f"layer{layer}.{block}.conv1.weight" in weights:
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = norm(F.conv2d(x, weights[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            y = norm(F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2").relu()
            y = norm(F.conv2d(F.avg_pool2d(y, stride), weights[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = norm(
                    F.conv2d(F.avg_pool2d(x, stride), weights[f"{name}.downsample.0.weight"]), f"{name}.downsample.1"
                )
            x, block = (x + y).relu(), block + 1
    x = x.flatten(2).permute(2, 0, 1)  # [s, n, c]
    x = torch.cat([x.mean(0, keepdim=True), x]) + weights["attnpool.positional_embedding"][:, None]
    names = ("q_proj", "k_proj", "v_proj", "c_proj")
    q, k, v, c = (weights[f"attnpool.{name}.weight"] for name in names)
    q_bias, k_bias, v_bias, c_bias = (weights[f"attnpool.{name}.bias"] for name in names)
    attended, _ = F.multi_head_attention_forward(
        x[:1], x, x, x.shape[2], max(1, x.shape[2] // 64), None, torch.cat([q_bias, k_bias, v_bias]), None, None, False,
        0.0, c, c_bias, False, use_separate_proj_weight=True, q_proj_weight=q, k_proj_weight=k, v_proj_weight=v,
        need_weights=False,
    )  # fmt: skip
    return attended[0]


def relative(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the relative difference of each row."""
    return np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)


def save_small_head(path: Path) -> str:
    """Write the checkpoint of a small image head, and return its path."""
    torch.save({**small_image_state(), **dict.fromkeys(SCALES, torch.tensor(1.0))}, path)
    return str(path)
