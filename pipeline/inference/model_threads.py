"""How many threads the model computes with: the machine's cores, shared among the processes that have a model."""

from __future__ import annotations

import hashlib
import math
import os
import re
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

CHECK_SECONDS = 1.0  # between two looks at the other processes

MAX_LIMITS = 7  # that others can count, as a name has 107 bytes

_START = uuid.uuid4().hex[:8]  # containers that share a network may each have a process of the same number


def core_limits(root: Path = Path("/")) -> dict[str, int]:
    """Return limits of the cores that this process may use, by an id that the processes with the same limit share.

    They are the machine's cores, its affinity, and the CPU limits, in whole cores, of the control groups that it is in.
    """
    limits, affinity = {"machine": os.cpu_count() or 1}, getattr(os, "sched_getaffinity", None)
    if affinity:
        limits[_id("affinity", *sorted(affinity(0)))] = len(affinity(0))
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            parts = Path(path.lstrip("/")).parts
            folders = [Path(*parts[:length]) for length in range(len(parts) + 1)]
            for folder in folders:
                if number == "0":
                    group = root / "sys/fs/cgroup" / folder
                    quota = _read(group / "cpu.max").split()
                elif "cpu" in controllers.split(","):
                    group = root / "sys/fs/cgroup/cpu" / folder
                    quota = [_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()]
                else:
                    continue
                if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal():
                    status = group.stat()  # a container sees its group under another path
                    limits[_id(status.st_dev, status.st_ino)] = max(1, int(quota[0]) // int(quota[1]))
    return limits


def available_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: of the machine, of its affinity, and of its container's CPU limit."""
    return min(core_limits(root).values())


def _id(*parts: object) -> str:
    return hashlib.blake2s(repr(parts).encode(), digest_size=4).hexdigest()


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


class ModelProcesses:
    """The live processes on this machine that have a model, this one among them.

    Each binds an abstract Unix socket of Linux, which exists as long as the process and is listed for all users. The ids of
    its limits are in the name, because containers that share the machine's network have limits of their own.
    On other systems each process takes itself for the only one.
    """

    def __init__(self, name: str = "audioclip-beam-model") -> None:
        self.name = name
        self._socket: socket.socket | None = None
        self._bound = ""

    def share(self, limits: Mapping[str, int]) -> int:
        """Return this process's share of the cores, at least 1; it is counted from its first call on."""
        counts = self._count(list(limits)[:MAX_LIMITS])
        return max(1, min(cores // max(1, counts[each]) for each, cores in limits.items()))

    def _count(self, limits: Sequence[str]) -> Counter[str]:
        """Return the number of processes by limit."""
        if sys.platform != "linux":
            return Counter()
        name = f"\0{self.name}-{_START}-{os.getpid()}-{'.'.join(limits)}"
        if self._bound != name:  # a fork shares its parent's socket, and has its own
            self._socket, self._bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), name
            with suppress(OSError):
                self._socket.bind(name)
        listed = re.findall(
            rf"@{re.escape(self.name)}-([0-9a-f]+-\d+)-([\w.]+)$", _read(Path("/proc/net/unix")), re.MULTILINE
        )
        return Counter(limit for names in dict(listed).values() for limit in names.split("."))


class ModelThreads:
    """Torch's number of threads, kept at this process's share of the cores, or at the number that `fix` gives.

    OpenMP keeps that number for each thread: `adjust` must be called in the one that computes.
    """

    def __init__(self, processes: ModelProcesses | None = None) -> None:
        self._fixed: int | None = None
        self._processes = processes or ModelProcesses()
        self._most: int | None = None  # torch's own choice, which OMP_NUM_THREADS limits
        self._checked = -math.inf

    def fix(self, threads: int | None) -> None:
        """Set the number of threads from the next `adjust` on; None is this process's share."""
        self._fixed, self._checked = threads, -math.inf

    def adjust(self) -> None:
        """Set the number of threads; the other processes are counted once in CHECK_SECONDS."""
        import torch

        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        if self._most is None:
            self._most = torch.get_num_threads()
        self._checked = now
        threads = self._fixed or min(self._most, self._processes.share(core_limits()))
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
