"""Options of an encoder: their known values, their meaning, and the fingerprint of everything that decides a vector."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from pathlib import Path

import torch

from .checkpoint import Checkpoint, weights_digest
from .fingerprint import SCHEME, tokenizer_versions
from .text.prompt import PROMPT_RULE, is_prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ON_LONG = ("truncate", "reject", "error")

Text = str | Sequence[str]


def list_texts(texts: Iterable[Text]) -> list[Text]:
    """Return the texts of any iterable as a list: of a list, an Arrow array, a pandas Series, a numpy array.

    Raises TypeError, which names the position, if one is neither a string nor a list of strings.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of texts, not one string: got {texts!r:.80}; write [text]")
    to_pylist = getattr(texts, "to_pylist", None)  # the elements of an Arrow array are not strings
    items: list[Text] = list(texts) if to_pylist is None else to_pylist()
    for position, text in enumerate(items):
        if not isinstance(text, str) and not _is_list_of_strings(text):
            raise TypeError(
                f"text {position} is {text!r:.80} ({type(text).__name__}), not a string or a list of strings: give a text, "
                f"or leave it out"
            )
    return items


def _is_list_of_strings(text: object) -> bool:
    # The order of a set differs from process to process, and so would its vector.
    if not isinstance(text, Collection) or isinstance(text, bytes | Mapping | Set):
        return False
    return all(isinstance(part, str) for part in text)


def join_and_prompt(text: Text, prompt: str) -> str:
    """Return the text as it enters the tokenizer: a list of strings joined with ", ", then put into the prompt's {}."""
    return prompt.format(text if isinstance(text, str) else ", ".join(text))


def check_options(*, prompt: str, on_long: str, dtype: str) -> None:
    """Raise ValueError for an option value that the encoder does not know; the message names the known ones."""
    if on_long not in ON_LONG:
        raise ValueError(f"on_long={on_long!r}: choose one of {', '.join(ON_LONG)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    if not is_prompt(prompt):
        raise ValueError(f"prompt={prompt!r}: {PROMPT_RULE}")


def pick_device(device: str, dtype: str) -> torch.device:
    """Return the torch device for "auto", "cpu", "cuda" or "cuda:N"; "auto" is CUDA if available, else the CPU.

    Raises ValueError for another word, or for float16 on a CPU; RuntimeError for a CUDA device that does not exist:
    CUDA never falls back to a CPU silently.
    """
    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(f"device={device!r}: choose one of auto, cpu, cuda, cuda:N")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= gpus:
        raise RuntimeError(
            f"device={device!r}: torch {torch.__version__} sees {gpus} CUDA devices (it was built for "
            f"{f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'}; {_nvidia_driver()}): install a torch "
            f"with CUDA and a driver that is new enough for it, or use device='cpu'"
        )
    chosen = torch.device("cpu" if kind == "cpu" or not gpus else "cuda" if device == "auto" else device)
    if chosen.type == "cpu" and dtype == "float16":
        raise ValueError("dtype='float16' needs a CUDA device, and this is a CPU; use 'bfloat16' or 'float32'")
    return chosen


def _nvidia_driver() -> str:
    """Return what the kernel says of NVIDIA's driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "this machine has no NVIDIA driver"


def fingerprint_parts(
    checkpoint: Checkpoint, vocabulary_sha256: str, *, prompt: str, on_long: str, normalize: bool, dtype: str
) -> dict[str, str]:
    """Return everything that decides a text's vector, by name; no tower is built."""
    return {
        "scheme": SCHEME,
        "weights": weights_digest(checkpoint.state),
        "vocabulary": vocabulary_sha256,
        "prompt": prompt,
        "on_long": "truncate" if on_long == "error" else on_long,  # the vectors that "error" lets pass are the same
        "normalize": str(normalize).lower(),
        "dtype": dtype,
        **tokenizer_versions(),
    }
