"""Which segments a run keeps, and the listings that workers read: what is written again grows with what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from audioclip_beam.pipeline.readers.shard import Shard
from audioclip_beam.pipeline.readers.shard_table import ShardTable
from audioclip_beam.pipeline.snapshots.listing import (
    DROPPED_SCHEMA,
    LISTED_SCHEMA,
    CarriedFile,
    read_carried,
    read_dropped,
    read_earlier,
    read_inputs,
    write_listings,
)
from audioclip_beam.pipeline.snapshots.manifest import FileInfo, Provenance
from audioclip_beam.pipeline.snapshots.read_listings import shards_to_read
from audioclip_beam.pipeline.snapshots.segments import MAX_SEGMENTS, MIN_FILL, Remainder, choose_segments


def night(sizes: list[int], new: int) -> tuple[list[int], int]:
    """Return the sizes of the segments after a night without losses, and the rows that it wrote again."""
    kept = choose_segments([Remainder(size, size) for size in sizes], new)
    again = sum(sizes) - sum(sizes[n] for n in kept)
    return [sizes[n] for n in kept] + ([again + new] if again + new else []), again


def test_ten_years_of_one_new_shard_a_night() -> None:
    """3,650 appends of equal size write 18,881 again, 5.2 times what was appended."""
    sizes, rewritten, most = list[int](), 0, 0
    for _ in range(3650):
        sizes, again = night(sizes, 1)
        rewritten, most = rewritten + again, max(most, len(sizes))
    assert sum(sizes) == 3650
    assert rewritten == 18_881
    assert most < MAX_SEGMENTS


def test_nothing_is_written_where_nothing_changed() -> None:
    assert choose_segments([Remainder(size, size) for size in (5, 3, 9)], 0) == [0, 1, 2]


def test_large_segments_are_left_alone() -> None:
    assert choose_segments([Remainder(size, size) for size in (1_000_000, 10, 300)], 50) == [0, 2]


def test_the_smallest_of_too_many_are_written_again() -> None:
    """One of sixteen must go: what is new becomes a segment."""
    full = [Remainder(16 << n, 16 << n) for n in range(MAX_SEGMENTS)]
    assert choose_segments(full, 1) == list(range(1, MAX_SEGMENTS))


def test_a_large_shard_that_changes_every_night_is_written_alone() -> None:
    """Its new rows take the place of the old ones."""
    segments = [Remainder(1_000_000, 1_000_000), Remainder(0, 1_000_000)]
    assert choose_segments(segments, 1_001_000, 1_000_000) == [0]


def test_what_is_left_of_a_segment() -> None:
    """A segment of which a quarter is left stays, and one with less is written again; of a third nothing is left."""
    segments = [Remainder(25, 100), Remainder(24, 100), Remainder(0, 100)]
    assert choose_segments(segments, 0) == [0]
    assert choose_segments(segments[::2], 0) == [0]


@given(
    segments=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=MAX_SEGMENTS),
    new=st.integers(0, 1000),
    lost=st.integers(0, 1000),
)
def test_any_segments(segments: list[tuple[int, int]], new: int, lost: int) -> None:
    """None is kept that is nearly empty or not larger than what is written, and never more than 16 are left."""
    remainders = [Remainder(size, size + lost) for size, lost in segments]
    kept = choose_segments(remainders, new, lost)
    assert all(remainders[n].size and MIN_FILL * remainders[n].size >= remainders[n].written for n in kept)
    again = sum(segment.size for n, segment in enumerate(remainders) if n not in kept)
    if new or again:
        assert all(remainders[n].size > max(0, new - lost) + again for n in kept)
        assert len(kept) < MAX_SEGMENTS
    else:
        assert kept == [n for n, segment in enumerate(remainders) if segment.size]


def test_entries_come_back_whole(tmp_path: Path) -> None:
    """Every field of a shard that is read, and of a file, whatever its value."""
    shards = [
        Shard("/c\udcff.csv", "c\\xff.csv", "csv", None, 0, "1-0-2-3", ";", "none", "\\"),
        Shard("/kept.txt", "kept.txt", "txt", None, 1, "1"),
        Shard("gs://b/ö/a.jsonl.gz", "ö/a.jsonl.gz", "jsonl", "gzip", 1 << 40, '"etag"'),
    ]
    inputs = ShardTable.of(shards).table
    for name, values in (("segment", [0, 0, 0]), ("rows", [None, 3, None]), ("without_texts", [None, 0, None])):
        inputs = inputs.append_column(name, pa.array(values, LISTED_SCHEMA.field(name).type))
    inputs = inputs.append_column("damaged", pa.nulls(3, pa.string()))
    made_by = Provenance("run", "a.pt", "0" * 64, "1.0")
    part = FileInfo(
        "part-1.parquet", 5, 99, "1" * 64, 2, "0" * 32, 1, {}, {3: 4, 77: 1}, {-64: 5}, {"files": 5}, made_by
    )
    rejected = FileInfo("rejected-1.parquet", 1, 9, "2" * 64, 1, rejected_by_reason={"empty text": 1})
    carried = [CarriedFile(part, 0, None), CarriedFile(rejected, 1, 7)]
    dropped = pa.table({"segment": [0, 0, 1], "name": ["a", "b", "c"]}).cast(DROPPED_SCHEMA)
    write_listings(str(tmp_path), inputs, ["a/part-1.parquet", "b/\udcff/part-2.parquet"], carried, dropped)
    assert read_inputs(str(tmp_path)).equals(inputs)
    assert list(shards_to_read(inputs)) == [shards[0], replace(shards[2], number=2)]
    assert list(read_earlier(str(tmp_path))) == ["a/part-1.parquet", "b/\udcff/part-2.parquet"]
    assert list(read_carried(str(tmp_path))) == carried
    assert read_dropped(str(tmp_path)).equals(dropped)


def test_empty_listings(tmp_path: Path) -> None:
    """A first run has no earlier files."""
    write_listings(str(tmp_path), LISTED_SCHEMA.empty_table())
    assert not len(read_inputs(str(tmp_path)))
    assert list(read_earlier(str(tmp_path))) == list(read_carried(str(tmp_path))) == []
    assert not pc.sum(read_dropped(str(tmp_path))["segment"]).as_py()
