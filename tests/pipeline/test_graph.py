"""The job graph stays small however many files there are, and has the stages that docs/architecture.md lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from apache_beam.runners.portability.fn_api_runner import translations

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.readers import parts
from tests.support.corpus import embed, write_jsonl
from tests.support.pages import read_page, sections
from tests.support.stub import StubHead


def graph(folder: Path, **options: Any) -> proto.Pipeline:
    """Return the graph of a job over the shards in `folder`/in."""
    given = EmbedOptions(input=[str(folder / "in" / "*")], output=str(folder / "out"), **options)
    corpus = EmbedCorpus(given, StubHead())
    pipeline = beam.Pipeline(options=PipelineOptions())
    try:
        _ = pipeline | corpus
        return pipeline.to_runner_api()
    finally:
        corpus.may_go_on = False
        corpus.close()


def test_the_graph_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """It contains paths and options, never a list of files; of 1,990 more of them, it shows the number at most."""
    (tmp_path / "in").mkdir()
    sizes = []
    for shards in (10, 2000):
        for n in range(shards):
            (tmp_path / "in" / f"{n:07}.txt").touch()
        sizes.append(len(graph(tmp_path).SerializeToString()))
    assert abs(sizes[1] - sizes[0]) < 1000, sizes


REMOTE = {
    "runner": "PortableRunner",
    "job_endpoint": "localhost:1",
    "environment_type": "EXTERNAL",
    "environment_config": "localhost:2",
}


def stages_of(job: proto.Pipeline) -> list[set[str]]:
    """Return the names of the steps of each stage, as Beam's fuser for portable runners cuts a job into stages.

    It reads the output of a Flatten in a stage of its own; other runners fuse that with what is before the Flatten.
    """
    phases = [
        translations.annotate_downstream_side_inputs,
        translations.lift_combiners,
        translations.expand_sdf,
        translations.expand_gbk,
        translations.fix_flatten_coders,
        translations.sink_flattens,
        translations.greedily_fuse,
    ]
    flattens = {
        f"{step.unique_name}/Read"
        for step in job.components.transforms.values()
        if step.spec.urn == "beam:transform:flatten:v1"
    }
    copy = proto.Pipeline.FromString(job.SerializeToString())  # the fuser changes its input
    _, stages = translations.create_and_optimize_stages(copy, phases, known_runner_urns=frozenset())
    return [
        {name for step in stage.transforms for name in re.findall(r"\w+", step.unique_name)}
        for stage in stages
        if not flattens & {step.unique_name for step in stage.transforms}
    ]


def table_of_stages() -> dict[str, list[str]]:
    """Return the steps of each stage of the table in docs/architecture.md, by its name, in the order of the table."""
    rows = re.findall(r"^\| (\w+) \| (`.*?) \|", sections(read_page("docs/architecture.md"))["Stages"], re.MULTILINE)
    return {name: re.findall(r"`(\w+)`", steps) for name, steps in rows}


def stage_names(job: proto.Pipeline) -> list[str]:
    """Return the names of a job's stages by the table: of the last row of which it has a step."""
    table = table_of_stages()
    found = [
        [name for name, steps in table.items() if steps_of_stage & set(steps)] for steps_of_stage in stages_of(job)
    ]
    assert all(found), "a stage is in no row of the table"
    return sorted((names[-1] for names in found), key=list(table).index)


ALWAYS = ["list", "read", "canary", "reuse", "model", "publish"]


@pytest.mark.slow
def test_the_stages_of_a_remote_run_are_those_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first run, a night that carries files over, with --force, --unique_ids or --no_dedupe, and with a large shard."""
    for number in range(3):
        write_jsonl(tmp_path / f"in/{number}.jsonl", [{"id": f"{number}-{n}", "text": f"text {n}"} for n in range(5)])
    remote = {**REMOTE, "id_field": "id"}
    assert stage_names(graph(tmp_path, **remote)) == ALWAYS
    embed(tmp_path / "in/*", tmp_path / "out", id_field="id", unique_ids=True)
    write_jsonl(tmp_path / "in/3.jsonl", [{"id": "new", "text": "a new text"}])
    night = graph(tmp_path, **remote)
    assert any("KeepRows" in stage for stage in stages_of(night))
    assert stage_names(night) == ALWAYS
    assert stage_names(graph(tmp_path, **remote, force=True)) == ALWAYS
    assert stage_names(graph(tmp_path, **remote, no_dedupe=True)) == [name for name in ALWAYS if name != "reuse"]
    assert stage_names(graph(tmp_path, **remote, unique_ids=True)) == [*ALWAYS[:-1], "ids", "publish"]
    monkeypatch.setattr(parts, "PART_BYTES", 10)
    pq.write_table(pa.table({"id": ["large"], "text": ["dog"]}), tmp_path / "in/4.parquet")
    assert stage_names(graph(tmp_path, **remote)) == ["list", "split", *ALWAYS[1:]]
    assert set(table_of_stages()) == {*ALWAYS, "split", "ids"}
