"""Rows that do not add up are not published, whichever step of the run has lost them."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.prepare.job import Job, prepare_job
from audioclip_beam.pipeline.publish.corpus import Corpus, make_corpus
from audioclip_beam.pipeline.publish.limits import check_same_rows
from audioclip_beam.pipeline.publish.publish_snapshot import PublishSnapshot
from audioclip_beam.pipeline.publish.run_totals import RunReport, RunTotals
from audioclip_beam.pipeline.readers.read_shards import ShardsRead
from audioclip_beam.pipeline.snapshots.listing import LISTED_SCHEMA, write_listings
from audioclip_beam.pipeline.snapshots.manifest import FileInfo, Manifest, Provenance
from audioclip_beam.pipeline.writers.kept_files import KeptRows
from audioclip_beam.pipeline.writers.statistics import FileStats, WrittenFile
from tests.support.corpus import write_jsonl
from tests.support.snapshots import SHARD
from tests.support.stub import StubHead

SNAPSHOT = "20260101T000000Z-0123abcd"


def read_of(*parts: tuple[int, int, int, int]) -> ShardsRead:
    """Return the report of parts of shards, each with the number of the shard, its own, all of the shard's, and its rows."""
    numbers = array("q", [number for part in parts for number in (*part, 0)])
    return ShardsRead(numbers, rows=sum(part[3] for part in parts))


READ = read_of((1, 0, 1, 3))


def file_of(rows: int, segment: int = 0) -> FileInfo:
    return FileInfo("part-0.parquet", rows, 1000, "0" * 64, segment, "0" * 32, made_by=Provenance("before"))


def written(rows: int, *, embedded: int = 3, rejected: int = 0, copied: int = 0) -> WrittenFile:
    stats = FileStats(embedded=embedded, rejected=rejected)
    return WrittenFile(file_of(rows), stats, FileStats(copied=copied))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run that reads a shard of three rows, keeps seven rows in two files, drops two, and copies four to its own files."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(3)])
    options = EmbedOptions(input=[str(tmp_path / "a.jsonl")], output=str(tmp_path / "out"))
    job = prepare_job(options, StubHead())
    known = {"without_texts": 0, "segment": 0}
    shards = [
        {**SHARD, **known, "rows": 7},
        {**SHARD, "name": "read", "segment": 1},
        {**SHARD, **known, "name": "copied", "segment": 1, "rows": 4},
    ]
    write_listings(str(tmp_path), pa.Table.from_pylist(shards, LISTED_SCHEMA))
    listed = replace(job.listed, groups=2, group_rows=8, merged_rows=5, dropped_rows=2)
    return replace(job, listed=listed, carry_over=replace(job.carry_over, written=[8]))


KEPT = [KeptRows(file_of(5), 1), KeptRows(file_of(2), 0)]


def check(tmp_path: Path, job: Job, *reports: RunReport) -> Corpus:
    return make_corpus(job, SNAPSHOT, str(tmp_path), RunTotals.of(reports), FileIO())


def test_rows_that_add_up(tmp_path: Path, job: Job) -> None:
    corpus = check(tmp_path, job, READ, written(7, copied=4), *KEPT)
    assert [(segment["shards"], segment["written"], segment["rows"]["read"]) for segment in corpus.segments] == [
        (1, 8, 7),
        (2, 7, 7),
    ]
    assert corpus.shards["rows"].to_pylist() == [7, 3, 4]
    assert [file.made_by.run for file in corpus.files] == [SNAPSHOT, "before", "before"]


@pytest.mark.parametrize(
    "report",
    [
        written(6, copied=4),
        written(7, copied=4, embedded=2),
        written(7, copied=4, rejected=1),
    ],
    ids=["the file is one row short", "one not counted", "one counted twice"],
)
def test_rows_that_do_not_add_up(tmp_path: Path, job: Job, report: WrittenFile) -> None:
    message = rf"rows do not add up: read 3, embedded {report.stats.embedded}, .*run again"
    with pytest.raises(SnapshotError, match=message):
        check(tmp_path, job, READ, report, *KEPT)


@pytest.mark.parametrize(
    ("read", "shards"),
    [
        (read_of(), 0),
        (read_of((1, 0, 1, 3), (1, 0, 1, 3)), 0),
        (read_of((1, 0, 2, 3)), 0),
        (read_of((1, 0, 2, 1), (1, 0, 2, 2)), 0),
        (read_of((1, 0, 1, 3), (0, 0, 1, 0)), 1),
    ],
    ids=["none", "one twice", "a part is missing", "one part twice", "another shard"],
)
def test_not_exactly_the_shards_that_are_to_be_read(tmp_path: Path, job: Job, read: ShardsRead, shards: int) -> None:
    with pytest.raises(SnapshotError, match=f"rows do not add up: read . from {shards} of 1 shards; run again"):
        check(tmp_path, job, read, written(7, copied=4), *KEPT)


def test_a_shard_in_parts(tmp_path: Path, job: Job) -> None:
    corpus = check(tmp_path, job, read_of((1, 1, 2, 2)), read_of((1, 0, 2, 1)), written(7, copied=4), *KEPT)
    assert corpus.shards["rows"].to_pylist() == [7, 3, 4]


@pytest.mark.parametrize(
    ("kept", "copied"),
    [
        (KEPT[:1], 4),
        ([*KEPT, KeptRows(None, 0)], 4),
        ([KeptRows(file_of(5), 0), KEPT[1]], 4),
        ([KeptRows(file_of(6), 0), KEPT[1]], 4),
        ([KeptRows(file_of(4), 2), KEPT[1]], 4),
        (KEPT, 3),
        (KEPT, 5),
    ],
    ids=[
        "one is missing",
        "one too many",
        "one lost a row",
        "one kept a row",
        "one dropped two",
        "one not copied",
        "one twice",
    ],
)
def test_files_of_the_snapshot_before(tmp_path: Path, job: Job, kept: list[KeptRows], copied: int) -> None:
    with pytest.raises(SnapshotError, match="rows do not add up: of 2 files of the previous snapshot with 8 rows, "):
        check(tmp_path, job, READ, written(3 + copied, copied=copied), *kept)


def test_a_segment_with_other_rows_than_its_shards(tmp_path: Path, job: Job) -> None:
    message = "the shards of segment 0 have 7 rows, and its files 5; run again"
    kept = [KEPT[0], replace(KEPT[1], file=file_of(2, segment=1))]
    with pytest.raises(SnapshotError, match=message):
        check(tmp_path, job, READ, written(7, copied=4), *kept)


def test_another_execution_that_rejects_more_of_as_many_rows() -> None:
    """Which vectors were reused may differ."""
    counts = {"read": 3, "embedded": 1, "reused": 2, "rejected": 0}
    published = cast(Manifest, {"snapshot": SNAPSHOT, "counts": counts})
    check_same_rows(published, RunTotals.of([READ, written(3)]))
    with pytest.raises(SnapshotError, match="3 with vectors and 0 rejected, and this execution .* has 3, 2 and 1;"):
        check_same_rows(published, RunTotals.of([READ, written(3, embedded=2, rejected=1)]))


def test_a_run_without_a_canary_is_not_published(tmp_path: Path, job: Job) -> None:
    publisher = PublishSnapshot(job, SNAPSHOT, 0.0)
    publisher.directory = str(tmp_path)
    with pytest.raises(SnapshotError, match="the canary texts were not embedded; run again"):
        list(publisher.process((None, [READ, written(7, copied=4), *KEPT])))
