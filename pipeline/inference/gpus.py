"""Which GPU a process uses: the one that the fewest other processes of this machine use; and how many should share one."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Beam and Arrow take 16 us of CPU time per new row (docs/scaling.md), so that one process gives a GPU some 60,000 rows per
# second; a large GPU may embed seven times as many. By reasoning: benchmarks/gpu.py measures it if there is a GPU.
PROCESSES_PER_GPU = 8
HOST_MEMORY = 2 << 30  # of the machine, of a process that uses CUDA, about
# A process starts in some seconds, in which another one embeds as many rows.
ROWS_PER_PROCESS = 131_072


def _properties() -> list[Any]:
    """Return the properties of the GPUs that torch sees; none of their memory is taken for that."""
    import torch

    from ...model.device import count_gpus

    return [torch.cuda.get_device_properties(number) for number in range(count_gpus())]


def gpu_memory() -> list[int]:
    """Return the bytes of memory of each GPU that torch sees."""
    return [properties.total_memory for properties in _properties()]


def list_gpus() -> list[str]:
    """Return the ids of these GPUs, in torch's order; whatever GPUs a process sees, an id means the same one."""
    return [str(properties.uuid) for properties in _properties()]


def host_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_gpus(device: str, gpus: int) -> list[int]:
    """Return the numbers of the GPUs that `device`, as --device spells it, names among so many: all, one or none."""
    kind, _, number = device.partition(":")
    return [] if kind == "cpu" else [each for each in range(gpus) if not number or each == int(number)]


def processes_for(memory: Sequence[int], per_process: int, cores: int, rows: int) -> int:
    """Return how many processes a local run over about `rows` rows starts: at least 1, and at most one for each core.

    Args:
        memory: The size of each GPU, in bytes.
        per_process: Bytes of a GPU that a process takes.
        cores: Of the machine.
        rows: Of the run.
    """
    on_gpus = sum(min(PROCESSES_PER_GPU, size // per_process) for size in memory)
    return max(1, min(on_gpus, cores, rows // ROWS_PER_PROCESS))


class GpuPlace:
    """This process's place on a GPU, counted by other processes until it dies.

    Each GPU has places 0, 1, 2 and so on. A place is the name of an abstract Unix socket of Linux, which one process at a
    time can bind: two that start at the same time never take the same one. Containers without a common network do not see
    each other's.
    """

    def __init__(self, name: str = "audioclip-beam-gpu", gpus: Callable[[], list[str]] = list_gpus) -> None:
        self._name, self._gpus = name, gpus
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._held: tuple[int, str] | None = None  # process and GPU

    def choose(self, device: str) -> str:
        """Return `device` with the number of the GPU that this process is to use; as it is if it names none that exists.

        A process stays on its GPU as long as `device` allows it.
        """
        with self._lock:
            if device == "cpu":
                return device
            gpus = self._gpus()
            numbers = usable_gpus(device, len(gpus))
            if not numbers:
                return device
            mine = self._held[1] if self._held and self._held[0] == os.getpid() else None
            number = next((each for each in numbers if gpus[each] == mine), None)
            if number is None:
                number = self._take([(each, gpus[each]) for each in numbers])
            return f"cuda:{number}"

    def _take(self, gpus: Sequence[tuple[int, str]]) -> int:
        """Take a place on the least used of these GPUs, and return its number."""
        if sys.platform != "linux":
            return gpus[0][0]
        # A fork has its parent's socket too: its own place is another one.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        just_taken: set[tuple[str, int]] = set()  # by other processes
        while True:
            places = {
                gpu: self._places(gpu) | {place for other, place in just_taken if other == gpu} for _, gpu in gpus
            }
            number, gpu = min(gpus, key=lambda each: len(places[each[1]]))
            free = next(place for place in range(len(places[gpu]) + 1) if place not in places[gpu])
            try:
                self._socket.bind(f"\0{self._name}-{gpu}-{free}")
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    just_taken.add((gpu, free))
                    continue
            self._held = os.getpid(), gpu
            return number

    def _places(self, gpu: str) -> set[int]:
        """Return the places on a GPU that are taken."""
        listed = ""
        with suppress(OSError):
            listed = Path("/proc/net/unix").read_text()
        pattern = rf"@{re.escape(self._name)}-{re.escape(gpu)}-(\d+)$"
        return {int(place) for place in re.findall(pattern, listed, re.MULTILINE)}
