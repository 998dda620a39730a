"""The files that globs match: on a local disk, by URLs, and in object stores."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from audioclip_beam.pipeline.readers.input_files import check_outside, find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support import object_stores
from tests.support.commands import run_command
from tests.support.corpus import read
from tests.support.object_stores import Store

store = object_stores.store

FILES = ["top.txt", "s1/a.txt", "s1/t/b.txt", "s2/c.txt", "s2/c.jsonl", ".hidden/d.txt", "s1/.e.txt"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory of shards, which is also the current one."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*patterns: object) -> list[str]:
    return [shard.name for shard in find_shards(list(map(str, patterns)))]


@pytest.mark.usefixtures("tree")
def test_a_wildcard_in_the_first_component() -> None:
    """Relative globs match below the current directory, and the whole path is the name."""
    assert names("*.txt") == ["top.txt"]
    assert names("s*/*.txt") == ["s1/.e.txt", "s1/a.txt", "s2/c.txt"]
    assert names("s?/[ab].txt") == ["s1/a.txt"]
    assert names("./s*/a.txt") == ["s1/a.txt"]
    assert names("s1/../s*/a.txt") == ["s1/a.txt"]
    assert names("top.txt") == ["top.txt"]


def test_two_stars_match_any_number_of_directories(tree: Path) -> None:
    """As a whole component they also match no directory; within a component they match any characters."""
    everything = [name for name in sorted(FILES) if name.endswith(".txt")]
    assert names("**/*.txt") == names(f"{tree}/**/*.txt") == names("**.txt") == names(f"{tree}/**.txt") == everything
    assert names("s1/**") == [".e.txt", "a.txt", "t/b.txt"]
    assert names(f"{tree}/s**b.txt") == ["s1/t/b.txt"]
    assert names("**/t/**/b.txt") == ["s1/t/b.txt"]
    assert names("s1/") == [".e.txt", "a.txt"]


def test_devices_and_sockets_are_refused(tree: Path) -> None:
    """They might have no end; named pipes are read, and so is standard input if it is a pipe or a file."""
    (tree / "zero.txt").symlink_to("/dev/zero")
    for pattern in ("zero.txt", "*.txt"):
        with pytest.raises(InputError, match=r"^zero\.txt is a device or a socket, .*: leave it out$"):
            names(pattern)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.jsonl")
        with pytest.raises(InputError, match=r"^a\.jsonl is a device or a socket"):
            names("*.jsonl")
    os.mkfifo("pipe.csv")
    assert names("*.csv") == ["pipe.csv"]


def test_links_are_followed_but_not_by_two_stars(tree: Path) -> None:
    """A circle of links has no end."""
    (tree / "s1/circle").symlink_to(tree / "s1")
    assert names("s1/**/a.txt") == ["a.txt"]
    (tree / "linked").symlink_to(tree / "s2")
    assert names("link*/c.txt") == ["linked/c.txt"]
    (tree / "s2/lost.txt").symlink_to("missing")
    with pytest.raises(InputError, match=r"--input s2/\*\.txt cannot be listed: s2/lost\.txt: No such file"):
        names("s2/*.txt")


def test_one_file_in_three_spellings_is_read_once(tree: Path) -> None:
    """The first glob that matches it names it, whether by another path, a URL or a link."""
    (tree / "link.txt").symlink_to("s1/a.txt")
    spellings = ["s*/a.txt", "./s1/a.txt", tree / "s1/a.txt", f"file://{tree}/s1/a.txt", "s2/../s1/a.txt", "link.txt"]
    assert names(*spellings) == ["s1/a.txt"]
    assert names(*reversed(spellings)) == ["link.txt"]


def test_two_files_with_one_name_are_an_error(tree: Path) -> None:
    """Their ids would be equal; the message names a glob that keeps them apart."""
    (tree / "s2/a.txt").write_text("another\n")
    with pytest.raises(InputError) as caught:
        names("s1/*.txt", f"{tree}/s2/a.txt", "s2/*.txt")
    assert str(caught.value) == (
        f"s1/a.txt (--input s1/*.txt) and {tree}/s2/a.txt (--input {tree}/s2/a.txt) would both be named 'a.txt' in ids: "
        "read them by one glob, as in '**/a.txt'"
    )
    with pytest.raises(InputError, match=r"read them by one glob, as in '/.*/\*\*/a\.txt'"):
        names(tree / "s1/*.txt", tree / "s2/*.txt")
    assert names(tree / "**/a.txt") == ["s1/a.txt", "s2/a.txt"]


def test_urls(tree: Path) -> None:
    """file:// is a local path, http:// is not an input, and neither is an unknown scheme."""
    assert names(f"file://{tree}/s*/a.txt") == names(f"file://localhost{tree}/s*/a.txt") == ["s1/a.txt"]
    with pytest.raises(InputError, match="file://s1/a.txt: a file URL names no host: write file:///path"):
        names("file://s1/a.txt")
    for scheme in ("http", "https"):
        with pytest.raises(
            InputError, match=f"{scheme}://h/a.txt cannot be read: shards are files .* download it first"
        ):
            names(f"{scheme}://h/a.txt")
    with pytest.raises(
        InputError, match=r"foo://b/a.txt cannot be read: .* gs:// and s3:// need the extras gcp and aws"
    ):
        names("foo://b/a.txt")


