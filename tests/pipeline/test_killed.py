"""Runs that are killed: what they finished is kept, what they left is removed, and the end is the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import psutil
import pyarrow.parquet as pq
import pytest

from audioclip_text.pipeline.snapshots.commit import current_name
from tests.support.corpus import embed, read, write_jsonl

ROOT = Path(__file__).parents[2]
KILLS = 10


def _start(
    shards: Path, output: Path, calls: Path, *flags: str, stderr: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.support.slow_run", str(shards), str(output), str(calls), *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=stderr, stdout=subprocess.DEVNULL)


def _finished_texts(output: Path) -> set[str]:
    """Texts in part files that have their final name."""
    return {
        text for part in output.glob("snapshots/*/part-*.parquet") for text in pq.read_table(part)["text"].to_pylist()
    }


@pytest.mark.slow
def test_sigkill_at_any_moment_then_a_run_gives_the_undisturbed_snapshot(tmp_path: Path) -> None:
    """Ten kills at random moments cost no finished text a second embedding, and nothing is lost or doubled."""
    rows = [{"id": f"r{n}", "text": f"text number {n}"} for n in range(3000)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    embed(tmp_path / "a.jsonl", tmp_path / "undisturbed", id_field="id")
    output, dice = tmp_path / "out", random.Random(20261123)
    for kill in range(KILLS + 1):
        finished, calls = _finished_texts(output), tmp_path / f"calls{kill}"
        runs_before = set(output.glob("snapshots/*"))
        process = _start(tmp_path / "a.jsonl", output, calls)
        if kill < KILLS:
            while set(output.glob("snapshots/*")) == runs_before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 1.2))
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == (-signal.SIGKILL if kill < KILLS else 0)
        embedded = set(calls.read_text().splitlines()) if calls.exists() else set()
        assert not embedded & finished, "texts of finished files were embedded again"
    name = current_name(str(output))
    assert read(output).equals(read(tmp_path / "undisturbed"))
    assert name in {path.name for path in (output / "snapshots").iterdir()}
    assert all((path / "manifest.json").exists() for path in (output / "snapshots").iterdir()), "a dead run was left"
    assert not list(output.rglob("*.tmp"))


def _workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The Python processes that work for a run."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [one for one in family if "python" in one.name() and "sdk_worker_main" in " ".join(one.cmdline())]


@pytest.mark.slow
def test_a_worker_process_that_is_killed_fails_the_run(tmp_path: Path) -> None:
    """With workers in processes of their own, the end of one is told at once, and the next run goes on from its files."""
    for shard in range(4):
        rows = [{"id": f"r{shard}-{n}", "text": f"text number {shard} {n}"} for n in range(1000)]
        write_jsonl(tmp_path / f"in/{shard}.jsonl", rows)
    output, calls = tmp_path / "out", tmp_path / "calls"
    flags = "--direct_running_mode", "multi_processing", "--direct_num_workers", "2"
    with (tmp_path / "stderr").open("wb") as stderr:
        process = _start(tmp_path / "in/*.jsonl", output, calls, *flags, stderr=stderr)
        while not _finished_texts(output) and process.poll() is None:
            time.sleep(0.05)
        _workers(process)[0].kill()
        assert process.wait(timeout=60) == 1
    assert "a worker process ended before its work did" in (tmp_path / "stderr").read_text()
    assert current_name(str(output)) is None
    finished = _finished_texts(output)
    manifest, texts = embed(tmp_path / "in/*.jsonl", output, id_field="id")
    ids = read(output)["id"].to_pylist()
    assert manifest["counts"]["read"] == len(ids) == len(set(ids)) == 4000
    assert not set(texts) & finished
