"""Which segments a run carries over, and the listings that workers read: what is rewritten grows with what changed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioclip_beam.pipeline.readers.shard import Shard
from audioclip_beam.pipeline.snapshots.listing import EARLIER, SHARDS, read_listing, write_listings
from audioclip_beam.pipeline.snapshots.segments import MAX_SEGMENTS, choose_segments


def night(sizes: list[int], changed: int, whole: list[bool] | None = None) -> tuple[list[int], int]:
    """Return the sizes of the segments after a night, and the bytes of unchanged shards that it read again."""
    carried = choose_segments(sizes, whole or [True] * len(sizes), changed)
    again = sum(sizes) - sum(sizes[n] for n in carried)
    return [sizes[n] for n in carried] + [size for size in (again, changed) if size], again


def test_ten_years_of_one_new_shard_a_night() -> None:
    """3,650 appends of equal size read 23,695 again, 6.5 times what was appended."""
    sizes, rewritten, most = list[int](), 0, 0
    for _ in range(3650):
        sizes, again = night(sizes, 1)
        rewritten, most = rewritten + again, max(most, len(sizes))
    assert sum(sizes) == 3650
    assert rewritten == 23_695
    assert most == 12 < MAX_SEGMENTS


def test_shard_that_grows_every_night_is_soon_alone() -> None:
    sizes, again = night([2000], 101, [False])  # one of 20 shards changed, in the only segment
    assert (sizes, again) == ([2000, 101], 2000)
    sizes, again = night([1900, 0], 102, [True, False])  # its own segment has no unchanged shard
    assert (sizes, again) == ([1900, 102], 0)


def test_nothing_is_read_where_nothing_changed() -> None:
    assert choose_segments([5, 3, 9], [True, True, True], 0) == [0, 1, 2]


def test_large_segments_are_left_alone() -> None:
    assert choose_segments([1_000_000, 10, 300], [True, True, True], 50) == [0, 2]


def test_the_smallest_of_too_many_are_read_again() -> None:
    """Two of sixteen must go: the changed shard becomes one segment, and the shards that are read again another."""
    assert choose_segments([16 << n for n in range(MAX_SEGMENTS)], [True] * MAX_SEGMENTS, 1) == list(range(2, 16))


@given(
    segments=st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=MAX_SEGMENTS),
    changed=st.integers(0, 1000),
)
def test_any_segments(segments: list[tuple[int, bool]], changed: int) -> None:
    """Only whole segments are carried over, none that is not larger than what is read, and never more than 16 are left."""
    sizes, whole = [size for size, _ in segments], [whole for _, whole in segments]
    carried = choose_segments(sizes, whole, changed)
    assert all(whole[n] for n in carried)
    read = changed + sum(size for n, size in enumerate(sizes) if n not in carried)
    if read:
        assert all(sizes[n] > read for n in carried)
        written = bool(changed) + (len(carried) < len(sizes))
        assert len(carried) + written <= MAX_SEGMENTS
    else:
        assert carried == [n for n in range(len(sizes)) if whole[n]]


def test_entries_come_back_whole(tmp_path: Path) -> None:
    """Every field of a shard, whatever its value."""
    shards = [
        Shard("gs://b/ö/a.jsonl.gz", "ö/a.jsonl.gz", "jsonl", "gzip", 1 << 40, '"etag"', segment=3),
        Shard("/c\udcff.csv", "c\\xff.csv", "csv", None, 0, "1-0-2-3", ";", "none", "\\"),
    ]
    assert all(len({getattr(shard, field.name) for shard in shards}) == 2 for field in fields(Shard))
    write_listings(str(tmp_path), shards, ["a/part-1.parquet", "b/\udcff/part-2.parquet"])
    assert list(read_listing(str(tmp_path / SHARDS))) == shards
    assert list(read_listing(str(tmp_path / EARLIER))) == ["a/part-1.parquet", "b/\udcff/part-2.parquet"]


def test_local_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has another current directory than the launcher."""
    monkeypatch.chdir(tmp_path)
    write_listings(str(tmp_path), [Shard("a/../b.txt", "b.txt", "txt", None, 0, "1")], [])
    assert [shard.path for shard in read_listing(str(tmp_path / SHARDS))] == [str(tmp_path / "b.txt")]


def test_empty_listings(tmp_path: Path) -> None:
    """A first run has no earlier files."""
    write_listings(str(tmp_path), [], [])
    assert list(read_listing(str(tmp_path / SHARDS))) == list(read_listing(str(tmp_path / EARLIER))) == []
