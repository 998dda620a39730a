"""The image head and the audio head on a GPU, and what they are compared with, for gpu.py: all get the same inputs."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import media
import numpy as np
import soundfile
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from audioclip_beam.model import AudioEncoder, ImageEncoder, load_checkpoint
from audioclip_beam.model.audio.settings import AudioSettings
from audioclip_beam.model.device import TORCH_DTYPES
from audioclip_beam.model.image.settings import ImageSettings

OURS, WHOLE = "audioclip-beam", "audioclip-beam, with decoding"
BATCH = {"image": 64, "audio": 32}  # of the networks alone
SAME_SIZE = {"image": "resnet50", "audio": "resnext50_32x4d"}
Encode = Callable[[Sequence[media.Item]], np.ndarray]
items = media.items


def contenders(head: str, dtype: str, device: str) -> Iterator[tuple[str, Callable[[], Encode]]]:
    """Yield (name, function that makes the encode function) of each encoder, ours first; some may not be installed."""
    yield OURS, lambda: _batched(our_encoder(head, dtype, device).tower, head, device)
    yield WHOLE, lambda: _whole(head, dtype, device)
    yield "torch", lambda: _batched(_eager(head, dtype, device), head, device, dtype)
    if device != "cpu":
        yield (
            "torch.compile",
            lambda: _batched(torch.compile(_eager(head, dtype, device), dynamic=False), head, device, dtype),
        )
    for package in ("timm", "torchvision"):
        yield (
            f"{SAME_SIZE[head]} of {package}",
            lambda package=package: _batched(_of_library(package, head, dtype, device), head, device, dtype),
        )


def files(head: str, count: int, recording: float) -> tuple[list[bytes], str]:
    """Return contents of files, JPEG of 640 x 480 pixels or WAV of so many seconds, and their suffix."""
    contents = [item.content for item in items(head, count, recording)]
    if head == "image":
        return contents, "jpg"
    made = []
    for track in contents:
        file = io.BytesIO()
        soundfile.write(file, track.samples, track.sample_rate, format="WAV")
        made.append(file.getvalue())
    return made, "wav"


@functools.cache
def flop(head: str, recording: float) -> int:
    """Return the FLOP of the network as it is written, for one content; a recording has so many seconds."""
    network, x = _eager(head, "float32", "cpu"), next(media.batches(items(head, 1, recording), 1))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(x)
    return counter.get_total_flops()


def our_encoder(head: str, dtype: str, device: str) -> Any:
    """Return our encoder of a head."""
    checkpoint = load_checkpoint("untrained", head)
    if head == "image":
        return ImageEncoder(checkpoint, ImageSettings("untrained", device, dtype))
    return AudioEncoder(checkpoint, AudioSettings("untrained", device, dtype))


def _whole(head: str, dtype: str, device: str) -> Encode:
    encoder = our_encoder(head, dtype, device)
    return lambda some: encoder.encode([item.content for item in some])


def _eager(head: str, dtype: str, device: str) -> nn.Module:
    network = media.NETWORKS[head](load_checkpoint("untrained", head).state, TORCH_DTYPES[dtype])
    network.weights = {name: weight.to(device) for name, weight in network.weights.items()}
    return network


def _of_library(package: str, head: str, dtype: str, device: str) -> nn.Module:
    """Return a library's network of the same size, whose vectors are others."""
    if package == "timm":
        import timm

        network = timm.create_model(SAME_SIZE[head], num_classes=1024)
    else:
        import torchvision

        network = getattr(torchvision.models, SAME_SIZE[head])(num_classes=1024)
    return network.eval().to(device, TORCH_DTYPES[dtype], memory_format=torch.channels_last)


def _batched(network: Callable[..., Any], head: str, device: str, dtype: str | None = None) -> Encode:
    """Return the encode function of a network; `dtype` is that of its input, if it does not convert it itself."""

    @torch.inference_mode()
    def encode(some: Sequence[media.Item]) -> np.ndarray:
        parts = [x.to(device, dtype and TORCH_DTYPES[dtype]) for x in media.batches(some, BATCH[head])]
        return torch.cat([network(x).float() for x in parts]).cpu().numpy()

    return encode
