"""What Dataflow is told: a card and memory for the model's steps alone, one image for all, and no wait in a template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from apache_beam.portability.common_urns import resource_hints

from audioclip_text.pipeline import run as run_module
from audioclip_text.pipeline.embed import EmbedCorpus
from audioclip_text.pipeline.run import parse, run
from tests.pipeline import object_stores
from tests.pipeline.corpus import StubHandler, write_jsonl

IMAGE = "europe-docker.pkg.dev/project/audioclip/audioclip-text:1"
CARD = b"type:nvidia-l4;count:1;install-nvidia-driver"


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "dog barking"}])
    flags = ["--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--id_field", "id"]
    return [*flags, "--runner=DataflowRunner", f"--sdk_container_image={IMAGE}", "--accelerator=nvidia-l4"]


def hinted(graph: proto.Pipeline) -> dict[str, dict[str, bytes]]:
    """Resource hints of each step, by its name without the composite that holds it."""
    environments = graph.components.environments
    return {
        step.unique_name.removeprefix("EmbedCorpus/"): dict(environments[step.environment_id].resource_hints)
        for step in graph.components.transforms.values()
        if step.environment_id and not step.subtransforms
    }


def test_only_the_models_steps_ask_for_a_card(flags: list[str]) -> None:
    """Readers, shuffles and the publisher run on machines without one; the writer runs where the vectors are."""
    options = parse(flags)
    pipeline = beam.Pipeline(runner="DirectRunner", options=PipelineOptions())
    corpus = EmbedCorpus(options, StubHandler())
    _ = pipeline | "EmbedCorpus" >> corpus
    hints = hinted(pipeline.to_runner_api())
    cards = {name for name, told in hints.items() if told.get(resource_hints.ACCELERATOR.urn) == CARD}
    assert cards
    assert {name.split("/")[0] for name in cards} == {"Canary", "Model"}
    assert any(name.startswith("Model/Write") for name in cards)
    assert {name.split("/")[0] for name, told in hints.items() if told} == {"Canary", "Model"}
    assert all(told[resource_hints.MIN_RAM_BYTES.urn] == b"4000000000" for name, told in hints.items() if told)


def test_rows_of_one_shard_reach_every_worker(flags: list[str]) -> None:
    """Between the reader of a shard and the model stands a shuffle by text hash, and the list of shards is spread too."""
    pipeline = beam.Pipeline(runner="DirectRunner", options=PipelineOptions())
    corpus = EmbedCorpus(parse(flags), StubHandler())
    _ = pipeline | "EmbedCorpus" >> corpus
    steps = pipeline.to_runner_api().components.transforms.values()
    names = {step.unique_name for step in steps}
    assert "EmbedCorpus/Known/Meet" in names
    assert any(name.startswith("EmbedCorpus/Shards") and "Reshuffle" in name for name in names)


class _Result:
    def wait_until_finish(self) -> None:
        raise AssertionError("a template's launcher must not wait")


def test_a_flex_template_submits_and_returns(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher runs us with --template_location: nobody waits, no manifest is read, and one line says what was done."""
    monkeypatch.setattr(beam.Pipeline, "run", lambda self: _Result())
    monkeypatch.setattr(run_module, "runner_of", lambda options: "DirectRunner")
    stubbed = EmbedCorpus
    monkeypatch.setattr(run_module, "EmbedCorpus", lambda options: stubbed(options, StubHandler()))
    assert run_module.embed([*flags, f"--template_location={tmp_path / 'job'}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("submitted 2")
    assert f"audioclip-text log {tmp_path / 'out'}" in said


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A gs:// bucket on loopback, where Dataflow's client looks for its own files."""
    with object_stores.gcs() as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        yield store.url


@pytest.mark.slow
def test_the_real_runner_translates_the_job(flags: list[str], request: pytest.FixtureRequest) -> None:
    """DataflowRunner in a dry run, against a store on loopback: its job holds our image, hints and pickled steps."""
    pytest.importorskip(
        "google.cloud.dataflow_v1beta3", reason="no apache-beam[gcp] here: ./scripts/setup.sh gcp brings it, 245 MB"
    )
    bucket = request.getfixturevalue("bucket")
    given = ["--project=project", "--region=europe-west4", "--no_auth", "--dry_run=True", "--sdk_location=container"]
    given += [f"--temp_location={bucket}/tmp", f"--staging_location={bucket}/staging"]
    options = parse([*flags, *given])
    corpus = EmbedCorpus(options, StubHandler())
    jobs = []
    ran = beam.Pipeline.run

    def keep(self: beam.Pipeline, *given: Any, **named: Any) -> Any:
        jobs.append(ran(self, *given, **named))
        return jobs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam.Pipeline, "run", keep)
        assert run(corpus, options) is False
    job = jobs[0].job
    graph = job.proto_pipeline
    images = {
        proto.DockerPayload.FromString(each.payload).container_image for each in graph.components.environments.values()
    }
    assert images == {IMAGE}
    told = hinted(graph)
    cards = {name.split("/")[0] for name, hints in told.items() if hints.get(resource_hints.ACCELERATOR.urn) == CARD}
    assert cards == {"Canary", "Model"}
