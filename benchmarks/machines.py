"""What measurements were made on: the machine, and the versions of packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def package_version(package: str) -> str:
    """Return name and version of a package, or that it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def machine() -> str:
    """Return the machine's processor, threads, instruction sets and operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    instruction_sets = " ".join(
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if any(flag in x for x in lines)
    )
    return f"{model}, {torch.get_num_threads()} threads, {instruction_sets}; {platform.platform()}"
