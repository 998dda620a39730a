"""A shard that changes during a run fails it, by name; once it is complete again, it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audioclip_text.pipeline.cli.runner import run
from audioclip_text.pipeline.embed import EmbedCorpus
from audioclip_text.pipeline.options import EmbedOptions
from audioclip_text.pipeline.snapshots.commit import current_name
from tests.support.corpus import embed, read, write_jsonl
from tests.support.faults import Fault, Faults
from tests.support.stub import StubHandler


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


CHANGES = {
    _grow: r"a\.jsonl changed from 24,980 bytes to 25,015 during the run: run again when it is complete",
    _shrink: r"a\.jsonl changed from 24,980 bytes to 12,490 during the run",
    _vanish: r"a\.jsonl existed when the run began and cannot be read now \(Path does not exist",
    _replace: r"a\.jsonl changed from 24,980 bytes to [\d,]+ during the run",
    _rewrite: r"a\.jsonl changed while it was read during the run",
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
    corpus, faults = EmbedCorpus(options, StubHandler()), Faults(folder)
    fault = Fault("read", 2, meanwhile=lambda: change(shard))  # once it is open, before its first bytes
    with faults.armed(fault), pytest.raises(RuntimeError, match=CHANGES[change]):
        run(corpus, options)
    corpus.close()
    assert faults.fired == 1
    assert current_name(str(folder / "out")) == before
    if change is not _vanish:
        manifest, _ = embed(shard, folder / "out", id_field="id")
        assert manifest["counts"]["read"] == len(shard.read_bytes().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("change", [_grow, _shrink, _vanish, _replace])
def test_a_shard_that_changed_before_it_was_read(folder: Path, change: Callable[[Path], None]) -> None:
    """A worker finds another size than the launcher did."""
    shard, before = folder / "in/a.jsonl", current_name(str(folder / "out"))
    options = EmbedOptions(input=[str(shard)], output=str(folder / "out"), id_field="id")
    corpus = EmbedCorpus(options, StubHandler())
    change(shard)
    with pytest.raises(RuntimeError, match=CHANGES[change]):
        run(corpus, options)
    corpus.close()
    assert current_name(str(folder / "out")) == before


@pytest.mark.slow
def test_a_shard_replaced_by_one_of_the_same_length_before_the_read(folder: Path) -> None:
    """A complete file of the expected size is one version of the shard."""
    shard = folder / "in/a.jsonl"
    options = EmbedOptions(input=[str(shard)], output=str(folder / "out"), id_field="id")
    corpus = EmbedCorpus(options, StubHandler())
    _rewrite(shard)
    run(corpus, options)
    corpus.close()
    assert set(read(folder / "out")["text"].to_pylist()) == {f"text NUMBER {n}" for n in range(600)}