def test_two_stars_in_an_object_store(store: Store) -> None:
    """They also match no directory, as on a local disk."""
    paths = [store.put(f"texts/{name}", b"dog\n") for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/f.jsonl")]
    root = paths[0].removesuffix("/a.txt")
    assert names(f"{root}/**/*.txt") == names(f"{root}/**.txt") == ["a.txt", "b/c.txt", "b/d/e.txt"]
    assert names(f"{root}/b/**/*.txt") == ["c.txt", "d/e.txt"]
    assert names(f"{root}/*.txt") == ["a.txt"]


@pytest.mark.slow
def test_a_relative_glob_at_the_command_line(tree: Path, small_head: str, vocabulary: Path) -> None:
    """A run in the directory of the shards reads them."""
    model = ["--checkpoint", small_head, "--tokenizer_path", vocabulary]
    done = run_command(tree, "embed", "--input", "*.txt", "s*/a.txt", "--output", "out", *model)
    assert done.status == 0, done.stderr
    assert read(tree / "out")["id"].to_pylist() == ["s1/a.txt#0", "top.txt#0"]


def refusal(tree: Path, *arguments: object) -> str:
    """Return the usage error of `audioclip embed` with these arguments."""
    done = run_command(tree, "embed", *arguments)
    assert (done.status, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.slow
def test_shards_in_the_output_are_refused(tree: Path) -> None:
    """Snapshots are never read as shards: not now, not in the next run, not through a link."""
    os.mkdir("w")
    (tree / "w/out").mkdir()
    (tree / "w/out/x.jsonl").write_text('{"text": "x"}\n')
    (tree / "link").symlink_to("w/out")
    for output in ("w/out", "link", tree / "w/../w/out/"):
        error = refusal(tree, "--input", "w/**.jsonl", "--output", output)
        assert f"w/out/x.jsonl is in --output {output}: keep shards and snapshots apart" in error
    error = refusal(tree, "--input", "link/*.jsonl", "--output", "w/out")
    assert "link/x.jsonl is in --output w/out: keep shards and snapshots apart" in error
    error = refusal(tree, "--input", "s2/c.jsonl", "--output", "s2/c.jsonl")
    assert "--output s2/c.jsonl cannot be a directory, because s2/c.jsonl is not one: name another path" in error
    (shard,) = find_shards(["s2/c.jsonl"])
    shard = replace(shard, path="gs://bucket/c.jsonl")  # an object and a directory may have the same name
    with pytest.raises(InputError, match="--output gs://bucket/c.jsonl is also an input: give the directory"):
        check_outside([shard.path], [shard], shard.path)


@pytest.mark.slow
def test_a_glob_that_matches_later_snapshots_is_refused(tree: Path) -> None:
    """So that the first night fails, and not the second."""
    error = refusal(tree, "--input", "s2/**", "--output", "s2/out")
    assert "--input s2/** also matches the snapshots in --output s2/out: choose an output outside of it" in error
    error = refusal(tree, "--input", f"{tree}/*/*/*/*/*", f"{tree}/top.txt", "--output", "s2/out")
    assert "matches no file" in error
