"""A standalone Spark cluster: rows equal to a local run's, also when a worker is killed."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audioclip_beam.pipeline import read_and_join
from audioclip_beam.pipeline.snapshots.commit import current_name
from tests.support.commands import run_command
from tests.support.corpus import embed, write_jsonl
from tests.support.engine_jobs import WorkerHead, assert_real_heads, results, write_corpus
from tests.support.engines import job_server, page_command, wait_until
from tests.support.spark import Spark
from tests.support.tools import require

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    require("java", "mvn")
    cluster = Spark(tmp_path_factory.mktemp("spark"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.processes.stop()


def test_a_worker_is_killed_and_the_next_run_reuses_every_text(spark: Spark, tmp_path: Path) -> None:
    """Spark repeats the tasks of the dead worker; rows and vectors are a local run's in every bit."""
    shards, output = write_corpus(tmp_path / "in", 2_000), tmp_path / "out"
    first = WorkerHead(tmp_path / "first", delay=0.001)
    run = ThreadPoolExecutor(1).submit(
        embed, shards, output, first, batch_size=100, max_file_rows=100, **spark.options()
    )
    wait_until(lambda: run.done() or glob.glob(f"{output}/snapshots/*/part-*.parquet"), "files are finished", 120)
    assert not run.done(), run.exception()
    (worker, *_) = spark.processes.children("pool")
    worker.kill()
    manifest, _ = run.result(240)
    assert manifest["counts"]["reused"] == 0
    embed(shards, tmp_path / "local")
    expected = results(tmp_path / "local")
    assert results(output) == expected
    manifest, _ = embed(shards, output, WorkerHead(tmp_path / "second"), **spark.options())
    assert manifest["counts"]["embedded"] == 0
    assert results(output) == expected


def test_sounds_and_pictures_are_those_of_a_local_run(spark: Spark, tmp_path: Path) -> None:
    """By the real encoders: rows are equal, vectors within the heads' tolerance."""
    assert_real_heads(tmp_path, spark.options())


def test_the_command_of_the_page(spark: Spark, tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """It is that of docs/runners.md, with other files and addresses."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(50)])
    values = {
        "/shared/texts/*.jsonl": "a.jsonl",
        "/shared/out": "out",
        "/shared/text-head.safetensors": small_head,
        "/shared/bpe_simple_vocab_16e6.txt.gz": vocabulary,
        "JARS": job_server("Spark"),
        "8099": spark.jobs_port,
        "50000": spark.pool,
    }
    done = run_command(tmp_path, *page_command("Spark", "audioclip embed", values)[1:])
    assert done.status == 0, done.stderr
    assert "50 read = 50 embedded + 0 reused + 0 rejected" in done.stdout


def test_a_failed_run_is_reused(spark: Spark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no retry repairs fails a run at once, and the next run reuses every text that was embedded."""
    shard, output = tmp_path / "a.jsonl", tmp_path / "out"
    write_jsonl(shard, [*({"text": f"text {n}"} for n in range(40)), {"text": None}])
    with pytest.raises(RuntimeError, match=r"1 of 41 rows are rejected, more than --max_rejected 0"):
        embed(shard, output, max_rejected="0", **spark.options())
    assert current_name(str(output)) is None
    with monkeypatch.context() as patch:
        patch.setattr(read_and_join, "version", lambda name: "0.0.0")
        with pytest.raises(RuntimeError, match=r"a worker has audioclip-beam .*, and the launcher 0\.0\.0"):
            embed(shard, output, **spark.options())
    manifest, texts = embed(shard, output, **spark.options())
    assert (manifest["counts"]["reused"], texts) == (40, [])
