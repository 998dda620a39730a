"""A standalone Spark cluster: rows equal to a local run's, also when a worker is killed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.corpus import embed
from tests.support.engine_jobs import WorkerHandler, results, write_corpus
from tests.support.engines import require, wait_until
from tests.support.spark import Spark

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
    first = WorkerHandler(tmp_path / "first", delay=0.001)
    run = ThreadPoolExecutor(1).submit(
        embed, shards, output, first, batch_size=100, max_file_rows=100, **spark.options()
    )
    wait_until(lambda: run.done() or list(output.glob("snapshots/*/part-*.parquet")), "files are finished", 120)
    assert not run.done(), run.exception()
    (worker, *_) = spark.processes.children("pool")
    worker.kill()
    manifest, _ = run.result(240)
    assert manifest["counts"]["reused"] == 0
    embed(shards, tmp_path / "local")
    expected = results(tmp_path / "local")
    assert results(output) == expected
    manifest, _ = embed(shards, output, WorkerHandler(tmp_path / "second"), **spark.options())
    assert manifest["counts"]["embedded"] == 0
    assert results(output) == expected
