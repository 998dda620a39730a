"""The shards that globs match, their names and formats, and shards that change between the listing and the end of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import current_name
from tests.support.corpus import embed, write_jsonl
from tests.support.faults import Fault, Faults
from tests.support.stub import StubHead


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
        f"{tree}/c/notes.doc: .doc is not a known format; known are .txt, .jsonl, .csv, .tsv, .parquet, .ndjson, most "
        "also compressed as .gz, .bz2, .zst, .xz, .gzip, and with --head those of images and sounds: name it with "
        "--input_format, or leave the file out"
    )
    for form, words in (("media", "--input_format media is for"), ("tar", "a tar has")):
        message = refusal(lambda form=form: find_shards([str(tree / "top.txt")], form))  # type: ignore[misc]
        assert message.startswith(f"{tree}/top.txt: {words} pictures or sounds: give --head image or --head audio")
    (tree / "c/1.HEIC").write_text("x")
    assert "HEIC is not read: convert it" in refusal(lambda: names(tree / "c/1.HEIC"))
    assert "README: a name without suffix is not a known format" in refusal(lambda: names(tree / "README"))
    assert "compressed inside only" in refusal(lambda: names(tree / "a.parquet.gz"))
    # As root, permissions forbid nothing.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert (
        refusal(lambda: names(tree / "top.txt"))
        == f"{tree}/top.txt cannot be read: give read permission, or leave it out"
    )


def test_files_of_several_heads_are_counted(tmp_path: Path) -> None:
    """The error says how many files of which head all globs match, and the flags to choose from."""
    for name in ("a.wav", "b.WAV", "c.png", "d.txt"):
        (tmp_path / name).touch()
    choice = "give --head image or --head audio, which leaves the other files out, or narrow the glob"
    message = refusal(lambda: names(tmp_path / "*"))
    counts = "1 image, 2 sounds and 1 other file"
    assert message == f"--input {tmp_path}/* matches {counts}, and a snapshot has one head: {choice}"
    message = refusal(lambda: names(tmp_path / "*.[tw]*", tmp_path / "*.p*"))
    assert message.startswith(f"--input {tmp_path}/*.[tw]* {tmp_path}/*.p* matches 1 image, 1 sound and 1 other file, ")
    message = refusal(lambda: names(tmp_path / "*.[wW]*"))
    assert message.endswith("matches 2 sounds: give --head audio, or narrow the glob")
    message = refusal(lambda: names(tmp_path / "a.wav"))
    assert message == f"{tmp_path}/a.wav: .wav is for --head audio: give that head, or leave the file out"


def test_names_in_errors_are_one_harmless_line(tmp_path: Path) -> None:
    """Line ends and terminal sequences in a name are spelled out, and the rest of the message follows."""
    (tmp_path / "a\nb\x1b[31m.doc").touch()
    message = refusal(lambda: names(tmp_path / "*"))
    assert message.startswith(rf"{tmp_path}/a\nb\x1b[31m.doc: .doc is not a known format; ")
    assert "\n" not in message


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


def _rows(count: int) -> list[dict[str, object]]:
    return [{"id": f"r{n}", "text": f"text number {n}"} for n in range(count)]


def _grow(path: Path) -> None:
    with path.open("a") as handle:
        handle.write('{"id": "late", "text": "appended"}\n')


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _vanish(path: Path) -> None:
    path.unlink()


def _replace(path: Path) -> None:
    """Put other content of another length in its place by a rename, as an upload does."""
    write_jsonl(path.with_name("new.tmp"), _rows(700)).rename(path)


def _rewrite(path: Path) -> None:
    """Write other content of the same length in place."""
    path.write_bytes(path.read_bytes().replace(b"number", b"NUMBER"))


def _touched_back(path: Path) -> None:
    """Replace it by other content of the same length and the same time of last change."""
    before = path.stat()
    new = path.with_name("new.tmp")
    new.write_bytes(path.read_bytes().replace(b"number", b"NUMBER"))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


CHANGES = {
    _grow: r"a\.jsonl changed from 24,980 bytes to 25,015 during the run: run again when it is complete",
    _shrink: r"a\.jsonl changed from 24,980 bytes to 12,490 during the run",
    _vanish: r"a\.jsonl existed when it was listed and cannot be read now \(No such file",
    _replace: r"a\.jsonl changed from 24,980 bytes to [\d,]+ during the run",
    _rewrite: r"a\.jsonl changed during the run",
    _touched_back: r"a\.jsonl changed during the run",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with a snapshot of a few rows, and 600 rows to read next."""
    (tmp_path / "in").mkdir()
    embed(write_jsonl(tmp_path / "in/a.jsonl", _rows(5)), tmp_path / "out", id_field="id")
    write_jsonl(tmp_path / "in/a.jsonl", _rows(600))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_while_it_is_read(folder: Path, change: Callable[[Path], None]) -> None:
    """No mixture of two versions is published."""
    shard, before = folder / "in/a.jsonl", current_name(str(folder / "out"))
    options = EmbedOptions(input=[str(shard)], output=str(folder / "out"), id_field="id")
    corpus, faults = EmbedCorpus(options, StubHead()), Faults(folder)
    fault = Fault("read", 2, meanwhile=lambda: change(shard))  # once it is open, before its first bytes
    unnamed = change in (_vanish, _replace)  # the open file is whole, but has no name any more
    message = r"a\.jsonl changed during the run" if unnamed else CHANGES[change]
    with faults.armed(fault), pytest.raises(RuntimeError, match=message):
        run(corpus, options)
    corpus.close()
    assert faults.fired == 1
    assert current_name(str(folder / "out")) == before
    if change is not _vanish:
        manifest, _ = embed(shard, folder / "out", id_field="id")
        assert manifest["counts"]["read"] == len(shard.read_bytes().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changed_before_it_was_read(folder: Path, change: Callable[[Path], None]) -> None:
    """A worker finds another version than the launcher listed, also one of the same size and time."""
    shard, before = folder / "in/a.jsonl", current_name(str(folder / "out"))
    options = EmbedOptions(input=[str(shard)], output=str(folder / "out"), id_field="id")
    corpus = EmbedCorpus(options, StubHead())
    change(shard)
    with pytest.raises(RuntimeError, match=CHANGES[change]):
        run(corpus, options)
    corpus.close()
    assert current_name(str(folder / "out")) == before
