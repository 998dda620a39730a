"""ReadShards as a step of a pipeline: what it reports of each shard."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.read_shards import ReadShards, ShardsRead
from tests.support.shards import read_settings


def test_damaged_shards_are_reported(tmp_path: Path) -> None:
    """With the rows that were read, the rejected one included, and the reason; a complete shard has no reason."""
    (tmp_path / "good.txt").write_text("a\nb\n")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"a\nb\nc\n")[:-9])
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "utf16.txt").write_bytes("a\n".encode("utf-16"))
    pq.write_table(pa.table({"text": ["a"] * 9}), tmp_path / "rows.parquet")
    data = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "footer.parquet").write_bytes(data[:-1])
    shards = find_shards([f"{tmp_path}/*"])
    with beam.Pipeline("DirectRunner", PipelineOptions([])) as pipeline:
        result = (
            pipeline
            | beam.Create([[replace(shard, number=number)] for number, shard in enumerate(shards)])
            | ReadShards(read_settings(Fields(), pa.schema([])))
        )
        expected = [
            ("good.txt", 2, ""),
            ("rows.parquet", 9, ""),
            ("cut.txt.gz", 4, "gzip: the compressed"),
            ("empty.parquet", 1, "parquet: Parquet fil"),
            ("footer.parquet", 1, "parquet: Parquet mag"),
            ("utf16.txt", 1, "the text is UTF-16 a"),
        ]
        names = [shard.name for shard in shards]
        expected_numbers = [(names.index(name), rows, reason) for name, rows, reason in expected]
        assert_that(result.read | beam.Map(_summary), equal_to(expected_numbers))


def _summary(read: ShardsRead) -> tuple[int, int, str]:
    """Return (shard, rows, beginning of the reason) of the result of one shard."""
    shard, *part = read.parts
    assert part == [0, 1, read.rows, 0]
    assert all(damaged[::2] == (shard, 0) for damaged in read.damaged)
    return shard, read.rows, "".join(reason for *_, reason in read.damaged)[:20]
