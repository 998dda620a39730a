"""What an encoder can be told: which values are known, what they stand for, and the fingerprint that they add up to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch

from .checkpoint import Checkpoint, weights_digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ON_LONG = ("truncate", "reject")

Text = str | Sequence[str]


def join_and_prompt(text: Text, prompt: str) -> str:
    """The text as it enters the tokenizer: a list of strings joined with ", ", then put into the prompt's {}."""
    return prompt.format(text if isinstance(text, str) else ", ".join(text))


def check_options(*, prompt: str, on_long: str, dtype: str) -> None:
    """Raise ValueError for option values that the encoder does not know, naming those that it does."""
    if on_long not in ON_LONG:
        raise ValueError(f"on_long={on_long!r}: choose one of {', '.join(ON_LONG)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    try:
        holds_text = "text" in prompt.format("text") and prompt.format("text") != prompt.format("another")
    except (IndexError, KeyError, ValueError, AttributeError, TypeError):
        holds_text = False
    if not holds_text:
        raise ValueError(f"prompt={prompt!r}: it must hold {{}} once, where the text goes, as in 'a photo of {{}}'")


def pick_device(device: str, dtype: str) -> torch.device:
    """The torch device that a word stands for; "auto" takes CUDA, then the CPU, and asking for CUDA never gives a CPU.

    Raises ValueError for an unknown word or float16 on a CPU, RuntimeError for a CUDA device that is not there.
    """
    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(f"device={device!r}: choose one of auto, cpu, cuda, cuda:N")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= cards:
        raise RuntimeError(
            f"device={device!r}: torch {torch.__version__} sees {cards} CUDA devices here; install a torch with CUDA, "
            "check nvidia-smi, or use device='cpu'"
        )
    picked = torch.device("cpu" if kind == "cpu" or not cards else "cuda" if device == "auto" else device)
    if picked.type == "cpu" and dtype == "float16":
        raise ValueError("dtype='float16': it needs a CUDA device, and this is a CPU; use 'bfloat16' or 'float32'")
    return picked


def fingerprint_parts(
    checkpoint: Checkpoint, vocabulary_sha256: str, *, prompt: str, on_long: str, normalize: bool, dtype: str
) -> dict[str, str]:
    """Everything that decides a text's vector, by name; builds no tower."""
    return {
        "weights": weights_digest(checkpoint.state),
        "vocabulary": vocabulary_sha256,
        "prompt": prompt,
        "on_long": on_long,
        "normalize": str(normalize).lower(),
        "dtype": dtype,
    }


def fingerprint(parts: dict[str, str]) -> str:
    """sha256 in hex over the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
