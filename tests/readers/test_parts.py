"""Parts: large Parquet shards are read by row groups, small shards many at a time."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from audioclip_beam.pipeline.publish.run_totals import RunTotals
from audioclip_beam.pipeline.readers import parquet_limits, parts
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.parts import GROUP_SHARDS, group_shards, split_group
from audioclip_beam.pipeline.readers.read_shards import ReadShards, ShardsRead
from audioclip_beam.pipeline.readers.reader import GROUP_BYTES
from audioclip_beam.pipeline.readers.shard import Shard
from tests.support.corpus import embed, read
from tests.support.shards import read_settings, read_shard

ROWS, GROUPS = 1000, 10


def write_groups(path: Path) -> Path:
    """Write a file of ten row groups; among its rows are some to reject."""
    texts = [None if row % 150 == 7 else f"text number {row}" for row in range(ROWS)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=ROWS // GROUPS, use_dictionary=False)
    return path


def damage(path: Path, *numbers: int) -> None:
    """Overwrite the text of row groups."""
    data, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    for number in numbers:
        column = metadata.row_group(number).column(0)
        data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
            column.total_compressed_size
        )
    path.write_bytes(data)


def read_all(folder: Path, shards: list[Shard]) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]], RunTotals]:
    """Return the rows, the rejected rows and the totals of a pipeline that reads the shards as groups."""
    with beam.Pipeline("DirectRunner", PipelineOptions([])) as pipeline:
        result = (
            pipeline
            | beam.Create(list(group_shards(shards)), reshuffle=False)
            | ReadShards(read_settings(Fields(), pa.schema([])))
        )
        for name in ("rows", "rejected", "read"):
            _ = result[name] | f"Keep {name}" >> beam.Map(_keep, str(folder), name)
    rows, rejected = (
        {tuple(row.values()) for file in folder.glob(f"{name}-*") for row in pq.read_table(file).to_pylist()}
        for name in ("rows", "rejected")
    )
    reports = [_REPORTS.pop() for _ in range(len(_REPORTS))]
    return rows, rejected, RunTotals.of(reports)


_REPORTS: list[ShardsRead] = []


def _keep(element: pa.RecordBatch | ShardsRead, folder: str, name: str) -> None:
    if isinstance(element, ShardsRead):
        _REPORTS.append(element)
        return
    number = len(list(Path(folder).glob("*")))
    pq.write_table(pa.Table.from_batches([element]), Path(folder, f"{name}-{number}"))


@pytest.mark.parametrize("damaged", [(), (4,), (2, 7)])
def test_parts_have_the_rows_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: tuple[int, ...]
) -> None:
    """With the same ids and row numbers; a damaged row group costs its own rows, and the shard is named once."""
    damage(write_groups(tmp_path / "a.parquet"), *damaged)
    shards = find_shards([str(tmp_path / "*.parquet")])
    whole = [read_shard(shard, Fields(), pa.schema([])) for shard in shards]
    expected = {tuple(row.values()) for batches in whole for rows, _ in batches for row in rows.to_pylist()}
    monkeypatch.setattr(parts, "PART_BYTES", shards[0].bytes // 5)
    (tmp_path / "read").mkdir()
    rows, rejected, totals = read_all(tmp_path / "read", shards)
    assert len(totals.parts) > 3 * 5
    assert rows == expected
    assert totals.read == len(rows) + len(rejected)
    assert totals.by_shard(1)[2].tolist() == [True]
    reasons = {shard: reason.partition(":")[0] for shard, (_, reason) in totals.damage.items()}
    assert reasons == ({0: f"row group {damaged[0]} of 10"} if damaged else {})
    assert len([row for row in rejected if row[4] == "damaged shard"]) == len(damaged)


@pytest.mark.slow
def test_a_run_over_parts_publishes_what_a_run_over_the_whole_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts and rows are the same."""
    path = write_groups(tmp_path / "a.parquet")
    whole, _ = embed(path, tmp_path / "whole")
    monkeypatch.setattr(parts, "PART_BYTES", path.stat().st_size // 5)
    split, _ = embed(path, tmp_path / "split")
    assert split["counts"] == whole["counts"]
    assert read(tmp_path / "split").equals(read(tmp_path / "whole"))


def test_the_parts_of_a_shard_cover_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row group is in one part, with the number of its first row; a small or damaged file is one part."""
    path = write_groups(tmp_path / "a.parquet")
    (shard,) = find_shards([str(path)])
    assert [
        (part.first, part.end, part.parts) for (part,) in split_group([shard], read_settings(Fields(), pa.schema([])))
    ] == [(0, None, 1)]
    monkeypatch.setattr(parts, "PART_BYTES", shard.bytes // 5)
    found = [part for (part,) in split_group([shard], read_settings(Fields(), pa.schema([])))]
    assert [part.number for part in found] == list(range(found[0].parts))
    assert [part.first for part in found] == [0, *(part.end for part in found[:-1])]
    assert [part.row for part in found] == [part.first * ROWS // GROUPS for part in found]
    assert found[-1].end == GROUPS
    path.write_bytes(path.read_bytes()[:-9])
    (shard,) = find_shards([str(path)])
    assert [
        (part.first, part.end, part.parts) for (part,) in split_group([shard], read_settings(Fields(), pa.schema([])))
    ] == [(0, None, 1)]


def test_the_footer_is_parsed_once_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part parses its own row groups only: all of them for each part would take quadratic time."""
    parsed, column = list[int](), parquet_limits.Column

    def count(start: int, *others: Any) -> parquet_limits.Column:
        parsed.append(start)
        return column(start, *others)

    path = write_groups(tmp_path / "a.parquet")
    monkeypatch.setattr(parts, "PART_BYTES", path.stat().st_size // 5)
    monkeypatch.setattr(parquet_limits, "Column", count)
    _, _, totals = read_all(tmp_path, find_shards([str(path)]))
    assert len(totals.parts) > 3 * 5
    assert len(parsed) == 2 * GROUPS  # when the shard is split, and when its parts are read


@pytest.mark.parametrize(
    ("read_parts", "shards"),
    [
        ([(0, 0, 3), (0, 2, 3), (0, 1, 3), (1, 0, 1)], [True, True]),
        ([(0, 0, 3), (0, 2, 3), (1, 0, 1)], [False, True]),
        ([(0, 0, 3), (0, 1, 3), (1, 0, 1)], [False, True]),
        ([(0, 0, 3), (0, 0, 3), (0, 2, 3), (1, 0, 1)], [False, True]),
        ([(0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 1), (1, 0, 1)], [True, False]),
    ],
    ids=["all", "middle lost", "end lost", "one twice for another", "one twice"],
)
def test_a_shard_counts_if_all_its_parts_were_read_once(
    read_parts: list[tuple[int, int, int]], shards: list[bool]
) -> None:
    """Whichever step reported them."""
    numbers = array("q", [number for part in read_parts for number in (*part, 7, 1)])
    reports = [ShardsRead(parts=numbers[:10]), ShardsRead(parts=numbers[10:])]
    rows, without_texts, whole = RunTotals.of(reports).by_shard(2)
    assert whole.tolist() == shards
    assert rows.sum() == 7 * without_texts.sum() == 7 * len(read_parts)


def test_a_lost_part_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that were read and written are equally many, and still nothing is published."""
    path = write_groups(tmp_path / "a.parquet")
    monkeypatch.setattr(parts, "PART_BYTES", path.stat().st_size // 5)
    whole = split_group
    monkeypatch.setattr(
        "audioclip_beam.pipeline.readers.read_shards.split_group", lambda *given: list(whole(*given))[:-1]
    )
    with pytest.raises(RuntimeError, match="rows do not add up: read [0-9]+ from 0 of 1 shards"):
        embed(path, tmp_path / "out")
    assert not (tmp_path / "out/current.json").exists()


def test_small_shards_are_grouped_in_order() -> None:
    """Up to a number and a size; a large one is alone."""

    def shard(number: int, size: int) -> Shard:
        return Shard(f"{number}.txt", f"{number}.txt", "txt", None, size, "v")

    shards = [shard(number, 1) for number in range(GROUP_SHARDS + 1)]
    assert list(group_shards(shards)) == [shards[:-1], shards[-1:]]
    sizes = [GROUP_BYTES // 2, GROUP_BYTES // 2, 1, GROUP_BYTES + 1, 1]
    shards = [shard(number, size) for number, size in enumerate(sizes)]
    assert list(group_shards(shards)) == [shards[:2], shards[2:3], shards[3:4], shards[4:]]
    assert list(group_shards([])) == []


def test_many_small_shards_make_few_batches(tmp_path: Path) -> None:
    """Each row keeps its shard and number, rejected ones too."""
    for number in range(50):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number}\n\nother {number}\n")
    (tmp_path / "read").mkdir()
    rows, rejected, totals = read_all(tmp_path / "read", find_shards([str(tmp_path / "*.txt")]))
    assert len(list((tmp_path / "read").glob("rows-*"))) == 1
    assert {row[:2] for row in rows} == {(f"{number:02}.txt", row) for number in range(50) for row in (0, 2)}
    assert {row[:2] for row in rejected} == {(f"{number:02}.txt", "1") for number in range(50)}
    assert (len(totals.parts) // 5, totals.read) == (50, 150)


@pytest.mark.slow
def test_time_grows_with_the_number_of_small_files(tmp_path: Path) -> None:
    """Four times as many files take at most 4.5 times as long, start included."""
    seconds = []
    for count in (1000, 4000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.txt").write_text(f"text number {number}\n")
        began = time.process_time()
        manifest, _ = embed(f"{folder}/*.txt", tmp_path / f"out-{count}")
        seconds.append(time.process_time() - began)
        assert manifest["counts"]["read"] == count
    assert seconds[1] < 4.5 * seconds[0]
