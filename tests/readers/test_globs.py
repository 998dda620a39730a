"""The files that globs match: on a local disk, by URLs, and in object stores."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from audioclip_beam.pipeline.io.filesystem import upload
from audioclip_beam.pipeline.readers.input_files import find_shards
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


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("pipe.txt", "a pipe"),
        ("link.txt", "a pipe"),
        ("linked.txt", "a pipe"),
        ("socket.txt", "a socket"),
        ("/dev/null", "a character device"),
        ("/dev/zero", "a character device"),
        ("terminal.txt", "a character device"),
        ("/dev/fd/{pipe}", "a pipe"),
        ("/proc/self/fd/{pipe}", "a pipe"),
        ("descriptor.txt", "a pipe"),
    ],
)
def test_what_can_be_read_only_once_is_refused(tree: Path, place: str, kind: str) -> None:
    """Before it is opened: by its path, behind links, among other inputs, and below a wildcard."""
    os.mkfifo("pipe.txt")
    (tree / "link.txt").symlink_to("pipe.txt")
    (tree / "linked.txt").symlink_to("link.txt")
    reading, writing = os.pipe()
    (tree / "descriptor.txt").symlink_to(f"/dev/fd/{reading}")
    host, terminal = os.openpty()
    (tree / "terminal.txt").symlink_to(os.ttyname(terminal))
    place = place.format(pipe=reading)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.txt")
            globs = [place] if place.startswith("/") else [place, f"{place[:-5]}[{place[-5]}].txt", f"./{place}"]
            for inputs in ([glob] for glob in globs):
                for patterns in (inputs, ["top.txt", *inputs]):
                    with pytest.raises(
                        InputError, match=f"{kind}, which can be read only once: write it to a file first"
                    ):
                        find_shards(patterns, output="out")
    finally:
        for descriptor in (reading, writing, host, terminal):
            os.close(descriptor)


def test_an_open_file_of_this_process_is_refused(tree: Path) -> None:
    """Workers have other open files under its name."""
    with open(tree / "top.txt") as handle:
        for path in (f"/dev/fd/{handle.fileno()}", f"/proc/{os.getpid()}/fd/{handle.fileno()}"):
            with pytest.raises(InputError, match="is an open file of this process, .*: name the file itself"):
                find_shards([path], "txt", output="out")


@pytest.fixture
def linked(tree: Path) -> Path:
    """Return a directory of shards and links: to folders outside, one of them twice, to files, to nothing, in circles."""
    for name in ("in/2026/a.txt", "store/2025/b.txt", "store/old/c.txt", "other/x.txt"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("dog\n")
    for name, target in {
        "in/2025": "../store/2025",
        "in/also-2025": "../store/2025",
        "in/2026/again": "../2026",
        "in/up": "..",
        "in/this": ".",
        "in/gone": "nowhere",
        "in/round": "about",
        "in/about": "round",
        "in/2026/z.txt": "../../other/x.txt",
        "in/2026/0.txt": "a.txt",
        "store/old/back": "../../in",
    }.items():
        (tree / name).symlink_to(target)
    return tree


CIRCLES = "in/2026/again, in/about, in/round, in/this, in/up"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/**/*.txt", ["2026/a.txt", "2026/z.txt", "2025/b.txt"]),
        ("in/**.txt", ["2026/a.txt", "2026/z.txt", "2025/b.txt"]),
        ("in/**", ["2026/a.txt", "2026/z.txt", "2025/b.txt"]),
        ("in/*/*.txt", ["2026/a.txt", "2026/z.txt", "2025/b.txt"]),
        ("in/*/[a-z].txt", ["2026/a.txt", "2026/z.txt", "2025/b.txt"]),
        ("in/202?/*", ["2026/a.txt", "2026/z.txt", "2025/b.txt"]),
        ("in/2**b.txt", ["2025/b.txt"]),
        ("in/a**b.txt", ["also-2025/b.txt"]),
        ("i*/also*/b.txt", ["in/also-2025/b.txt"]),
        ("i*/also-2025/*.txt", ["in/also-2025/b.txt"]),
        ("in/also-2025/*.txt", ["b.txt"]),
        ("in/**/b.txt", ["2025/b.txt"]),
        ("in/this/2026/*.txt", ["a.txt", "z.txt"]),
        ("in/*/0.txt", ["2026/0.txt"]),
        ("store/**/*.txt", ["2025/b.txt", "old/c.txt", "old/back/2026/a.txt", "old/back/2026/z.txt"]),
    ],
)
@pytest.mark.usefixtures("linked")
def test_links_are_followed_by_every_glob_alike(pattern: str, expected: list[str]) -> None:
    """Each folder and file is read once, under its path without links, or else the first in order."""
    assert sorted(names(pattern)) == sorted(expected)


@pytest.mark.usefixtures("linked")
def test_links_that_lead_nowhere_are_noted(tree: Path) -> None:
    """By name; of many the first ones. A glob that matches nothing else is an error that names them."""
    notes = list[str]()
    find_shards(["in/**/*.txt"], notes=notes)
    assert notes == [
        "links to nothing that exists are not followed: in/gone",
        f"links in a circle are not followed: {CIRCLES}",
    ]
    for number in range(9):
        (tree / f"s2/{number}.txt").symlink_to("missing")
    notes.clear()
    find_shards(["s2/*.txt"], notes=notes)
    assert notes == [
        "links to nothing that exists are not followed: s2/0.txt, s2/1.txt, s2/2.txt, s2/3.txt, s2/4.txt and 4 more"
    ]
    with pytest.raises(
        InputError, match=r"matches no file; .*; links to nothing that exists are not followed: s2/0\.txt"
    ):
        names("s2/0.t*")
    with pytest.raises(InputError, match=r"s2/0\.txt is a link to missing, which does not exist: leave it out"):
        names("s2/0.txt")


def test_folders_that_form_a_web_of_links_end(tree: Path) -> None:
    """Each of 20 folders has links to all others: the paths through them are more than anyone can visit."""
    for number in range(20):
        (tree / f"web/{number}").mkdir(parents=True)
        (tree / f"web/{number}/a.txt").touch()
        for other in range(20):
            (tree / f"web/{number}/to{other}").symlink_to(f"../{other}")
    assert len(names("web/0/**/*.txt")) == 20
    assert len(names("web/**.txt")) == 20


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
        with pytest.raises(InputError, match=f"{scheme}://h/a.txt cannot be used: files are .* download it first"):
            names(f"{scheme}://h/a.txt")
    with pytest.raises(InputError, match=r"foo://b/a.txt: foo:// is not known: paths are local, .*s3://"):
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


def test_folder_markers_are_no_shards(store: Store) -> None:
    """Objects without content, as consoles and Hadoop make them for folders; an empty shard is one."""
    for name in ("data/", "data/2026/", "data/2026/05/", "data_$folder$", "data/2026_$folder$", "data/empty/"):
        upload(io.BytesIO(), f"{store.url}/{name}")
    for name in ("data/a.txt", "data/2026/b.txt"):
        store.put(name, b"dog\n")
    for pattern, expected in {
        "data/*": ["a.txt"],
        "data/": ["a.txt"],
        "data/**": ["2026/b.txt", "a.txt"],
        "data/**/*": ["2026/b.txt", "a.txt"],
        "data/**/": ["2026/b.txt", "a.txt"],
        "*/*": ["data/a.txt"],
        "data*/**/*": ["data/2026/b.txt", "data/a.txt"],
        "data/2026/*": ["b.txt"],
        "data/2026*/*": ["2026/b.txt"],
    }.items():
        assert names(f"{store.url}/{pattern}") == expected, pattern
    upload(io.BytesIO(), f"{store.url}/data/nothing.txt")
    assert names(f"{store.url}/data/*") == ["a.txt", "nothing.txt"]
    with pytest.raises(InputError, match=r"data/empty/\* matches no file"):
        names(f"{store.url}/data/empty/")


def test_an_object_that_is_also_the_output(store: Store) -> None:
    """An object and a directory may have the same name."""
    path = store.put("c.txt", b"dog\n")
    with pytest.raises(InputError, match=f"--output {path} is also an input: give the directory"):
        find_shards([path], output=path)


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


@pytest.mark.slow
def test_a_glob_that_matches_later_snapshots_is_refused(tree: Path) -> None:
    """So that the first night fails, and not the second."""
    error = refusal(tree, "--input", "s2/**", "--output", "s2/out")
    assert "--input s2/** also matches the snapshots in --output s2/out: choose an output outside of it" in error
    (tree / "linked").mkdir()
    (tree / "linked/folder").symlink_to("../store")
    (tree / "store").mkdir()
    (tree / "store/x.txt").write_text("dog\n")
    for output in ("store/out", "linked/folder/out"):
        error = refusal(tree, "--input", "linked/**", "--output", output)
        assert f"--input linked/** also matches the snapshots in --output {output}: choose" in error
    error = refusal(tree, "--input", f"{tree}/*/*/*/*/*", f"{tree}/top.txt", "--output", "s2/out")
    assert "matches no file" in error
