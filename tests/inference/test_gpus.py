"""GPUs: each process takes the least used one until it dies, and a local run starts as many processes as they need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from audioclip_beam.model.audio.head import AudioHead
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.cli import embed_command as embed_module
from audioclip_beam.pipeline.cli.embed_command import parse_options, share_gpus
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.inference.gpus import PROCESSES_PER_GPU, GpuPlace, processes_for, usable_gpus
from audioclip_beam.pipeline.run.runner import run
from tests.support.corpus import read, write_jsonl
from tests.support.gpus import FakeGpuHead
from tests.support.paths import ROOT
from tests.support.preloaded import preloaded_programs

# Prints the number that torch gives the chosen GPU, and holds its place until the standard input ends.
HOLD = """
import sys
from audioclip_beam.pipeline.inference.gpus import GpuPlace
name, device, *gpus = sys.argv[1:]
place = GpuPlace(name, lambda: gpus)
print(place.choose(device), flush=True)
sys.stdin.read()
"""

GIB = 1 << 30

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")


class Processes:
    """Processes that hold places."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.running: list[subprocess.Popen[str]] = []

    def start(self, device: str, *gpus: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, self.name, device, *gpus]
        self.running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return self.running[-1]

    def choose(self, device: str, *gpus: str) -> str:
        process = self.start(device, *gpus)
        assert process.stdout
        return process.stdout.readline().strip()

    def kill(self, number: int) -> None:
        self.running[number].kill()
        self.running[number].wait()


@pytest.fixture
def processes(tmp_path: Path) -> object:
    group = Processes(f"test-{tmp_path.name}-{os.getpid()}")
    yield group
    for number in range(len(group.running)):
        group.kill(number)
        for stream in (group.running[number].stdin, group.running[number].stdout):
            stream.close()


def test_a_process_takes_the_least_used_gpu_until_it_dies(processes: Processes) -> None:
    """However it ends; `cuda:N` takes that GPU alone, and is counted too."""
    assert [processes.choose("cuda", "a", "b") for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert processes.choose("cuda:0", "a", "b") == "cuda:0"
    assert [processes.choose("auto", "a", "b") for _ in range(2)] == ["cuda:1", "cuda:1"]
    for number in (0, 2):  # of GPU a
        processes.kill(number)
    assert [processes.choose("cuda", "a", "b") for _ in range(3)] == ["cuda:0", "cuda:0", "cuda:0"]


def test_processes_that_see_other_gpus_agree(processes: Processes) -> None:
    """A GPU has one id, whatever number CUDA_VISIBLE_DEVICES gives it."""
    assert processes.choose("cuda", "b") == "cuda:0"
    assert processes.choose("cuda", "a", "b") == "cuda:0"
    assert processes.choose("cuda", "b", "a", "c") == "cuda:2"


def test_processes_that_start_together_take_turns(processes: Processes) -> None:
    """Six at the same time on three GPUs: two on each."""
    started = [processes.start("cuda", "a", "b", "c") for _ in range(6)]
    chosen = Counter(process.stdout.readline().strip() for process in started if process.stdout)
    assert chosen == {"cuda:0": 2, "cuda:1": 2, "cuda:2": 2}


def test_a_process_stays_on_its_gpu(tmp_path: Path) -> None:
    """With another encoder too; a CPU, and a GPU that does not exist, are left to the encoder."""
    place = GpuPlace(f"test-{tmp_path.name}-{os.getpid()}", lambda: ["a", "b"])
    assert [place.choose(device) for device in ("cuda:1", "cuda", "auto", "cuda:0", "cuda")] == [
        *["cuda:1"] * 3,
        *["cuda:0"] * 2,
    ]
    assert [place.choose(device) for device in ("cpu", "cuda:7")] == ["cpu", "cuda:7"]
    assert GpuPlace("test", list).choose("auto") == "auto"


def test_processes_fit_into_the_memory_of_a_gpu() -> None:
    """A T4 and an 8 GB GPU get fewer than a large one; a GPU that is too small gets one, which names the remedy itself."""
    t4, small = 15_360 << 20, 8 * GIB
    assert [processes_for([size], TEXT.gpu_memory, 64, 10**9) for size in (80 * GIB, t4, small, GIB)] == [8, 7, 4, 1]
    assert processes_for([t4, small], TEXT.gpu_memory, 64, 10**9) == 11
    assert processes_for([t4], AudioHead().gpu_memory, 64, 10**9) == 3, "recordings take more"


def test_the_number_of_processes() -> None:
    """As many as the GPUs need, at most one for each core, and one for a corpus that ends before a second one starts."""
    assert processes_for([], GIB, cores=64, rows=10**9) == 1
    assert processes_for([80 * GIB], GIB, cores=64, rows=10**9) == PROCESSES_PER_GPU
    assert processes_for([80 * GIB] * 4, GIB, cores=12, rows=10**9) == 12
    assert processes_for([80 * GIB] * 4, GIB, cores=12, rows=600_000) == 4
    assert processes_for([80 * GIB] * 4, GIB, cores=12, rows=1000) == 1
    assert [usable_gpus(device, 2) for device in ("auto", "cuda", "cuda:1", "cuda:2", "cpu")] == [
        *[[0, 1]] * 2,
        [1],
        [],
        [],
    ]


@pytest.mark.parametrize(
    ("flags", "gpus", "workers", "mode"),
    [
        ([], 0, 1, "in_memory"),
        ([], 2, 12, "multi_processing"),
        (["--device=cuda:1"], 2, PROCESSES_PER_GPU, "multi_processing"),
        (["--device=cpu"], 2, 1, "in_memory"),
        (["--direct-num-workers=1"], 2, 1, "in_memory"),
        (["--id_field", "direct_id"], 2, 12, "multi_processing"),
        (["--runner=PortableRunner"], 2, 1, "in_memory"),
    ],
)
def test_embed_starts_the_processes(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], gpus: int, workers: int, mode: str
) -> None:
    """In a local run, unless a flag of Beam's says how many."""
    monkeypatch.setattr(embed_module, "gpu_memory", lambda: [80 * GIB] * gpus)
    monkeypatch.setattr(embed_module, "available_cores", lambda: 12)
    monkeypatch.setattr(embed_module, "host_memory", lambda: 64 * GIB)
    argv = ["--input=a.txt", "--output=out", *flags]
    options = parse_options(argv)
    share_gpus(options, argv, TEXT, 10**9)
    given = options.get_all_options()
    assert (given["direct_num_workers"], given["direct_running_mode"]) == (workers, mode)


