"""The model's threads: the cores of a machine or container, shared by the processes that are alive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audioclip_beam.pipeline.inference import model_threads
from audioclip_beam.pipeline.inference.model_threads import ModelProcesses, ModelThreads, available_cores

HOLD = """
import os, sys
from audioclip_beam.pipeline.inference.model_threads import ModelProcesses
os.getpid = lambda: int(sys.argv[2])  # another container may have a process of this number
processes = ModelProcesses(sys.argv[1])
print(processes.share({"machine": 12, sys.argv[3]: 4}), flush=True)
sys.stdin.read()
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "99900000 100000\n"}, None),
    ],
)
def test_the_cpu_limit_of_a_container_counts_as_cores(
    tmp_path: Path, files: dict[str, str], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of version 1 and 2, of the group itself or of one above it; without a limit the machine's cores count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert available_cores(write(tmp_path, files)) == (limit or 8)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")
@pytest.mark.parametrize(
    ("container", "theirs", "mine"), [("a", 2, 2), ("b", 4, 4)], ids=["one container", "two on one network"]
)
def test_a_process_counts_until_it_is_killed(tmp_path: Path, container: str, theirs: int, mine: int) -> None:
    """However it ends. Each of two containers with a CPU limit has its own cores, of a machine that has enough for both."""
    name, limits = f"test-{tmp_path.name[-20:]}-{os.getpid()}", {"machine": 12, "a": 4}
    processes = ModelProcesses(name)
    assert processes.share(limits) == processes.share(limits) == 4
    command = [sys.executable, "-c", HOLD, name, str(os.getpid()), container]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == f"{theirs}\n"
        assert processes.share(limits) == mine
        assert processes.share({"machine": 2, "a": 4}) == 1
        other.kill()
        other.wait()
        assert processes.share(limits) == 4


def test_threads_follow_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of the cores, at most as many as torch would take; a fixed number is kept."""
    before, shares = torch.get_num_threads(), iter([6, 3, 2, 1, 3, 6])
    monkeypatch.setattr(model_threads, "CHECK_SECONDS", 0.0)
    processes = ModelProcesses()
    monkeypatch.setattr(processes, "share", lambda limits: next(shares))
    try:
        torch.set_num_threads(4)
        threads, numbers = ModelThreads(processes=processes), []
        for _ in range(5):
            threads.adjust()
            numbers.append(torch.get_num_threads())
        assert numbers == [4, 3, 2, 1, 3]
        threads.fix(5)
        threads.adjust()
        assert torch.get_num_threads() == 5
        threads.fix(None)
        threads.adjust()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
