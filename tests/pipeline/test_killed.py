"""Runs that are killed: what they finished is kept, what they left is removed, and the result is the same."""

from __future__ import annotations

import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.validation import validate
from tests.support.corpus import embed, read, write_jsonl
from tests.support.processes import start_process
from tests.support.slow_run import crashing_run, slow_run

KILLS = 10


def finished_texts(output: Path) -> set[str]:
    """Return the texts in part files that have their final name."""
    return {
        text for part in output.glob("snapshots/*/part-*.parquet") for text in pq.read_table(part)["text"].to_pylist()
    }


@pytest.mark.slow
def test_sigkill_at_any_moment_then_a_run_gives_the_undisturbed_snapshot(tmp_path: Path) -> None:
    """After ten kills at random moments no finished text was embedded again, and no row is lost or duplicated."""
    rows = [{"id": f"r{n}", "text": f"text number {n}"} for n in range(3000)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    embed(tmp_path / "a.jsonl", tmp_path / "undisturbed", id_field="id")
    output, dice = tmp_path / "out", random.Random(20261123)
    for kill in range(KILLS + 1):
        finished, log = finished_texts(output), tmp_path / f"log{kill}"
        earlier_runs = set(output.glob("snapshots/*"))
        process = start_process(slow_run, str(tmp_path / "a.jsonl"), str(output), str(log))
        if kill < KILLS:
            while set(output.glob("snapshots/*")) == earlier_runs and process.is_alive():
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.6))
            process.kill()
        process.join(timeout=60)
        assert process.exitcode == (-signal.SIGKILL if kill < KILLS else 0)
        embedded = set(log.read_text().splitlines()) if log.exists() else set()
        assert not embedded & finished, "texts of finished files were embedded again"
    name = current_name(str(output))
    assert read(output).equals(read(tmp_path / "undisturbed"))
    assert name in {path.name for path in (output / "snapshots").iterdir()}
    assert all((path / "manifest.json").exists() for path in (output / "snapshots").iterdir()), "a dead run was left"
    assert not list(output.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("effect", "nth"),
    [
        ("link", 1),
        ("link", 2),
        ("write", 1),
        ("rename", 1),
        ("start", 9),
        ("manifest", 3),
        ("pointer", 3),
    ],
)
def test_crash_from_the_first_carried_file_to_the_pointer(tmp_path: Path, effect: str, nth: int, late: bool) -> None:
    """Wherever a night that carries files over dies, the former snapshot or the new one is whole, and the next run exact."""
    folder, output = tmp_path / "in", tmp_path / "out"
    rows = {f"{shard}-{n}": f"text {n} of {shard}" for shard in "ab" for n in range(12)}
    for shard in "ab":
        write_jsonl(folder / f"{shard}.jsonl", [{"id": name, "text": rows[name]} for name in rows if name[0] == shard])
    before, _ = embed(folder / "*.jsonl", output, id_field="id", max_file_rows=5)
    rows |= {"c-0": "a new text"}
    write_jsonl(folder / "c.jsonl", [{"id": "c-0", "text": "a new text"}])
    process = start_process(crashing_run, str(tmp_path), effect, nth, late, stderr=tmp_path / "errors")
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "errors").read_text()
    published = current_name(str(output)) != before["snapshot"]
    assert validate(str(output)).valid
    assert len(read(output)) == 24 + published
    manifest, texts = embed(folder / "*.jsonl", output, id_field="id", max_file_rows=5)
    assert set(texts) <= {"a new text"}
    table = read(output)
    assert dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)) == rows
    assert manifest["counts"]["read"] == (0 if published else 1)
    assert validate(str(output)).valid
    assert all((path / "manifest.json").exists() for path in (output / "snapshots").iterdir()), "a dead run was left"


def workers_of(process: ForkServerProcess) -> list[psutil.Process]:
    """Return the Python processes that work for a run."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [each for each in family if "python" in each.name() and "sdk_worker_main" in " ".join(each.cmdline())]


@pytest.mark.slow
def test_a_worker_process_that_is_killed_fails_the_run(tmp_path: Path) -> None:
    """The run reports the end of a worker process at once, and the next run reuses its finished files."""
    for shard in range(4):
        rows = [{"id": f"r{shard}-{n}", "text": f"text number {shard} {n}"} for n in range(1000)]
        write_jsonl(tmp_path / f"in/{shard}.jsonl", rows)
    output, log, stderr = tmp_path / "out", tmp_path / "log", tmp_path / "stderr"
    flags = "--direct_running_mode", "multi_processing", "--direct_num_workers", "2"
    process = start_process(slow_run, str(tmp_path / "in/*.jsonl"), str(output), str(log), *flags, stderr=stderr)
    while not finished_texts(output) and process.is_alive():
        time.sleep(0.05)
    workers_of(process)[0].kill()
    process.join(timeout=60)
    assert process.exitcode == 1
    assert "a worker process ended before its work did" in stderr.read_text()
    assert current_name(str(output)) is None
    finished = finished_texts(output)
    manifest, texts = embed(tmp_path / "in/*.jsonl", output, id_field="id")
    ids = read(output)["id"].to_pylist()
    assert manifest["counts"]["read"] == len(ids) == len(set(ids)) == 4000
    assert not set(texts) & finished
