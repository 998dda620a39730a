"""Listings: what the launcher listed is what the workers read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from audioclip_beam.pipeline.readers.shard import Shard
from audioclip_beam.pipeline.snapshots.listing import EARLIER, SHARDS, read_listing, write_listings


def test_entries_come_back_whole(tmp_path: Path) -> None:
    """Every field of a shard, whatever its value."""
    shards = [
        Shard("gs://b/ö/a.jsonl.gz", "ö/a.jsonl.gz", "jsonl", "gzip", 1 << 40, '"etag"', None, 3),
        Shard("/c\udcff.csv", "c\\xff.csv", "csv", None, 0, "1-0-2-3", ";"),
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
