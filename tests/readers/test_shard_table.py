"""Shards in an Arrow table, which of them did not change, and that a listing makes no object for each."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.readers.globs import glob_regex
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import Shard
from audioclip_beam.pipeline.readers.shard_table import SHARD_SCHEMA, ShardTable, unchanged_places

SHARD = Shard("/in/a.txt", "a.txt", "txt", None, 4, "12-4-500-600")

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
shards = st.lists(
    st.builds(
        Shard,
        path=st.binary(min_size=1, max_size=6).map(os.fsdecode),
        name=words,
        format=st.sampled_from(["txt", "csv"]),
        compression=st.none() | words,
        bytes=st.integers(0, 1 << 50),
        version=words,
        delimiter=st.none() | words,
        quoting=st.none() | words,
        escape=st.none() | words,
    ),
    max_size=9,
)


@settings(deadline=None)
@given(shards, st.slices(9))
def test_a_table_is_a_sequence_of_its_shards(rows: list[Shard], part: slice) -> None:
    """By iteration, by place and in part, whatever bytes are in a path."""
    table = ShardTable.of(rows)
    assert table.table.schema == SHARD_SCHEMA
    table.table.validate(full=True)
    assert (len(table), list(table), list(table[part])) == (len(rows), rows, rows[part])
    assert [table[at] for at in range(-len(rows), len(rows))] == [*rows, *rows]
    assert table == rows
    assert table == ShardTable.of(rows)
    assert table != [*rows, SHARD]
    assert list(table.with_formats(["csv"])) == [row for row in rows if row.format == "csv"]
    assert [os.fsencode(row.path) for row in table.sorted()] == sorted(os.fsencode(row.path) for row in rows)
    with pytest.raises(IndexError):
        table[len(rows)]


@settings(deadline=None)
@given(shards, shards)
def test_which_shards_are_unchanged(now: list[Shard], before: list[Shard]) -> None:
    """Those that equal an earlier one in everything; the answer names its row."""
    before = list({row.path: row for row in [*before, *now[::2]]}.values())
    places = unchanged_places(ShardTable.of(now).table, ShardTable.of(before).table)
    assert places.type == pa.int32()
    assert places.to_pylist() == [before.index(row) if row in before else None for row in now]


@pytest.mark.parametrize("name", SHARD_SCHEMA.names)
def test_each_column_counts(name: str) -> None:
    """A change of one, to a value or to none, is a change of the shard."""
    before = replace(SHARD, compression="gzip", delimiter=";", quoting="none", escape="|")
    other = {"bytes": 5, "path": "/in/b.txt"}.get(name, "other")
    for now in [
        replace(before, **{name: other}),
        *([replace(before, **{name: None})] if name in "compression" else []),
    ]:
        for compare in ("version", "size_mtime"):
            assert unchanged_places(ShardTable.of([now]).table, ShardTable.of([before]).table, compare).to_pylist() == [
                None
            ]


@pytest.mark.parametrize(
    ("version", "other", "is_same"),
    [
        ("12-4-500-600", "99-4-500-777", True),
        ("12-4-500-600", "12-5-500-600", False),
        ("12-4-500-600", "12-4-501-600", False),
        ("12-4--500-600", "1-4--500--1", True),  # before 1970
        ("12-4--500-600", "12-4-500-600", False),
        ("1733011200.0", "1733011200.5", False),
        ('"0123-4"', '"9123-4"', False),  # an ETag
        ("1733011200123456", "1733011200123457", False),  # a generation
    ],
)
def test_size_and_time_of_change_alone(version: str, other: str, is_same: bool) -> None:
    """--compare size_mtime needs nothing that earlier listings do not have, and leaves the versions of object stores."""
    tables = [ShardTable.of([replace(SHARD, version=each)]).table for each in (version, other)]
    assert unchanged_places(*tables, "size_mtime").to_pylist() == ([0] if is_same else [None])
    assert unchanged_places(*tables).to_pylist() == [None]


def test_a_listing_makes_no_object_for_each_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a Shard nor a status stays; each folder is read once, and each file looked at once."""
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(50):
            (tmp_path / folder / f"{number}.txt").touch()
    scans, plain = list[str](), os.scandir

    def scandir(path: str) -> object:
        scans.append(os.fspath(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for function in ("stat", "lstat", "access"):
        monkeypatch.setattr(os, function, _counted(getattr(os, function), calls := list[str]()))
        found = find_shards([f"{tmp_path}/**/*.txt"])
        assert len(calls) < 10, function
    assert len(found) == 100
    assert sorted(map(os.path.abspath, scans)) == sorted([str(tmp_path / name) for name in ("", "a", "b", "b/c")] * 3)
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Shard | os.stat_result | os.DirEntry)]


def _counted(function: Callable[..., object], calls: list[str]) -> Callable[..., object]:
    def call(path: str, *arguments: object, **options: object) -> object:
        calls.append(os.fspath(path))
        return function(path, *arguments, **options)

    return call


def test_known_names_as_a_table(tmp_path: Path) -> None:
    """As they are listed beside a snapshot; a path may have any bytes."""
    for name in (b"x\xff.txt", b"y.txt", b"z.txt"):
        (tmp_path / os.fsdecode(name)).touch()
    shards = find_shards([f"{tmp_path}/*.txt"])
    known = ShardTable.of([replace(shard, name=f"in/{shard.name}") for shard in shards[:2]])
    assert [shard.name for shard in find_shards([f"{tmp_path}/*.txt"], known=known.table)] == [
        "in/x\\udcff.txt",
        "in/y.txt",
        "z.txt",
    ]


def test_paths_are_absolute_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the globs were: the next night may run in another folder."""
    (tmp_path / "in").mkdir()
    (tmp_path / "work").mkdir()
    for name in ("in/a.txt", "in/b.txt", "work/c.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "work")
    shards = find_shards(["c.txt", "../in/*.txt"])
    assert [shard.path for shard in shards] == [f"{tmp_path}/{name}" for name in ("in/a.txt", "in/b.txt", "work/c.txt")]
    assert [shard.name for shard in shards] == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize(
    ("glob", "matched", "others"),
    [
        ("a/[b-d]?.txt", ["a/bx.txt"], ["a/b/.txt", "a/ex.txt", "a/bx.txt2"]),
        ("**/*.txt", ["a.txt", "x/y/a.txt"], ["a.csv"]),
        ("a**b", ["ab", "a/x/b"], ["ac"]),
        ("x[!a].t", ["xb.t", "x^.t"], ["x/.t", "xa.t"]),
        ("x[]].t", ["x].t"], ["x.t"]),
        ("x[.t", ["x[.t"], ["x.t"]),
    ],
)
def test_the_regular_expression_of_a_glob(glob: str, matched: list[str], others: list[str]) -> None:
    """`*`, `?` and `[...]` stop at a slash, and `**` does not."""
    assert all(map(glob_regex(glob).match, matched))
    assert not any(map(glob_regex(glob).match, others))
