"""The tensors of the audio head: their names and shapes, a check, and a seeded head for tests."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..tensors import SCALES, seeded_tensor, tensor_faults

NAME = "audio head"
SEED = 20210624
SCALE_NAMES = {"image": "logit_scale_ai", "text": "logit_scale_at"}  # which scale belongs to sounds and another head
BLOCKS = (3, 4, 6, 3)  # of ResNeXt-50, per stage
GROUPS = 32
WINDOW, BINS = 1654, 1025  # samples of a frame, and rows of the filter bank
KERNELS = ((3, 1), (1, 5), (3, 1), (1, 5), (3, 5))  # of the attention branches: height, width
_BLACKMAN_HARRIS = (0.35875, 0.48829, 0.14128, 0.01168)


def is_member(name: str) -> bool:
    """Return whether a tensor of a released checkpoint belongs to this head, or is a scale.

    No vector depends on the counters of batches that training left, nor on the bias of the filter bank, which is empty.
    """
    used = name.startswith("audio.") and not name.endswith("num_batches_tracked") and name != "audio.fbsp.bias"
    return used or name in SCALES


def audio_shapes() -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor that the head's vectors depend on."""
    shapes: dict[str, tuple[int, ...]] = {
        "window": (WINDOW,),
        **{f"fbsp.{name}": (BINS,) for name in ("m", "fb", "fc")},
    }

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    shapes["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    width_in = 64
    for stage, blocks in enumerate(BLOCKS, 1):
        width, width_out = 64 << stage, 128 << stage
        for block in range(blocks):
            name, block_in = f"layer{stage}.{block}", width_in if block == 0 else width_out
            shapes[f"{name}.conv1.weight"] = (width, block_in, 1, 1)
            shapes[f"{name}.conv2.weight"] = (width, width // GROUPS, 3, 3)
            shapes[f"{name}.conv3.weight"] = (width_out, width, 1, 1)
            norm(f"{name}.bn1", width)
            norm(f"{name}.bn2", width)
            norm(f"{name}.bn3", width_out)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (width_out, block_in, 1, 1)
                norm(f"{name}.downsample.1", width_out)
        width_in = width_out
    for stage, (kernel, channels) in enumerate(zip(KERNELS, (64, 256, 512, 1024, 2048), strict=True), 1):
        name, channels_out = f"att{stage}", 128 << min(stage, 4)
        shapes[f"{name}.conv_depth.weight"], shapes[f"{name}.conv_depth.bias"] = (channels, 1, *kernel), (channels,)
        shapes[f"{name}.conv_point.weight"] = (channels_out, channels, 1, 1)
        shapes[f"{name}.conv_point.bias"] = (channels_out,)
        norm(f"{name}.bn", channels_out)
    shapes["fc.weight"], shapes["fc.bias"] = (1024, 2048), (1024,)
    return {f"audio.{name}": shape for name, shape in shapes.items()}


def faults(state: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is missing, unknown, not a plain float, or of the wrong shape."""
    shapes = {**dict.fromkeys(SCALES, ()), **audio_shapes()}
    found = [f"{name} is missing" for name in shapes if name not in state and name not in SCALES]
    return found + tensor_faults(state, shapes)


def describe_difference(state: Mapping[str, Tensor]) -> str:
    """Return "": a head with other shapes is refused, so its tensors do not show a difference."""
    return ""


def untrained_state(seed: int = SEED) -> dict[str, Tensor]:
    """Return an audio head with random weights, for testing only, whose vectors differ from sound to sound.

    Each tensor is a function of (seed, its name): uniform from a PCG64 stream, with spreads that keep the activations of
    all layers in range, and batch statistics near those of spectrograms in decibels.
    """
    shapes = {**audio_shapes(), **dict.fromkeys(SCALES, ())}

    def make(name: str) -> Tensor:
        return _untrained_tensor(seed, name, shapes[name])

    with ThreadPoolExecutor() as pool:  # numpy releases the interpreter lock while it draws
        return dict(zip(shapes, pool.map(make, shapes), strict=True))


def _untrained_tensor(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "audio.window":
        angle = 2 * np.pi * np.arange(WINDOW) / WINDOW  # periodic
        terms = sum(part * (-1) ** k * np.cos(k * angle) for k, part in enumerate(_BLACKMAN_HARRIS))
        return torch.from_numpy(np.asarray(terms, np.float32))
    tensor = seeded_tensor(seed, name, shape, *_spread(name, shape))
    if name == "audio.fbsp.m":  # a tenth are zero, the value before training
        return tensor.clamp_(min=0)
    return tensor.add_(torch.arange(BINS, dtype=torch.float32)) if name == "audio.fbsp.fc" else tensor


def _spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation for the tensor of that name."""
    attention = ".att" in name
    if name == "audio.bn1.running_mean":
        return 0.0, 20.0
    if name == "audio.bn1.running_var":
        return 6000.0, 1200.0
    if name == "audio.fbsp.m":
        return 0.8, 2.0 * 12**-0.5
    if name == "audio.fbsp.fc":
        return 0.0, 0.6 * 12**-0.5
    if name.endswith("running_var"):
        return 1.0, 0.2
    if len(shape) == 4:
        return 0.0, ((1.0 if attention else 2.0) / prod(shape[1:])) ** 0.5
    if name == "audio.fc.weight":
        return 0.0, 2048**-0.5
    if name == "audio.fc.bias" or name in SCALES:
        return 0.0, 0.02
    if name == "audio.fbsp.fb":
        return 1.0, 0.15
    if name.endswith("bn3.weight"):
        return 0.4, 0.08
    if name.endswith(".weight"):
        return 1.0, 0.15
    if attention and name.endswith("bn.bias"):
        return 1.0, 0.5
    return 0.0, 0.1 if attention and not name.endswith("running_mean") else 0.2
