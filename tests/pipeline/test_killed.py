"""Runs that are killed: what they finished is kept, what they left is removed, and the result is the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.layout import is_copy
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.validation import validate
from tests.support.corpus import embed, read, write_jsonl
from tests.support.faults import Faults
from tests.support.kept_night import NEW, OPTIONS, prepare_night
from tests.support.processes import start_process
from tests.support.slow_run import crashing_run, slow_run
from tests.support.snapshots import files_of

KILLS = 5

CRASHES = int(os.environ.get("CRASHES", "6"))  # at points that are evenly spread over a night; 1000 are all of them


def finished_texts(output: Path) -> set[str]:
    """Return the texts in part files that have their final name."""
    return {
        text for part in output.glob("snapshots/*/part-*.parquet") for text in pq.read_table(part)["text"].to_pylist()
    }


@pytest.mark.slow
def test_sigkill_at_any_moment_then_a_run_gives_the_undisturbed_snapshot(tmp_path: Path) -> None:
    """After five kills at random moments no finished text was embedded again, and no row is lost or duplicated."""
    rows = [{"id": f"r{n}", "text": f"text number {n}"} for n in range(1500)]
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


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[str, str], int]:
    """A folder with a corpus and snapshots of it, {id: text} of before and after, and the effects of the night."""
    folder = tmp_path_factory.mktemp("night")
    before, after = prepare_night(folder)
    faults = Faults(folder)
    shutil.copytree(folder / "out", folder / "whole")
    with faults.armed(None):
        manifest, texts = embed(folder / "in/*.jsonl", folder / "whole", **OPTIONS)
    earlier = {path.name for path in (folder / "out").rglob("*.parquet")}
    parts = [file for file in files_of(folder / "whole", manifest) if file.is_part]
    assert {file.segment for file in parts if is_copy(file.name)} == {0}, "filtered"
    assert {file.segment for file in parts if file.name in earlier} == {1}, "linked"
    assert sum(file.rows for file in parts if file.segment == 2) == 5, "merged: 3 rows, and 2 new ones"
    assert sorted(texts) == NEW
    return folder, before, after, faults.seen.total()


@pytest.mark.slow
@pytest.mark.parametrize("point", range(CRASHES))
def test_crash_anywhere_in_a_night(
    night: tuple[Path, dict[str, str], dict[str, str], int], tmp_path: Path, point: int
) -> None:
    """Before or after any effect on a file of a night that links, copies and merges files.

    The former snapshot or the new one is whole, and the next run exact; no shard is read that the night has not read.
    """
    folder, before, after, effects = night
    output = folder / f"out{point}"
    shutil.copytree(folder / "out", output)
    former = current_name(str(output))
    nth, late = 1 + (effects - 1) * point // max(1, CRASHES - 1), point % 2 == 1
    process = start_process(crashing_run, str(folder), output.name, nth, late, stderr=tmp_path / "errors")
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL or nth > effects - 5, (tmp_path / "errors").read_text()
    published = current_name(str(output)) != former
    assert validate(str(output)).valid
    assert rows_of(output) == (after if published else before)
    manifest, texts = embed(folder / "in/*.jsonl", output, **OPTIONS)
    assert set(texts) <= set(() if published else NEW)
    assert rows_of(output) == after
    assert manifest["counts"]["read"] == (0 if published else 3)
    assert manifest["totals"]["rejected"] == 4
    assert validate(str(output)).valid
    assert all((path / "manifest.json").exists() for path in (output / "snapshots").iterdir()), "a dead run was left"
    assert not list(output.rglob("*.tmp"))


def rows_of(output: Path) -> dict[str, str]:
    """Return {id: text} of the current snapshot, each id once."""
    table = read(output, columns=["id", "text"])
    rows = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert len(rows) == len(table)
    return rows


def workers_of(process: ForkServerProcess) -> list[psutil.Process]:
    """Return the Python processes that work for a run."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [each for each in family if "python" in each.name() and "sdk_worker_main" in " ".join(each.cmdline())]


@pytest.mark.slow
def test_a_worker_process_that_is_killed_fails_the_run(tmp_path: Path) -> None:
    """The run reports the end of a worker process at once, and the next run reuses its finished files."""
    for shard in range(4):
        rows = [{"id": f"r{shard}-{n}", "text": f"text number {shard} {n}"} for n in range(500)]
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
    assert manifest["counts"]["read"] == len(ids) == len(set(ids)) == 2000
    assert not set(texts) & finished
