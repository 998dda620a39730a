"""Part files that cannot be finished, of which nothing stays, and files of rows that come one by one."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest

from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.embedded_batch import EmbeddedBatch
from audioclip_beam.pipeline.io.filesystem import AtomicFile
from audioclip_beam.pipeline.schemas import part_schema
from audioclip_beam.pipeline.snapshots.commit import OF_AN_ENDED_RUN, remove_strays
from audioclip_beam.pipeline.writers.parquet_file import ParquetFileWriter
from audioclip_beam.pipeline.writers.write_files import WriteFiles
from tests.support.shards import REJECTED
from tests.support.snapshots import random_batches


def test_a_bundle_that_is_run_again_leaves_its_own_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first one, whose file could not get its name, nothing is left."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    write, batches = WriteFiles(str(tmp_path), TEXT, part_schema(TEXT, 8), 100_000), [*random_batches(100, 8)]
    write.setup()
    write.start_bundle()
    list(write.process(EmbeddedBatch(batches[0])))
    with monkeypatch.context() as patch:
        patch.setattr(AtomicFile, "commit", fail)
        with pytest.raises(Exception, match="Input/output error"):
            list(write.finish_bundle())
    write.start_bundle()
    list(write.process(EmbeddedBatch(batches[0])))
    (written,) = [value.value for value in write.finish_bundle()]
    write.teardown()
    assert [path.name for path in tmp_path.iterdir()] == [written.file.name]


def test_a_file_of_a_killed_worker_is_removed_when_the_run_is_published(tmp_path: Path) -> None:
    """The worker could not remove it, nor its report for a launcher that was killed; the files that are named stay."""
    for name in ("part-1.parquet", "part-2.parquet", ".part-3.parquet.tmp", ".rejected-4.parquet.tmp", "manifest.json"):
        (tmp_path / name).touch()
    for name in ("_worker-1.json", "_error-2.json", "_worker-3.json.4-abc.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "content-5.tmp").touch()
    remove_strays(str(tmp_path), {"part-1.parquet"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["content-5.tmp", "manifest.json", "part-1.parquet"]
    remove_strays(str(tmp_path), {"part-1.parquet"}, OF_AN_ENDED_RUN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "part-1.parquet"]


def test_rows_that_come_one_by_one_cost_what_rows_cost(tmp_path: Path) -> None:
    """As rejected rows of many shards can: the size of a row group is not added up again for each batch."""
    row = dict.fromkeys(REJECTED.names, "a")
    batch = pa.RecordBatch.from_pylist([row], REJECTED)
    writer = ParquetFileWriter(str(tmp_path), "rejected-1.parquet", REJECTED, {})
    start = time.monotonic()
    for _ in range(4000):
        writer.add(batch)
    assert time.monotonic() - start < 2
    assert writer.finish().rows == 4000
