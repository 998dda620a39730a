"""Devices and types of torch, by the names that settings have for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which to compute on `device`.

    Pinned memory belongs to the current GPU, which in every thread is the first one until another one is chosen: with
    "cuda:1" each process would occupy memory of the first GPU as well.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
