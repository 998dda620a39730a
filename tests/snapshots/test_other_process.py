"""Nights while another process rolls back and collects garbage: each ends with a whole snapshot or a clear error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.layout import CONTENT_SPILL
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots import commit, history
from audioclip_beam.pipeline.snapshots.commit import current_name, point_to, require_manifest
from audioclip_beam.pipeline.snapshots.dead_runs import dead_runs
from audioclip_beam.pipeline.snapshots.snapshot import Snapshot
from audioclip_beam.pipeline.validation import validate
from tests.support import stub_media
from tests.support.corpus import embed, read, write_jsonl
from tests.support.picture_files import encoded, picture
from tests.support.shards import COMPRESS
from tests.support.stub import StubHead
from tests.support.stub_media import StubPictures, vector_of
from tests.support.tars import tar_of

stub_models = stub_media.stub_models

OTHER = """
import random, sys, time
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.snapshots.history import gc, rollback
chance = random.Random(1)
print("ready", flush=True)
while True:
    try:
        rollback(sys.argv[1]) if chance.random() < 0.3 else gc(sys.argv[1], keep=chance.choice([1, 2]))
        print("done", flush=True)
    except (SnapshotError, OSError) as error:
        print(error, flush=True)
    time.sleep(chance.random() / 5)
"""

EXPECTED = ("this run began from", "cannot be carried over", "is missing", "has no finished snapshot", "run again")


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Three snapshots in tmp_path/out."""
    made = []
    for text in ("dog", "bird", "cat"):
        write_jsonl(tmp_path / "a.jsonl", [{"text": text}])
        made.append(embed(tmp_path / "a.jsonl", tmp_path / "out")[0]["snapshot"])
    return made


def test_gc_keeps_what_a_rollback_selects_meanwhile(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc may wait for the services that run jobs, for seconds."""
    output = str(tmp_path / "out")

    def slow_answer(*arguments: Any) -> Any:
        history.rollback(output, names[0])
        return dead_runs(*arguments)

    monkeypatch.setattr(history, "dead_runs", slow_answer)
    assert history.gc(output, keep=1) == [names[1]]
    assert current_name(output) == names[0]
    assert validate(output).valid


def test_gc_of_directories_that_another_process_removes_meanwhile(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it lists their files: Python's own function fails then."""
    unlink = os.unlink

    def slow_unlink(path: str, **options: Any) -> None:
        if str(path).startswith("part-"):
            monkeypatch.setattr(os, "unlink", unlink)
            shutil.rmtree(tmp_path / "out/snapshots" / names[0])
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", slow_unlink)
    assert history.gc(str(tmp_path / "out"), keep=1) == names[:2]
    assert os.unlink is unlink, "gc did not come to the file at which the other process is quicker"
    assert [path.name for path in (tmp_path / "out/snapshots").iterdir()] == names[2:]


def test_rollback_to_a_snapshot_that_gc_removes_meanwhile(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "out")

    def late(*arguments: Any, **options: Any) -> None:
        assert history.gc(output, keep=1) == names[:2]
        point_to(*arguments, **options)

    monkeypatch.setattr(history, "point_to", late)
    with pytest.raises(SnapshotError, match=f"has no finished snapshot '{names[1]}'"):
        history.rollback(output)
    assert current_name(output) == names[2]


def test_the_pointer_is_only_changed_from_the_expected_snapshot(tmp_path: Path, names: list[str]) -> None:
    output = str(tmp_path / "out")
    with pytest.raises(SnapshotError, match="run again"):
        point_to(output, names[0], expected=names[1])
    assert current_name(output) == names[2]


def test_a_run_publishes_while_another_one_writes_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes second to the pointer fails, and no longer counts as a snapshot."""
    output, plain, others = tmp_path / "out", commit.update_json, list[str]()

    def write_late(path: str, *arguments: Any, **options: Any) -> None:
        assert path.endswith("manifest.json")
        monkeypatch.setattr(commit, "update_json", plain)
        others.append(embed(tmp_path / "b.jsonl", output)[0]["snapshot"])
        plain(path, *arguments, **options)

    for text in "ab":
        write_jsonl(tmp_path / f"{text}.jsonl", [{"text": text}])
    monkeypatch.setattr(commit, "update_json", write_late)
    with pytest.raises(RuntimeError, match="run again"):
        embed(tmp_path / "a.jsonl", output)
    assert current_name(str(output)) == others[0]
    assert [path.parent.name for path in output.glob("snapshots/*/manifest.json")] == others


def write_texts(folder: Path, number: int) -> dict[str, object]:
    """Write a shard of texts; return {id: text}."""
    new: dict[str, object] = {f"{number}-{n}": f"text {n} of {number}" for n in range(5)}
    write_jsonl(folder / f"{number}.jsonl", [{"id": name, "text": text} for name, text in new.items()])
    return new


def write_pictures(folder: Path, number: int) -> dict[str, object]:
    """Write a compressed tar of pictures, which a run copies, and a picture as a file; return {id: vector}."""
    folder.mkdir(exist_ok=True)
    pictures = [encoded(picture(6 * number + n, 8, 6)) for n in range(5)]
    members = {f"{n}.png": data for n, data in enumerate(pictures[:4])}
    (folder / f"{number}.tar.gz").write_bytes(COMPRESS[".gz"](tar_of(members)))
    (folder / f"{number}.png").write_bytes(pictures[4])
    names = [*(f"{number}.tar.gz#{n}" for n in range(4)), f"{number}.png"]
    return {name: vector_of(data).tolist() for name, data in zip(names, pictures, strict=True)}


@pytest.mark.slow
@pytest.mark.usefixtures("stub_models")
@pytest.mark.parametrize("kind", ["text", "image"])
def test_twenty_nights_beside_another_process(tmp_path: Path, kind: str) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    rows: dict[str, object] = {}
    corpora: dict[str, dict[str, object]] = {}
    errors: list[str] = []
    write, head = (write_texts, StubHead()) if kind == "text" else (write_pictures, StubPictures())
    given = {"id_field": "id"} if kind == "text" else {"head": "image", "checkpoint": "untrained"}

    def night(number: int) -> None:
        rows.update(write(folder, number))
        options = EmbedOptions(input=[f"{folder}/*"], output=str(output), max_shrink=0.0, **given)
        try:
            with closing(EmbedCorpus(options, head)) as corpus:  # type: ignore[arg-type]
                try:
                    run(corpus, options)
                finally:  # a night that fails may have been published
                    corpora[str(corpus.snapshot)] = dict(rows)
        except (RuntimeError, OSError) as error:
            errors.append(str(error))

    def check(expected: dict[str, object]) -> None:
        table = read(output)
        column = table["text" if kind == "text" else "embedding"]
        assert dict(zip(table["id"].to_pylist(), column.to_pylist(), strict=True)) == expected
        assert validate(str(output)).valid

    night(0)
    night(1)
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        for number in range(2, 20):
            night(number)
    finally:
        other.terminate()
        printed = other.communicate()[0].splitlines()
    assert printed.count("done") > 10, printed
    assert [error for error in errors if not any(words in error for words in EXPECTED)] == []
    name = str(current_name(str(output)))
    snapshot = Snapshot(str(output), name, require_manifest(str(output), name))
    assert all(Path(path).exists() for path in snapshot.part_paths())
    check(corpora[name])
    night(20)
    check(rows)
    assert not list(output.rglob(f"{CONTENT_SPILL}*"))
