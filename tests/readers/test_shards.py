"""The shards that globs match, their names and formats, and the errors of globs that match none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "top.txt",
        "a/1.txt",
        "a/2.jsonl.gz",
        "a/b/1.txt",
        "c/1.txt",
        "c/[k].txt",
        "c/notes.doc",
        "README",
        "a.parquet.gz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x\n")
    return tmp_path


def names(*patterns: object, input_format: str | None = None) -> list[str]:
    return [shard.name for shard in find_shards([str(pattern) for pattern in patterns], input_format)]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_names_are_paths_below_the_fixed_part_of_the_glob(tree: Path) -> None:
    """They do not change if a folder above moves."""
    assert names(tree / "*/1.txt") == ["a/1.txt", "c/1.txt"]
    assert names(tree / "a/*") == ["1.txt", "2.jsonl.gz"]
    assert names(tree / "a/1.txt") == ["1.txt"]
    assert names(tree / "a/[12].*") == ["1.txt", "2.jsonl.gz"]


def test_a_file_that_two_patterns_match_is_read_once(tree: Path) -> None:
    """The first pattern that matches it names it."""
    assert names(tree / "*.txt", tree / "top.txt", tree / "**/1.txt", tree / "a/1.txt") == [
        "a/1.txt",
        "a/b/1.txt",
        "c/1.txt",
        "top.txt",
    ]


def test_a_name_with_brackets_or_bytes_that_are_not_utf8(tree: Path) -> None:
    """A file of exactly the given name is that file; names are part of ids, so they are always valid text."""
    assert names(tree / "c/[k].txt") == ["[k].txt"]
    (tree / "d").mkdir()
    with open(os.fsencode(tree / "d") + b"/n\xff.txt", "wb"):
        assert names(tree / "d/*") == ["n\\udcff.txt"]


def test_formats_go_by_suffix(tmp_path: Path) -> None:
    """Upper case too; --input_format comes first."""
    cases = {
        ("a.txt", None): ("txt", None),
        ("A.JSONL.GZ", None): ("jsonl", "gzip"),
        ("a.b.csv.zst", None): ("csv", "zstd"),
        ("a.log.xz", "txt"): ("txt", "xz"),
        ("part-00000", "parquet"): ("parquet", None),
        ("a.ndjson", None): ("jsonl", None),
        ("b.ndjson.gzip", None): ("jsonl", "gzip"),
        ("C.csv.GZIP", None): ("csv", "gzip"),
    }
    for (name, input_format), expected in cases.items():
        (tmp_path / name).touch()
        (shard,) = find_shards([str(tmp_path / name)], input_format)
        assert (shard.format, shard.compression) == expected


def test_inputs_that_cannot_be_found_or_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the input and similar files."""
    message = refusal(lambda: names(tree / "a/1.tx"))
    assert message == f"--input {tree}/a/1.tx matches no file; {tree}/a contains 1.txt, ..."
    assert refusal(lambda: names(tree / "nope/*.txt")).startswith(f"--input {tree}/nope/*.txt matches no file; {tree} ")
    message = refusal(lambda: names(tree / "a"))
    assert message == f"--input {tree}/a matches no file; it is a directory: name its files, as in '{tree}/a/*'"
    message = refusal(lambda: names(tree / "c/notes.doc"))
    assert message == (
        f"{tree}/c/notes.doc: .doc is not a known format; known are .txt, .jsonl, .csv, .tsv, .parquet, .ndjson, "
        "most also compressed as .gz, .bz2, .zst, .xz, .gzip: name it with --input_format"
    )
    assert "no suffix is not a known format" in refusal(lambda: names(tree / "README"))
    assert "compressed inside only" in refusal(lambda: names(tree / "a.parquet.gz"))
    # As root, permissions forbid nothing.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert (
        refusal(lambda: names(tree / "top.txt"))
        == f"{tree}/top.txt cannot be read: give read permission, or leave it out"
    )


def test_a_known_shard_keeps_its_name(tmp_path: Path) -> None:
    """When a glob widens or inputs are added or reordered, only new shards get names, by the globs as they are now."""
    for name in ("a/x.txt", "a/y.txt", "b/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    known = {shard.path: shard.name for shard in find_shards([f"{tmp_path}/a/*.txt"])}
    assert list(known.values()) == ["x.txt", "y.txt"]
    for patterns in (["*/*.txt"], ["*/*.txt", "a/*.txt"], ["a/*.txt", "*/*.txt"]):
        shards = find_shards([f"{tmp_path}/{pattern}" for pattern in patterns], known=known)
        assert [shard.name for shard in shards] == ["x.txt", "y.txt", "b/x.txt"]
    with pytest.raises(InputError, match=r"would both be named 'x\.txt' in ids"):
        find_shards([f"{tmp_path}/b/*.txt", f"{tmp_path}/a/*.txt"], known=known)


def test_a_known_name_that_another_shard_needs_is_given_up(tmp_path: Path) -> None:
    """The shard is then named by its glob, and so on for the shard that had this name; others keep theirs."""
    for name in ("a/x.txt", "a/y.txt", "a/a/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    known = {shard.path: shard.name for shard in find_shards([f"{tmp_path}/a/**.txt"])}
    assert list(known.values()) == ["a/x.txt", "x.txt", "y.txt"]
    (tmp_path / "x.txt").touch()
    shards = find_shards([f"{tmp_path}/**/*.txt"], known=known)
    assert {shard.path.removeprefix(f"{tmp_path}/"): shard.name for shard in shards} == {
        "a/a/x.txt": "a/a/x.txt",
        "a/x.txt": "a/x.txt",
        "a/y.txt": "y.txt",
        "x.txt": "x.txt",
    }
    again = find_shards([f"{tmp_path}/**/*.txt"], known={shard.path: shard.name for shard in shards})
    assert again == shards
