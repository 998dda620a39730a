"""benchmarks/gpu.py runs from beginning to end, so that minutes on a GPU are enough."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.pages import ROOT, environment_of_the_tests

# Without WordNet, which is not installed everywhere, and with a command that starts without imports.
SMOKE = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT / "benchmarks"), str(ROOT)]!r}
import corpora, gpu
corpora.WORDNET, gpu.COMMAND = Path("nowhere"), ["audioclip"]
sys.argv[1:] = ["--smoke", "--minutes", "9"]
sys.exit(gpu.main())
"""


@pytest.mark.slow
def test_every_part_runs_on_a_cpu() -> None:
    """With tiny sizes: each part prints its table with figures, and parity holds."""
    command = ["python", "-c", SMOKE]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment_of_the_tests() | {"OMP_NUM_THREADS": "1"},  # two threads wait for each other on a busy machine
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    parity, network, ours, nodes, picture, processes, pictures, sounds = (
        next(row for row in rows if row[0] == f"| {name}")
        for name in (
            "float32",
            "251 nodes",
            "audioclip-beam",
            "256 nodes",
            "audioclip-beam, with decoding",
            "1",
            "image",
            "audio",
        )
    )
    assert float(parity[1]) < 2e-5
    assert float(ours[2].replace(",", "")) > 0
    assert float(network[2]) > 0
    assert float(picture[2].replace(",", "")) > 0
    assert float(nodes[2].replace(",", "")) > 0
    for run in (processes, pictures, sounds):
        assert float(run[2].removesuffix(" s")) > 0
    assert "left out, no time" not in done.stdout


def test_a_gpu_without_bfloat16_is_measured_in_the_other_types() -> None:
    """A T4 refuses it, which would end each part there."""
    program = f"""
import sys
sys.path[:0] = {[str(ROOT / "benchmarks"), str(ROOT)]!r}
import gpu, torch
for capability in ((7, 5), (8, 0)):
    torch.cuda.get_device_capability = lambda device=None: capability
    sizes = gpu.on_this_gpu(gpu.GPU)
    print(*sizes.dtypes, sizes.run_dtype)
"""
    done = subprocess.run(
        ["python", "-c", program], cwd=ROOT, env=environment_of_the_tests(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["float32 float16 float16", "float32 bfloat16 float16 bfloat16"]
