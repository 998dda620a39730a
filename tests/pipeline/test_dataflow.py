"""What Dataflow receives: GPU and memory for the model's steps alone, one image for all, and no wait in a template."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from apache_beam.portability.common_urns import resource_hints

from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.cli import embed_command as run_module
from audioclip_beam.pipeline.cli.embed_command import parse_options
from audioclip_beam.pipeline.cli.parser import UsageError
from audioclip_beam.pipeline.cli.parser import parse as parse_command_line
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import OptionsError
from audioclip_beam.pipeline.prepare.job import encoder_settings
from audioclip_beam.pipeline.remote import job_service
from audioclip_beam.pipeline.run import runner
from audioclip_beam.pipeline.run.check_runner import FLEX_LAUNCHER
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.dead_runs import dead_runs
from audioclip_beam.pipeline.snapshots.run_directory import list_runs
from tests.support import object_stores
from tests.support.corpus import StubHead, write_jsonl
from tests.support.environments import dataflow_environment
from tests.support.paths import ROOT

IMAGE = "europe-docker.pkg.dev/project/audioclip/audioclip-beam:1"
GPU = b"type:nvidia-l4;count:1;install-nvidia-driver"


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "dog barking"}])
    flags = ["--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--id_field", "id"]
    return [*flags, "--runner=DataflowRunner", f"--sdk_container_image={IMAGE}", "--accelerator=nvidia-l4"]


def hints_of(graph: proto.Pipeline) -> dict[str, dict[str, bytes]]:
    """Return the resource hints of each step, by its name without the enclosing composite."""
    environments = graph.components.environments
    return {
        step.unique_name.removeprefix("EmbedCorpus/"): dict(environments[step.environment_id].resource_hints)
        for step in graph.components.transforms.values()
        if step.environment_id and not step.subtransforms
    }


def test_only_the_steps_with_the_model_request_a_gpu(flags: list[str]) -> None:
    """Readers, shuffles and the publisher run on machines without one; the writer runs with the model."""
    options = parse_options(flags)
    pipeline = beam.Pipeline(runner="DirectRunner", options=PipelineOptions())
    corpus = EmbedCorpus(options, StubHead())
    _ = pipeline | "EmbedCorpus" >> corpus
    hints = hints_of(pipeline.to_runner_api())
    on_gpu = {name for name, hint in hints.items() if hint.get(resource_hints.ACCELERATOR.urn) == GPU}
    assert {name.split("/")[0] for name in on_gpu} == {"EmbedCanary", "EmbedAndWrite"}
    assert any(name.startswith("EmbedAndWrite/WriteParquet") for name in on_gpu)
    assert {name.split("/")[0] for name, hint in hints.items() if hint} == {"EmbedCanary", "EmbedAndWrite"}
    assert all(set(hint) == {resource_hints.ACCELERATOR.urn} for hint in hints.values() if hint)
    assert encoder_settings(options, TEXT).device == "cuda"
    assert encoder_settings(parse_options([*flags, "--device=cpu"]), TEXT).device == "cpu"


def steps_of_gpu_workers(graph: proto.Pipeline) -> set[str]:
    """Return the steps, by their first names, that share a stage with a step with a hint if a runner fuses all that it can.

    Steps are fused across every collection that is not a side input, unless one of them is a shuffle, an impulse or a
    flatten; hints of fused steps are united.
    """
    steps = [step for step in graph.components.transforms.values() if not step.subtransforms and step.spec.urn]
    cuts = {"beam:transform:group_by_key:v1", "beam:transform:impulse:v1", "beam:transform:flatten:v1"}
    fused = {step.unique_name: {step.unique_name} for step in steps}
    producers = {output: step for step in steps for output in step.outputs.values()}
    for step in steps:
        sides = proto.ParDoPayload.FromString(step.spec.payload).side_inputs if "pardo" in step.spec.urn else {}
        for name, collection in step.inputs.items():
            producer = producers[collection]
            if name not in sides and not cuts & {step.spec.urn, producer.spec.urn}:
                stage = fused[step.unique_name] | fused[producer.unique_name]
                fused |= dict.fromkeys(stage, stage)
    hints = hints_of(graph)
    names = {name for step, stage in fused.items() if hints.get(step.removeprefix("EmbedCorpus/")) for name in stage}
    return {name.removeprefix("EmbedCorpus/").split("/")[0] for name in names}


WITH_THE_MODEL = {"CreateCanary", "EmbedCanary", "CheckCanary", "SpreadBatches", "EmbedAndWrite"}


def test_fused_steps_take_no_gpu_for_reading_and_reuse(flags: list[str]) -> None:
    """Readers, the join with earlier vectors and the writer of known rows are in no stage of a step with the model."""
    pipeline = beam.Pipeline(runner="DirectRunner", options=PipelineOptions())
    _ = pipeline | "EmbedCorpus" >> EmbedCorpus(parse_options(flags), StubHead())
    assert steps_of_gpu_workers(pipeline.to_runner_api()) == WITH_THE_MODEL


def test_without_an_accelerator_no_step_has_a_hint(flags: list[str]) -> None:
    """Any hint turns right fitting on, which must not be combined with a GPU for the whole pool."""
    pipeline = beam.Pipeline(runner="DirectRunner", options=PipelineOptions())
    options = parse_options([flag for flag in flags if not flag.startswith("--accelerator")])
    _ = pipeline | "EmbedCorpus" >> EmbedCorpus(options, StubHead())
    assert not any(hints_of(pipeline.to_runner_api()).values())
    assert encoder_settings(options, TEXT).device == "auto"


def test_forms_of_an_accelerator(flags: list[str]) -> None:
    """A GPU's name stands for Dataflow's full form; anything else, and a local run, is a usage error."""
    full = "type:nvidia-l4;count:2;machine_type:g2-standard-24;install-nvidia-driver:5xx"
    assert parse_options([*flags[:-1], f"--accelerator={full}"]).accelerator == full
    assert parse_options(flags).accelerator == GPU.decode()
    t4 = parse_options([*flags[:-1], "--accelerator=nvidia-tesla-t4"]).accelerator
    assert t4 == "type:nvidia-tesla-t4;count:1;install-nvidia-driver:5xx", "the default driver may be too old for torch"
    for bad in ("L4 GPU", "type:nvidia-l4", "type:nvidia-l4;count:0", "nvidia-l4;count:1"):
        with pytest.raises(UsageError, match="is neither the name of a GPU"):
            parse_command_line(["embed", *flags[:4], "--accelerator", bad])
    with pytest.raises(OptionsError, match="--accelerator is for remote workers"):
        parse_options([*flags[:4], "--accelerator=nvidia-l4"]).check()
    with pytest.raises(OptionsError, match="--accelerator and worker_accelerator cannot be combined"):
        parse_options([*flags, f"--dataflow_service_options=enable_prime,{POOL_GPU}"]).check()


class _Result:
    def wait_until_finish(self) -> None:
        raise AssertionError("a template's launcher must not wait")


def test_a_flex_template_submits_and_returns(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --template_location the launcher neither waits for the job nor reads its manifest; it prints one line.

    The run counts as alive when the launcher has ended, although no job id is known.
    """
    monkeypatch.setenv(FLEX_LAUNCHER, "1")
    monkeypatch.setattr(beam.Pipeline, "run", lambda self: _Result())
    monkeypatch.setattr(runner, "choose_runner", lambda options: "DirectRunner")
    stubbed = EmbedCorpus
    monkeypatch.setattr(run_module, "EmbedCorpus", lambda options, **_: stubbed(options, StubHead()))
    assert run_module.embed([*flags, f"--template_location={tmp_path / 'job'}"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("submitted 2")
    assert f"audioclip log {tmp_path / 'out'}" in output
    dead, notes = dead_runs(str(tmp_path / "out"), list_runs(str(tmp_path / "out")))
    assert not dead
    assert "may still be running" in notes[0]


class _FailingJob:
    """A result of Dataflow's runner whose job fails, or whose service stops answering."""

    def __init__(self, state: str | None) -> None:
        self._state = state

    def job_id(self) -> str:
        return "2026-11-25_id"

    def wait_until_finish(self) -> None:
        raise RuntimeError("the job failed, or the connection was lost")

    @property
    def state(self) -> str:
        if self._state is None:
            raise OSError("no connection")
        return self._state


@pytest.mark.parametrize(("state", "known"), [("FAILED", True), ("RUNNING", False), (None, False)])
def test_a_job_that_fails_is_marked_as_ended_if_that_is_known(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str | None, known: bool
) -> None:
    """If only the connection was lost, the mark of the run names the service that the next run asks."""
    monkeypatch.setattr(job_service, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("requests.Session.get", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("apache_beam.internal.gcp.auth._Credentials._credentials_init", True)
    monkeypatch.setattr(beam.Pipeline, "run", lambda self: _FailingJob(state))
    monkeypatch.setattr(runner, "choose_runner", lambda options: "DirectRunner")
    options = parse_options([*flags, "--project=my-project", "--region=europe-west4"])
    corpus = EmbedCorpus(options, StubHead())
    with pytest.raises(RuntimeError, match="the job failed, or"):
        run(corpus, options)
    corpus.close()
    output = str(tmp_path / "out")
    assert list(dead_runs(output, list_runs(output))[0]) == ([corpus.snapshot] if known else [])
    marks = [json.loads(path.read_text()) for path in tmp_path.glob("out/snapshots/*/run.json")]
    place = {"endpoint": "https://dataflow.googleapis.com", "project": "my-project", "region": "europe-west4"}
    expected = {"job": "2026-11-25_id", "runner": "DataflowRunner", **place}
    assert [mark | expected for mark in marks] == marks
    assert len(marks) == (0 if known else 1)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve a gs:// bucket on loopback, to which Dataflow's client uploads its files."""
    with object_stores.gcs() as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        yield store.url


POOL_GPU = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
def test_the_real_runner_translates_the_job(flags: list[str], request: pytest.FixtureRequest) -> None:
    """DataflowRunner in a dry run, with a bucket on loopback: its job contains our image, hints, options and steps.

    It runs in a separate environment: with Google's packages installed, Beam takes a second longer to import in each of
    the tests' processes.
    """
    if importlib.util.find_spec("google.cloud.dataflow_v1beta3") is None:
        folder = dataflow_environment()
        test = f"{Path(__file__)}::{request.node.name}"
        command = [str(folder / "python"), "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", test]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "1 passed" in done.stdout, done.stdout
        return
    from apache_beam.runners.dataflow.internal.apiclient import Environment

    bucket = request.getfixturevalue("bucket")
    cloud = ["--project=project", "--region=europe-west4", "--no_auth", "--dry_run=True", "--sdk_location=container"]
    cloud += [f"--temp_location={bucket}/tmp", f"--staging_location={bucket}/staging", "--machine_type=g2-standard-8"]
    options = parse_options([*flags, *cloud, "--dataflow_service_options=enable_prime", "--max_num_workers=7"])
    corpus = EmbedCorpus(options, StubHead())
    jobs = []
    run_pipeline = beam.Pipeline.run

    def record(self: beam.Pipeline, *arguments: Any, **options: Any) -> Any:
        jobs.append(run_pipeline(self, *arguments, **options))
        return jobs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam.Pipeline, "run", record)
        assert run(corpus, options) is False
    job = jobs[0].job
    graph = job.proto_pipeline
    images = {
        proto.DockerPayload.FromString(each.payload).container_image for each in graph.components.environments.values()
    }
    assert images == {IMAGE}
    hints = hints_of(graph)
    on_gpu = {name.split("/")[0] for name, hint in hints.items() if hint.get(resource_hints.ACCELERATOR.urn) == GPU}
    assert on_gpu == {"EmbedCanary", "EmbedAndWrite"}
    assert steps_of_gpu_workers(graph) == WITH_THE_MODEL
    steps = [step.spec for step in graph.components.transforms.values() if step.spec.urn == "beam:transform:pardo:v1"]
    functions = [pickler.loads(proto.ParDoPayload.FromString(spec.payload).do_fn.payload)[0] for spec in steps]
    assert {"PublishSnapshot", "WriteFiles", "ReuseVectors"} <= {type(function).__name__ for function in functions}

    # What it would submit.
    environment = Environment([], job.options, "8", f"{bucket}/staging/pipeline.pb", graph).proto
    (pool,) = environment.worker_pools
    assert list(environment.service_options) == ["enable_prime"]
    assert (pool.machine_type, pool.autoscaling_settings.max_num_workers) == ("g2-standard-8", 7)
    assert {image.container_image for image in pool.sdk_harness_container_images} == {IMAGE}
    sdk_options = dict(environment.sdk_pipeline_options)["options"]
    assert (sdk_options["id_field"], sdk_options["sdk_container_image"]) == (["id"], IMAGE)
