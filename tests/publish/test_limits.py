"""Rows that do not add up are not published, whichever step of the run has lost them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.prepare.job import Job, prepare_job
from audioclip_beam.pipeline.publish.limits import check_same_rows, check_totals
from audioclip_beam.pipeline.publish.publish_snapshot import PublishSnapshot
from audioclip_beam.pipeline.publish.run_totals import RunReport, RunTotals
from audioclip_beam.pipeline.readers.read_shards import ShardsRead
from audioclip_beam.pipeline.snapshots.manifest import FileInfo, ListingInfo, Manifest
from audioclip_beam.pipeline.snapshots.segments import Segment
from audioclip_beam.pipeline.writers.carried_files import CarriedFile
from audioclip_beam.pipeline.writers.statistics import FileStats, WrittenFile
from tests.support.corpus import write_jsonl
from tests.support.stub import StubHead

READ = ShardsRead([("a.jsonl", 0, 1)], rows=3)


def file_of(rows: int, segment: int = 0) -> FileInfo:
    return FileInfo("part-0.parquet", rows, 1000, "0" * 64, segment, "0" * 32)


def written(rows: int, segment: int = 0, *, embedded: int = 3, rejected: int = 0) -> WrittenFile:
    return WrittenFile(file_of(rows, segment), FileStats(embedded=embedded, rejected=rejected))


def segment_of(rows: int) -> Segment:
    counts = {"read": rows, "vectors": rows, "rejected": 0, "truncated": 0, "without_texts": 0}
    return cast(Segment, {"shards": 1, "damaged": {}, "rows": {**counts, "rejected_by_reason": {}}})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run that reads one shard of three rows, and carries over two files of seven rows."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(3)])
    options = EmbedOptions(input=[str(tmp_path / "a.jsonl")], output=str(tmp_path / "out"))
    job = prepare_job(options, StubHead())
    return replace(job, carried_files=2, carry_over=replace(job.carry_over, segments=[segment_of(7)]))


def check(job: Job, *reports: RunReport) -> None:
    check_totals(job, RunTotals.of(reports), [segment_of(7), segment_of(3)], directory="out")


CARRIED = [CarriedFile(file_of(5)), CarriedFile(file_of(2))]


def test_rows_that_add_up(job: Job) -> None:
    check(job, READ, written(3), *CARRIED)


@pytest.mark.parametrize(
    "report",
    [
        written(2),
        written(3, segment=1),
        written(3, embedded=2),
        written(3, rejected=1),
    ],
    ids=["the file is one row short", "another segment", "one not counted", "one counted twice"],
)
def test_rows_that_do_not_add_up(job: Job, report: WrittenFile) -> None:
    message = rf"rows do not add up: read 3 from 1 of 1 shards, embedded {report.stats.embedded}, .*run again"
    with pytest.raises(SnapshotError, match=message):
        check(job, READ, report, *CARRIED)


@pytest.mark.parametrize(
    ("rows", "files"),
    [([5], 1), ([7], 1), ([5, 1], 2), ([5, 2, 2], 3)],
    ids=["one is missing", "one has the rows of both", "one has other rows", "one twice"],
)
def test_files_that_are_not_all_that_is_carried_over(job: Job, rows: list[int], files: int) -> None:
    with pytest.raises(SnapshotError, match=f"{files} files with .* were carried over, and not 2 with .*; run again"):
        check(job, READ, written(3), *(CarriedFile(file_of(n)) for n in rows))


def test_another_execution_that_rejects_more_of_as_many_rows() -> None:
    """Which vectors were reused may differ."""
    counts = {"read": 3, "embedded": 1, "reused": 2, "rejected": 0}
    published = cast(Manifest, {"snapshot": "20260101T000000Z-0123abcd", "counts": counts})
    check_same_rows(published, RunTotals.of([READ, written(3)]))
    with pytest.raises(SnapshotError, match="3 with vectors and 0 rejected, and this execution .* has 3, 2 and 1;"):
        check_same_rows(published, RunTotals.of([READ, written(3, embedded=2, rejected=1)]))


def test_a_run_without_a_canary_is_not_published(job: Job) -> None:
    job = replace(job, carried_files=0, carry_over=replace(job.carry_over, segments=[]))
    publisher = PublishSnapshot(job, "20260101T000000Z-0123abcd", ListingInfo(name="", entries=1, sha256=""), 0.0)
    with pytest.raises(SnapshotError, match="the canary texts were not embedded; run again"):
        list(publisher.process((None, [READ, written(3)])))
