"""--output is a literal name, also with brackets and stars in it: no command takes it for a pattern."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.io.filesystem import list_directory, read, remove, remove_below, write_atomically
from audioclip_beam.pipeline.io.paths import is_local
from tests.support import object_stores
from tests.support.object_stores import Store, connected
from tests.support.preloaded import preloaded_programs

store = object_stores.store

LITERAL = "b[r]ack*et"
SIMILAR = ("bracket", "brack et", "b[r]acket")  # names that the pattern matches, or nearly so


def files_below(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory by its relative path."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_every_command_takes_the_output_literally(
    tmp_path: Path,
    small_head: str,
    vocabulary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two runs, log, plan, validate, search, report, rollback and gc use this directory, and touch no similar one."""
    monkeypatch.chdir(tmp_path)

    def run(*command: str) -> str:
        assert main(command) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    texts = [f"dog number {n}" for n in range(20)]
    Path("a.txt").write_text("\n".join(texts[:10]))
    output = f"{LITERAL}/out"
    flags = ["--input", "a.txt", "--output", output, "--checkpoint", small_head, "--tokenizer_path", str(vocabulary)]
    first = [preloaded_programs() / "audioclip", "embed", *flags]
    subprocess.run(first, check=True, timeout=240)
    for name in SIMILAR:  # as if of earlier runs, with the same names of snapshots
        shutil.copytree(LITERAL, name)
    before = {name: files_below(tmp_path / name) for name in SIMILAR}
    (snapshot,) = Path(output, "snapshots").iterdir()

    Path("a.txt").write_text("\n".join(texts))
    assert "10 reused" in run("embed", *flags)
    assert len(run("log", output).splitlines()) == 3
    assert "20 rows reused" in run("plan", *flags, "--force")
    assert run("embed", *flags).startswith("unchanged since ")
    assert run("validate", output).rstrip().endswith("valid")
    assert "dog number 3" in run("search", output, "dog number 3", "--top", "1")
    run("report", output)
    assert snapshot.name in run("rollback", output)
    run("gc", output, "--keep", "1")
    assert snapshot.exists()  # it is the current one
    assert {name: files_below(tmp_path / name) for name in SIMILAR} == before


@pytest.mark.slow
def test_object_names_are_literal_too(store: Store, tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """Objects with similar names stay as they are."""
    (tmp_path / "a.txt").write_text("dog\ncat\n")
    similar = [store.put(f"{name}/out/snapshots/kept.json", b"{}") for name in SIMILAR]
    output = f"{store.url}/{LITERAL}/out"
    flags = ["--input", f"{tmp_path}/a.txt", "--output", output, "--checkpoint", small_head]
    flags += ["--tokenizer_path", str(vocabulary)]
    for command in (
        ["embed", *flags],
        ["embed", *flags, "--force"],
        ["log", output],
        ["validate", output],
        ["rollback", output],
        ["gc", output, "--keep", "1"],
    ):
        assert main(command) == 0, command
    runs = {
        file.path.split("/snapshots/")[1].split("/")[0]
        for file in list_directory(f"{output}/snapshots", recursive=True)
    }
    assert len(runs) == 2  # the newest is kept, and the current one
    assert all(read(path) == b"{}" for path in similar)


@pytest.fixture(params=["local", "gs", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield a local directory, or a bucket on each kind of object store."""
    if request.param == "local":
        yield str(tmp_path)
        return
    with connected(request.param, monkeypatch) as store:
        yield store.url


def put(path: str, data: bytes) -> str:
    """Write a file, and return its path."""
    if is_local(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data, "text/plain")
    return path


@pytest.mark.slow
def test_listing_and_removing_are_literal(root: str) -> None:
    """Files of a directory are listed with their sizes, and removed by name or all at once; others stay."""
    directory = f"{root}/{LITERAL}"
    direct = [put(f"{directory}/{name}", b"abc") for name in ("a*.txt", "ab.txt", "[x].txt")]
    below = put(f"{directory}/sub/c.txt", b"c")
    others = [put(f"{root}/{name}/ab.txt", b"other") for name in SIMILAR]
    assert sorted(file.path for file in list_directory(directory)) == sorted(direct)
    assert {file.size for file in list_directory(directory)} == {3}
    assert all(file.changed > 1e9 for file in list_directory(directory))
    assert sorted(file.path for file in list_directory(directory, recursive=True)) == sorted([*direct, below])
    assert list_directory(f"{root}/none") == []
    remove([direct[0], f"{directory}/none"])
    assert sorted(file.path for file in list_directory(directory)) == sorted(direct[1:])
    remove_below(directory)
    assert list_directory(directory, recursive=True) == []
    assert all(read(path) == b"other" for path in others)


def test_links_are_not_followed_below_a_directory(tmp_path: Path) -> None:
    """A link to a file is a file, a link to a directory is not, and a broken link is left out."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a").write_bytes(b"a")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/file").symlink_to(tmp_path / "other/a")
    (tmp_path / "here/directory").symlink_to(tmp_path / "other")
    (tmp_path / "here/broken").symlink_to(tmp_path / "none")
    assert [file.path for file in list_directory(str(tmp_path / "here"), recursive=True)] == [f"{tmp_path}/here/file"]
