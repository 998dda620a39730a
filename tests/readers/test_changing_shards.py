"""A shard that changes during a run fails it, by name; once it is complete again, it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import current_name
from tests.support.corpus import embed, write_jsonl
from tests.support.faults import Fault, Faults
from tests.support.stub import StubHead


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
