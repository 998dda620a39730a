"""The tensors of the text head: their names and shapes, a check, and a seeded head for tests."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..tensors import SCALES, matrix_fault, seeded_state, tensor_faults

NAME = "text head"
SEED = 20210624
SCALE_NAMES = {"image": "logit_scale", "audio": "logit_scale_at"}  # which scale belongs to texts and another head
VOCABULARY_ROWS = 49_408  # CLIP's tokenizer has this many ids, each with a row of the embedding table
_SIZE_TENSORS = ("token_embedding.weight", "positional_embedding", "text_projection")


def is_member(name: str) -> bool:
    """Return whether a tensor of a released checkpoint belongs to this head, or is a scale."""
    return not name.startswith(("visual.", "audio."))


def text_shapes(
    width: int = 512, layers: int = 12, vocabulary: int = VOCABULARY_ROWS, context: int = 77, dim: int = 1024
) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor that a text head's vectors depend on; the defaults are AudioCLIP's."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (vocabulary, width),
        "positional_embedding": (context, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, dim),
    }
    for layer in range(layers):
        for name, shape in {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }.items():
            shapes[f"transformer.resblocks.{layer}.{name}"] = shape
    return shapes


def faults(state: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is missing, unknown, not a plain float, or of the wrong shape.

    Sizes are read from the state, so CLIP text heads of other widths and depths have no faults either.
    """
    size_tensors = {name: state[name] for name in _SIZE_TENSORS if name in state}
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.") and name.count(".") > 2}
    if len(size_tensors) < 3 or not layers:
        missing = [f"{name} is missing" for name in _SIZE_TENSORS if name not in size_tensors]
        return missing + ["it has no layers"] * (not layers)
    found = [f"{name} {fault}" for name, tensor in size_tensors.items() if (fault := matrix_fault(tensor))]
    if found:
        return found
    vocabulary, width = size_tensors["token_embedding.weight"].shape
    context, dim = size_tensors["positional_embedding"].shape[0], size_tensors["text_projection"].shape[1]
    shapes = {**dict.fromkeys(SCALES, ()), **text_shapes(width, len(layers), vocabulary, context, dim)}
    found = [f"{name} is missing" for name in shapes if name not in state and name not in SCALES]
    if context < 2:
        found.append(f"positional_embedding has {context} row, and every text has a start and an end token")
    if width % 64:
        found.append(f"width {width} is not a multiple of 64, the width of an attention head")
    return found + tensor_faults(state, shapes)


def describe_difference(state: Mapping[str, Tensor]) -> str:
    """Return how the text head differs from AudioCLIP's, as in "512 numbers per vector instead of 1024"; "" if it does not.

    CLIP's RN50 has the same shapes, but lacks the scale that AudioCLIP trained for audio.
    """
    vocabulary, width = state["token_embedding.weight"].shape
    context, dim = state["positional_embedding"].shape[0], state["text_projection"].shape[1]
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    sizes = {
        "{} numbers per vector": (dim, 1024),
        "width {}": (width, 512),
        "{} layers": (layers, 12),
        "a context of {} tokens": (context, 77),
        "{} token ids": (vocabulary, VOCABULARY_ROWS),
    }
    differences = [f"{text.format(size)} instead of {ours}" for text, (size, ours) in sizes.items() if size != ours]
    if not differences and SCALE_NAMES["audio"] not in state:
        differences = [f"no {SCALE_NAMES['audio']}"]
    return ", ".join(differences)


def check_vocabulary(name: str, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the text head called `name` lacks an embedding for an id that the tokenizer can return."""
    rows = state["token_embedding.weight"].shape[0]
    if rows < VOCABULARY_ROWS:
        raise ValueError(
            f"{name} cannot be used: its token_embedding.weight has {rows:,} rows, and CLIP's tokenizer has "
            f"{VOCABULARY_ROWS:,} ids; use the text head of an AudioCLIP or CLIP checkpoint"
        )


def untrained_state(seed: int = SEED) -> dict[str, Tensor]:
    """Return a text head of AudioCLIP's shapes with random weights, for testing only.

    Each tensor is a function of (seed, its name): uniform from a PCG64 stream, with the standard deviation that the
    reference initialiser uses for that kind of tensor.
    """
    return seeded_state(seed, {**text_shapes(), **dict.fromkeys(SCALES, ())}, _spread)


def _spread(name: str, _: tuple[int, ...], width: int = 512, layers: int = 12) -> tuple[float, float]:
    """Return mean and standard deviation for the tensor of that name."""
    if name.endswith(("ln_1.weight", "ln_2.weight", "ln_final.weight")):
        return 1.0, 0.1
    if name == "token_embedding.weight":
        return 0.0, 0.05
    if name == "text_projection" or name.endswith("in_proj_weight"):
        return 0.0, 1.5 * width**-0.5
    if name.endswith(("out_proj.weight", "c_proj.weight")):
        return 0.0, width**-0.5 * (2 * layers) ** -0.5
    if name.endswith("c_fc.weight"):
        return 0.0, (2 * width) ** -0.5
    return 0.0, 0.02
