"""The image head and the audio head for encoder.py: contents, and the encoders that ours is compared with.

All get the same inputs of the network; ours is measured alone and with decoding and preprocessing. The networks are written
as the originals are, in float32 or bfloat16, with batch norms that the libraries fold by themselves.
"""

from __future__ import annotations

import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from audioclip_beam.model import AudioEncoder, ImageEncoder, Track, load_checkpoint
from audioclip_beam.model.audio.prepare import prepare as prepare_track
from audioclip_beam.model.audio.settings import AudioSettings
from audioclip_beam.model.image.pictures import prepare as prepare_picture
from audioclip_beam.model.image.settings import ImageSettings
from audioclip_beam.model.streams import map_in_streams

State = Mapping[str, Tensor]
BATCH = {"image": 8, "audio": 1}  # with more, tensors of over 32 MB are allocated again for each layer
OUR_BATCH = {"image": 16, "audio": 1}  # as the encoder has it
SECONDS = 5.0  # of a recording


class Item(NamedTuple):
    """A content, and what the network reads of it."""

    content: Any
    x: Tensor


Encode = Callable[[Sequence[Item]], np.ndarray]
Run = Callable[[Iterable[Tensor]], np.ndarray]  # inputs of the network in batches to vectors


class Network(nn.Module):
    """A network over the weights of a state dict, by their names behind a prefix."""

    def __init__(self, state: State, prefix: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = {k.removeprefix(prefix): v.to(dtype) for k, v in state.items() if k.startswith(prefix)}

    def conv(self, x: Tensor, name: str, norm: str, **kwargs: Any) -> Tensor:
        """Apply a convolution and the batch norm behind it."""
        w = self.weights
        x = F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **kwargs)
        parts = (w[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-5)

    def blocks(self, layer: int) -> Iterator[tuple[str, int]]:
        """Yield the name and the stride of each block of a layer."""
        for block in range((3, 4, 6, 3)[layer - 1]):
            yield f"layer{layer}.{block}", 2 if layer > 1 and not block else 1


class ImageNetwork(Network):
    """CLIP's modified ResNet-50: pictures [n, 3, 224, 224] to vectors [n, 1024]."""

    def __init__(self, state: State, dtype: torch.dtype) -> None:
        super().__init__(state, "visual.", dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors."""
        for number in (1, 2, 3):
            x = self.conv(x, f"conv{number}", f"bn{number}", stride=2 if number == 1 else 1, padding=1).relu()
        x = F.avg_pool2d(x, 2)
        for layer in (1, 2, 3, 4):
            for name, stride in self.blocks(layer):
                y = self.conv(x, f"{name}.conv1", f"{name}.bn1").relu()
                y = self.conv(y, f"{name}.conv2", f"{name}.bn2", padding=1).relu()
                if stride > 1:
                    x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
                if f"{name}.downsample.0.weight" in self.weights:
                    x = self.conv(x, f"{name}.downsample.0", f"{name}.downsample.1")
                x = (x + self.conv(y, f"{name}.conv3", f"{name}.bn3")).relu()
        x = x.flatten(2).transpose(1, 2)  # [n, 49, c]
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.weights["attnpool.positional_embedding"]
        q, k, v = (self.project(y, name) for y, name in ((x[:, :1], "q"), (x, "k"), (x, "v")))
        q, k, v = (y.unflatten(2, (32, 64)).transpose(1, 2) for y in (q, k, v))  # [n, 32, 1 or 50, 64]
        y = (q @ k.transpose(2, 3) / 8).softmax(-1) @ v
        return self.project(y.transpose(1, 2).flatten(2), "c")[:, 0]

    def project(self, x: Tensor, name: str) -> Tensor:
        """Apply a projection of the attention pooling."""
        return F.linear(x, *(self.weights[f"attnpool.{name}_proj.{part}"] for part in ("weight", "bias")))


class AudioNetwork(Network):
    """ResNeXt-50 with an attention branch per stage: spectrograms [n, 3, 341, t] to vectors [n, 1024]."""

    def __init__(self, state: State, dtype: torch.dtype) -> None:
        super().__init__(state, "audio.", dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors."""
        x = F.max_pool2d(self.conv(x, "conv1", "bn1", stride=2, padding=3).relu(), 3, 2, 1)
        for layer in (1, 2, 3, 4):
            z = x if layer == 1 else halve(x)
            for name, stride in self.blocks(layer):
                y = self.conv(x, f"{name}.conv1", f"{name}.bn1").relu()
                y = self.conv(y, f"{name}.conv2", f"{name}.bn2", stride=stride, padding=1, groups=32).relu()
                if f"{name}.downsample.0.weight" in self.weights:
                    x = self.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
                x = (x + self.conv(y, f"{name}.conv3", f"{name}.bn3")).relu()
            x = x * self.gate(z, layer)
        x = (x.mean((2, 3), keepdim=True) * self.gate(x.amax((2, 3), keepdim=True), 5)).flatten(1)
        return F.linear(x, self.weights["fc.weight"], self.weights["fc.bias"])

    def gate(self, z: Tensor, stage: int) -> Tensor:
        """Return what the attention branch of a stage multiplies its output by."""
        name, padding = f"att{stage}", {1: (1, 0), 2: (0, 2), 3: (1, 0), 4: (0, 2), 5: (1, 2)}[stage]
        w = self.weights
        depth = F.conv2d(
            z, w[f"{name}.conv_depth.weight"], w[f"{name}.conv_depth.bias"], 1, padding, 1, int(z.shape[1])
        )
        return self.conv(depth, f"{name}.conv_point", f"{name}.bn").sigmoid()


def halve(x: Tensor) -> Tensor:
    """Return the adaptive maximum pooling to half the size, as an ordinary one, which exporters know."""
    odd = [int(size) % 2 for size in x.shape[2:]]  # constants of the export
    return F.max_pool2d(x, [2 + each for each in odd], 2, odd)


NETWORKS: dict[str, type[Network]] = {"image": ImageNetwork, "audio": AudioNetwork}


def items(head: str, count: int, seconds: float = SECONDS) -> list[Item]:
    """Return contents of a head: JPEG files of 640 x 480 pixels, or recordings at 44.1 kHz, with the network's inputs."""
    random, made = np.random.default_rng(0), []
    for _ in range(count):
        if head == "image":
            small, file = random.integers(0, 256, (30, 40, 3), np.uint8), io.BytesIO()
            Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            made.append(Item(file.getvalue(), prepare_picture(file.getvalue(), ImageSettings("untrained")).pixels))
        else:
            noise = random.normal(0, 0.1, round(seconds * 44100)).astype(np.float32)
            made.append(Item(Track(noise, 44100), torch.empty(0)))
    if head == "audio":
        spectrogram = our_encoder(head, "float32").spectrogram
        made = [
            Item(track, spectrogram(torch.from_numpy(prepare_track(track, None, False).samples[0])).permute(2, 0, 1))
            for track, _ in made
        ]
    return made


@functools.cache
def our_encoder(head: str, dtype: str) -> Any:
    """Return our encoder of a head, on the CPU."""
    checkpoint = load_checkpoint("untrained", head)
    if head == "image":
        return ImageEncoder(checkpoint, ImageSettings("untrained", "cpu", dtype))
    return AudioEncoder(checkpoint, AudioSettings("untrained", "cpu", dtype))


def batches(some: Sequence[Item], size: int) -> Iterator[Tensor]:
    """Yield the inputs of the network, channels_last [at most size, 3, height, width]."""
    for start in range(0, len(some), size):
        x = torch.stack([item.x for item in some[start : start + size]])
        yield x.contiguous(memory_format=torch.channels_last)


def ours_whole(head: str, dtype: str) -> Encode:
    """Encode contents: decoding, preprocessing and network."""
    encoder = our_encoder(head, dtype)
    return lambda some: encoder.encode([item.content for item in some])


def ours(head: str, dtype: str) -> Encode:
    """Run our network alone, as the encoder does: a micro-batch for each core."""
    tower = our_encoder(head, dtype).tower

    @torch.inference_mode()
    def encode(some: Sequence[Item]) -> np.ndarray:
        parts = list(batches(some, OUR_BATCH[head]))
        if head == "image":
            return torch.cat(list(map_in_streams(tower, parts))).numpy()
        tower.expect(parts[0].shape[3], len(parts))
        return tower.project(torch.cat(list(map_in_streams(tower.features, parts)))).numpy()

    return encode


def eager(head: str, dtype: str) -> Run:
    """Run the network as it is written."""
    network = NETWORKS[head](load_checkpoint("untrained", head).state, getattr(torch, dtype))

    @torch.inference_mode()
    def run(inputs: Iterable[Tensor]) -> np.ndarray:
        return torch.cat([network(x.to(getattr(torch, dtype))).float() for x in inputs]).numpy()

    return run


def onnxruntime(head: str, dtype: str, example: Tensor) -> Run:
    """Run torch's export of the network by onnxruntime."""
    import onnx  # noqa: F401, the export needs it
    import onnxruntime as runtime

    network, options = NETWORKS[head](load_checkpoint("untrained", head).state, torch.float32), runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(network, (example,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
        session = runtime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Iterable[Tensor]) -> np.ndarray:
        return np.concatenate([session.run(None, {"x": x.numpy()})[0] for x in inputs])

    return run


def openvino(head: str, dtype: str, example: Tensor, streams: int | None = 1) -> Run:
    """Run OpenVINO's conversion of the network; `streams` is None for one stream for each core."""
    import openvino as runtime

    network = NETWORKS[head](load_checkpoint("untrained", head).state, torch.float32)
    model = runtime.convert_model(network, example_input=example, input=[-1, *example.shape[1:]])
    threads = torch.get_num_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams or threads,
    }
    compiled = runtime.Core().compile_model(model, "CPU", settings)

    def run(inputs: Iterable[Tensor]) -> np.ndarray:
        vectors: dict[int, np.ndarray] = {}
        queue = runtime.AsyncInferQueue(compiled, streams or threads)
        queue.set_callback(lambda request, i: vectors.__setitem__(i, request.get_output_tensor(0).data.copy()))
        for i, x in enumerate(inputs):
            queue.start_async({0: x.numpy()}, i)
        queue.wait_all()
        return np.concatenate([vectors[i] for i in range(len(vectors))])

    return run


def with_prepared(run: Run, head: str) -> Encode:
    """Encode inputs that are prepared."""
    return lambda some: run(batches(some, BATCH[head]))


def build(head: str, dtypes: Iterable[str], example: Tensor) -> Iterator[tuple[str, str, Encode]]:
    """Yield (name, dtype, encode) of every contender that is installed, ours first."""
    streams = functools.partial(openvino, streams=None)
    for dtype in dtypes:
        yield "audioclip-beam", dtype, ours(head, dtype)
        yield "audioclip-beam, with decoding", dtype, ours_whole(head, dtype)
        yield "torch", dtype, with_prepared(eager(head, dtype), head)
        others = {"OpenVINO, one stream": openvino, "OpenVINO, a stream for each core": streams}
        if dtype == "float32":
            others = {"onnxruntime": onnxruntime, **others}
        for name, make in others.items():
            try:
                yield name, dtype, with_prepared(make(head, dtype, example), head)
            except ImportError as error:
                print(f"left out: {name} {dtype} ({error})")
