"""How many threads the model computes with: the machine's cores, shared among the processes that have a model."""

from __future__ import annotations

import math
import os
import re
import socket
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

CHECK_SECONDS = 1.0  # between two looks at the other processes

_START = uuid.uuid4().hex[:8]  # containers that share a network may each have a process of the same number


def available_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: of the machine, of its affinity, and of its container's CPU limit."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *_limits(root)]))


def _limits(root: Path) -> list[int]:
    """Return the CPU limits, in whole cores, of the control groups that this process is in."""
    limits = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            parts = Path(path.lstrip("/")).parts
            folders = [Path(*parts[:length]) for length in range(len(parts) + 1)]
            for folder in folders:
                if number == "0":
                    quota = _read(root / "sys/fs/cgroup" / folder / "cpu.max").split()
                elif "cpu" in controllers.split(","):
                    base = root / "sys/fs/cgroup/cpu" / folder
                    quota = [_read(base / "cpu.cfs_quota_us").strip(), _read(base / "cpu.cfs_period_us").strip()]
                else:
                    continue
                if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal():
                    limits.append(max(1, int(quota[0]) // int(quota[1])))
    return limits


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


class ModelProcesses:
    """The live processes on this machine that have a model, this one among them.

    Each binds a socket to a name of Linux's abstract kind, which exists as long as the process and is listed for all users.
    On other systems each process takes itself for the only one.
    """

    def __init__(self, name: str = "audioclip-text-model") -> None:
        self.name = name
        self._socket: socket.socket | None = None
        self._pid = 0

    def count(self) -> int:
        """Return how many there are, at least 1: this one, which is counted from its first call on."""
        if sys.platform != "linux":
            return 1
        if self._pid != os.getpid():  # a fork shares its parent's socket, and has its own
            self._socket, self._pid = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), os.getpid()
            with suppress(OSError):
                self._socket.bind(f"\0{self.name}-{_START}-{self._pid}")
        listed = re.findall(rf"@({re.escape(self.name)}-[0-9a-f]+-\d+)$", _read(Path("/proc/net/unix")), re.MULTILINE)
        return max(1, len(set(listed)))


class ModelThreads:
    """Keeps torch's number of threads at this process's share of the cores, or at the number that `fix` gives.

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
        threads = self._fixed or max(1, min(self._most, available_cores() // self._processes.count()))
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
