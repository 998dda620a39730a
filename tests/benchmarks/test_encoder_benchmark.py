"""The benchmarks measure the image head and the audio head beside other software on the same weights."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.pages import ROOT, environment_of_the_tests


@pytest.mark.slow
@pytest.mark.parametrize("head", ["image", "audio"])
def test_a_head_beside_others(head: str) -> None:
    """With tiny sizes: ours, alone and with decoding, and torch; the run checks that all compute the same vectors."""
    done = subprocess.run(
        ["python", "benchmarks/encoder.py", "--head", head, "--smoke"],
        cwd=ROOT,
        env=environment_of_the_tests() | {"OMP_NUM_THREADS": "1"},  # two threads wait for each other on a busy machine
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    speeds = {row[0]: float(row[2]) for row in rows if row[1] == "float32"}
    assert {"audioclip-beam", "audioclip-beam, with decoding", "torch"} <= set(speeds)
    assert min(speeds.values()) > 0


@pytest.mark.slow
def test_files_to_vectors() -> None:
    """Of two small files: ours, with the vectors of AudioCLIP's demo if torchvision is installed."""
    done = subprocess.run(
        ["python", "benchmarks/files.py", "--smoke", "--kinds", "small"],
        cwd=ROOT,
        env=environment_of_the_tests() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| audioclip-beam | float32 |" in done.stdout
    assert "left out" in done.stdout or "original's way float32 1.0000" in done.stdout