def test_processes_fit_into_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has CUDA's libraries and buffers of its own."""
    monkeypatch.setattr(embed_module, "gpu_memory", lambda: [80 * GIB])
    monkeypatch.setattr(embed_module, "available_cores", lambda: 12)
    monkeypatch.setattr(embed_module, "host_memory", lambda: 7 * GIB)
    argv = ["--input=a.txt", "--output=out"]
    options = parse_options(argv)
    share_gpus(options, argv, TEXT, 10**9)
    assert options.get_all_options()["direct_num_workers"] == 3


@pytest.mark.slow
def test_the_workers_of_a_run_are_spread_over_all_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four processes of Beam's on two GPUs that do not exist: two on each, and no row is lost."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(sys, "executable", str(preloaded_programs() / "python"))  # with which Beam starts them
    monkeypatch.setattr(embed_module, "gpu_memory", lambda: [80 * GIB] * 2)
    monkeypatch.setattr(embed_module, "host_memory", lambda: 64 * GIB)
    monkeypatch.setattr(embed_module, "available_cores", lambda: 4)
    for shard in range(4):
        write_jsonl(
            tmp_path / "in" / f"{shard}.jsonl", [{"id": f"{shard}/{n}", "text": f"text {n}"} for n in range(50)]
        )
    argv = [f"--input={tmp_path}/in/*.jsonl", f"--output={tmp_path}/out", "--id_field=id", "--no_dedupe"]
    options = parse_options(argv)
    share_gpus(options, argv, TEXT, 10**9)
    assert "4 processes share 2 GPUs" in capsys.readouterr().err
    corpus = EmbedCorpus(options, FakeGpuHead(str(tmp_path / "chosen"), f"test-{os.getpid()}", ["a", "b"]))
    run(corpus, options)
    corpus.close()
    assert read(tmp_path / "out").num_rows == 200
    chosen = Counter(path.read_text() for path in (tmp_path / "chosen").iterdir())
    assert chosen == {"cuda:0": 2, "cuda:1": 2}
