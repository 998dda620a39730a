"""One job graph executed again, as by a restarted stage or a template started twice: what is published stays sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.publish import publish_snapshot
from audioclip_beam.pipeline.run.runner import choose_runner
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.validation import validate
from tests.support.corpus import embed, read, write_jsonl
from tests.support.faults import EFFECTS, Fault, Faults
from tests.support.kept_night import OPTIONS, prepare_night
from tests.support.stub import StubHead

STOPS = int(os.environ.get("STOPS", "3"))  # at points that are evenly spread over a night
EFFECTS_OF_A_NIGHT = 330


def publish(folder: Path) -> Iterator[tuple[beam.Pipeline, Path]]:
    """Yield a pipeline that has published its third snapshot, of known, new, bad and carried rows, and its folder."""
    shard, inputs = folder / "a.jsonl", str(folder / "*.jsonl")
    write_jsonl(folder / "b.jsonl", [{"text": f"steady text {n}", "more": "x" * 500} for n in range(20)])
    for rows in (39, 40):
        write_jsonl(shard, [{"text": f"text {n}"} for n in range(rows)])
        embed(inputs, folder / "out")
    write_jsonl(shard, [*({"text": f"text {n}"} for n in range(60)), {"text": None}])
    options = EmbedOptions(input=[inputs], output=str(folder / "out"))
    corpus = EmbedCorpus(options, StubHead())
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    _ = pipeline | corpus
    pipeline.run().wait_until_finish()
    assert current_name(str(folder / "out")) == corpus.snapshot
    yield pipeline, folder
    corpus.close()


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[beam.Pipeline, Path]]:
    """A pipeline that has published."""
    yield from publish(tmp_path)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[beam.Pipeline, Path]]:
    """A pipeline that has published; the tests that share it leave the corpus and the snapshot as they are."""
    yield from publish(tmp_path_factory.mktemp("unchanged"))


def content(output: Path) -> dict[str, bytes]:
    """What readers of the current snapshot find."""
    folder = output / "snapshots" / str(current_name(str(output)))
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")} | {
        "manifest": (folder / "manifest.json").read_bytes(),
        "pointer": (output / "current.json").read_bytes(),
    }


@pytest.mark.slow
def test_a_graph_that_is_executed_again_publishes_the_same(unchanged: tuple[beam.Pipeline, Path]) -> None:
    """It succeeds, and neither changes nor adds a file that a reader would find."""
    pipeline, folder = unchanged
    before = content(folder / "out")
    pipeline.run().wait_until_finish()
    assert content(folder / "out") == before
    assert validate(str(folder / "out")).valid


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write_file_list", "write_report"])
def test_an_execution_during_another_one(
    published: tuple[beam.Pipeline, Path], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The second one publishes before a step of the first one: every file that the manifest names exists, as it was."""
    _, folder = published
    (folder / "a.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(80)))
    options = EmbedOptions(input=[str(folder / "*.jsonl")], output=str(folder / "out"))
    corpus = EmbedCorpus(options, StubHead())
    again = beam.Pipeline(runner=choose_runner(options), options=options)
    _ = again | corpus
    executions, plain = [], getattr(publish_snapshot, step)

    def write_slowly(*arguments: Any) -> Any:
        if not executions:
            executions.append("the second one")
            again.run().wait_until_finish()
            executions.append(content(folder / "out"))
        return plain(*arguments)

    monkeypatch.setattr(publish_snapshot, step, write_slowly)
    try:
        again.run().wait_until_finish()
    finally:
        corpus.close()
    assert content(folder / "out") == executions[1]
    assert len([name for name in executions[1] if name.startswith("_files-")]) == 1
    assert validate(str(folder / "out")).valid


@pytest.mark.slow
def test_a_graph_that_reads_other_rows_the_second_time_is_refused(
    published: tuple[beam.Pipeline, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus changed: the published snapshot is what it was, and the execution fails."""
    pipeline, folder = published
    before = content(folder / "out")
    line = b'{"text": "text 0"}\n'
    data = (folder / "a.jsonl").read_bytes()
    assert data.startswith(line)
    (folder / "a.jsonl").write_bytes(b" " * (len(line) - 1) + b"\n" + data[len(line) :])  # a blank line, of its length
    with pytest.raises(Exception, match=r"a\.jsonl changed during the run"):
        pipeline.run().wait_until_finish()
    for module in ("versions", "timeout_reader"):  # as on a file system without versions
        monkeypatch.setattr(f"audioclip_beam.pipeline.io.{module}.check_unchanged", lambda *_: None)
    with pytest.raises(Exception, match=r"is already published, with 61 rows read, 60 with vectors and 1 rejected"):
        pipeline.run().wait_until_finish()
    assert {name: data for name, data in content(folder / "out").items() if name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "effect", sorted(set(EFFECTS) - {"link", "model"})
)  # it carries no file over, and embeds no text
def test_a_second_execution_that_stops_anywhere_harms_nothing(
    unchanged: tuple[beam.Pipeline, Path], effect: str
) -> None:
    """At each kind of effect, before it and after it: every file that the manifest names exists, as it was."""
    pipeline, folder = unchanged
    before, faults = content(folder / "out"), Faults(folder)
    for late in (False, True):
        with faults.armed(Fault(effect, late=late, lasting=not late)), suppress(Exception):
            pipeline.run().wait_until_finish()
        assert faults.fired
        after = content(folder / "out")
        assert {name: data for name, data in after.items() if name in before} == before
    pipeline.run().wait_until_finish()
    assert content(folder / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize("point", range(STOPS))
def test_an_execution_that_stopped_anywhere_is_completed_by_the_next(tmp_path: Path, point: int) -> None:
    """Of a graph that links, copies and merges files; a third one changes nothing."""
    _, rows = prepare_night(tmp_path)
    options = EmbedOptions(input=[f"{tmp_path}/in/*.jsonl"], output=f"{tmp_path}/out", **OPTIONS)
    corpus, faults = EmbedCorpus(options, StubHead()), Faults(tmp_path)
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    _ = pipeline | corpus
    nth = 1 + EFFECTS_OF_A_NIGHT * point // STOPS
    with closing(corpus):
        with faults.armed(Fault("any", nth, late=point % 2 == 1)), suppress(Exception):
            pipeline.run().wait_until_finish()
        assert faults.fired
        pipeline.run().wait_until_finish()
        table = read(tmp_path / "out", columns=["id", "text"])
        found = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
        assert sorted(found) == sorted(rows.items())
        assert validate(str(tmp_path / "out")).valid
        before = content(tmp_path / "out")
        pipeline.run().wait_until_finish()
        assert content(tmp_path / "out") == before
