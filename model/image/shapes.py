"""The tensors of the image head: their names and shapes, a check, and a seeded head for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor

from ..tensors import SCALES, seeded_state, tensor_faults

NAME = "image head"
SEED = 20210624
SCALE_NAMES = {"text": "logit_scale", "audio": "logit_scale_ai"}  # which scale belongs to images and another head
PREFIX = "visual."
WIDTH, BLOCKS, DIM = 64, (3, 4, 6, 3), 1024
POSITIONS = 7 * 7  # of a picture of 224 x 224 after the last layer
COUNTER = "num_batches_tracked"  # of training; nothing depends on it
_NORM = ("weight", "bias", "running_mean", "running_var")


def is_member(name: str) -> bool:
    """Return whether a tensor of a released checkpoint belongs to this head, or is a scale."""
    return name in SCALES or (name.startswith(PREFIX) and not name.endswith(COUNTER))


def image_shapes(width: int = WIDTH, blocks: Sequence[int] = BLOCKS, dim: int = DIM) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor that an image head's vectors depend on; the defaults are AudioCLIP's.

    Args:
        width: Channels after the stem.
        blocks: How many blocks each of the four layers has.
        dim: Numbers per vector.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def add(convolution: str, norm: str, out: int, inputs: int, kernel: int) -> None:
        shapes[f"{PREFIX}{convolution}.weight"] = (out, inputs, kernel, kernel)
        shapes.update({f"{PREFIX}{norm}.{part}": (out,) for part in _NORM})

    add("conv1", "bn1", width // 2, 3, 3)
    add("conv2", "bn2", width // 2, width // 2, 3)
    add("conv3", "bn3", width, width // 2, 3)
    inputs = width
    for layer, count in enumerate(blocks, 1):
        planes = width << (layer - 1)
        for block in range(count):
            name = f"layer{layer}.{block}"
            add(f"{name}.conv1", f"{name}.bn1", planes, inputs, 1)
            add(f"{name}.conv2", f"{name}.bn2", planes, planes, 3)
            add(f"{name}.conv3", f"{name}.bn3", 4 * planes, planes, 1)
            if block == 0:
                add(f"{name}.downsample.0", f"{name}.downsample.1", 4 * planes, inputs, 1)
            inputs = 4 * planes
    shapes[f"{PREFIX}attnpool.positional_embedding"] = (POSITIONS + 1, inputs)
    for name, out in {"k_proj": inputs, "q_proj": inputs, "v_proj": inputs, "c_proj": dim}.items():
        shapes[f"{PREFIX}attnpool.{name}.weight"] = (out, inputs)
        shapes[f"{PREFIX}attnpool.{name}.bias"] = (out,)
    return shapes


def blocks_of(state: Mapping[str, Tensor]) -> list[int]:
    """Return how many blocks each of the four layers of a head has."""
    members = [name.removeprefix(PREFIX).split(".") for name in state if name.startswith(f"{PREFIX}layer")]
    return [len({parts[1] for parts in members if parts[0] == f"layer{layer}"}) for layer in (1, 2, 3, 4)]


def sizes_of(state: Mapping[str, Tensor]) -> tuple[int, list[int], int]:
    """Return width, blocks and dim of a head, as `image_shapes` takes them."""
    width = state[f"{PREFIX}conv3.weight"].shape[0]
    return width, blocks_of(state), state[f"{PREFIX}attnpool.c_proj.weight"].shape[0]


def faults(state: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is missing, unknown, not a plain float, or of the wrong shape.

    Sizes are read from the state, so image heads of CLIP of other widths and depths have no faults either.
    """
    named = {f"{PREFIX}conv3.weight": 4, f"{PREFIX}attnpool.c_proj.weight": 2}
    found = [f"{name} is missing" for name in named if name not in state]
    found += [
        f"{name} has shape {list(state[name].shape)}, not one of {dimensions} filled dimensions"
        for name, dimensions in named.items()
        if name in state and (state[name].is_nested or state[name].ndim != dimensions or not state[name].numel())
    ]
    found += [f"it has no layer{layer}" for layer, count in enumerate(blocks_of(state), 1) if not count]
    if found:
        return found
    width, blocks, dim = sizes_of(state)
    if width % 2:
        return [f"width {width} is not an even number"]
    shapes = {**dict.fromkeys(SCALES, ()), **image_shapes(width, blocks, dim)}
    found = [f"{name} is missing" for name in shapes if name not in state and name not in SCALES]
    return found + tensor_faults(state, shapes)


def describe_difference(state: Mapping[str, Tensor]) -> str:
    """Return how the image head differs from AudioCLIP's, as in "512 numbers per vector instead of 1024"; "" if it does not.

    CLIP's RN50 has the same shapes, but lacks the scale that AudioCLIP trained for audio.
    """
    width, blocks, dim = sizes_of(state)
    sizes = {
        "{} numbers per vector": (dim, DIM),
        "width {}": (width, WIDTH),
        "{} blocks": (tuple(blocks), BLOCKS),
    }
    differences = [f"{words.format(size)} instead of {ours}" for words, (size, ours) in sizes.items() if size != ours]
    if not differences and SCALE_NAMES["audio"] not in state:
        differences = [f"no {SCALE_NAMES['audio']}"]
    return ", ".join(differences)


def untrained_state(seed: int = SEED) -> dict[str, Tensor]:
    """Return an image head of AudioCLIP's shapes with random weights, for testing only.

    Each tensor is a function of (seed, its name): uniform from a PCG64 stream, with spreads at which the activations
    neither vanish nor explode and the batch norms' statistics are plausible, so that pictures have different vectors.
    """
    return seeded_state(seed, {**image_shapes(), **dict.fromkeys(SCALES, ())}, spread)


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation for the tensor of that name and shape."""
    if name in SCALES:
        return 0.0, 0.02
    if name.endswith("running_var"):
        return 1.0, 0.2
    if len(shape) == 4:  # convolutions
        return 0.0, (2.0 / prod(shape[1:])) ** 0.5
    if "attnpool" in name:
        if name.endswith("weight"):
            return 0.0, (2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0) * shape[1] ** -0.5
        return (0.0, 0.3) if name.endswith("positional_embedding") else (0.0, 0.1)
    if name.endswith(".weight"):  # batch norms
        return (0.4, 0.08) if name.endswith("bn3.weight") and "layer" in name else (1.0, 0.15)
    return 0.0, 0.2
