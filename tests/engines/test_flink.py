"""A standalone Flink cluster: rows equal to a local run's, and nothing lost whatever is killed.

One cluster serves all tests, with the settings that docs/runners.md names.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioclip_beam.model.text.head import CANARY_TEXTS
from audioclip_beam.pipeline import embed as embed_module
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.run_directory import list_runs
from audioclip_beam.pipeline.validation import validate
from tests.support.commands import run_command
from tests.support.corpus import StubHead, embed, read, vectors, write_jsonl
from tests.support.engine_jobs import (
    ElsewhereHead,
    KeepThenDie,
    PublishThenDie,
    WorkerHead,
    WorkerSounds,
    results,
    write_corpus,
    write_media,
)
from tests.support.engines import page_command, wait_until
from tests.support.flink import Flink
from tests.support.kept_night import NEW, OPTIONS, prepare_night
from tests.support.processes import start_process
from tests.support.remote_jobs import remote_run
from tests.support.stub_media import embed_media
from tests.support.tools import require

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


class Network:
    """A bridge of this machine, and hosts at it, each a network namespace with one address."""

    def __init__(self) -> None:
        self.prefix, self.hosts = f"10.213.{os.getpid() % 250}", list[str]()
        self.bridge, self.address = f"atb{os.getpid()}", f"{self.prefix}.1"
        self.failure = ""
        try:
            self._ip(f"link add name {self.bridge} type bridge")
            self._ip(f"address add {self.address}/24 dev {self.bridge}")
            self._ip(f"link set {self.bridge} up")
            self.remove_host(self.add_host()[0])
        except (OSError, subprocess.CalledProcessError) as error:
            self.failure = f"no network namespaces: {getattr(error, 'stderr', error)}".strip()

    def add_host(self) -> tuple[str, str]:
        """Make a host; return its name and its address."""
        number = len(self.hosts) + 2
        name, address = f"at{os.getpid()}-{number}", f"{self.prefix}.{number}"
        self.hosts.append(name)
        outside = f"atv{os.getpid()}-{number}"[-15:]
        self._ip(f"netns add {name}")
        self._ip(f"link add {outside} type veth peer name eth0 netns {name}")
        self._ip(f"link set {outside} master {self.bridge} up")
        self._ip(f"-n {name} address add {address}/24 dev eth0")
        self._ip(f"-n {name} link set eth0 up")
        self._ip(f"-n {name} link set lo up")
        return name, address

    def remove_host(self, name: str) -> None:
        """Remove a host and its link."""
        self._ip(f"netns delete {name}")

    def close(self) -> None:
        """Remove what is left."""
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
        for name in self.hosts:
            if name in listed:
                self.remove_host(name)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)

    @staticmethod
    def _ip(arguments: str) -> None:
        subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    try:
        yield network
    finally:
        network.close()


@pytest.fixture(scope="module")
def flink(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flink]:
    """A cluster with one task manager, "tm", of two slots."""
    require("java", "mvn")
    address = "127.0.0.1" if network.failure else network.address
    cluster = Flink(tmp_path_factory.mktemp("flink"), address)
    try:
        cluster.start()
        cluster.start_task_manager("tm", 2)
        yield cluster
    finally:
        cluster.processes.stop()


def test_two_nights_in_all_formats(flink: Flink, tmp_path: Path) -> None:
    """Rows, vectors in every bit and rejected rows are a local run's; the second night embeds the new texts alone."""
    shards, options = write_corpus(tmp_path / "in", 5_000), flink.options()
    local, remote, known = tmp_path / "local", tmp_path / "remote", set(flink.jobs())
    embed(shards, local)
    manifest, _ = embed(shards, remote, WorkerHead(tmp_path / "first"), **options)
    assert results(remote) == results(local)
    assert manifest["counts"]["read"] >= 5_000
    assert set(manifest["counts"]["rejected_by_reason"]) >= {
        "empty text", "null text", "missing field", "wrong type", "malformed record", "model error", "non-finite vector"
    }  # fmt: skip

    with (tmp_path / "in" / "a.txt").open("a") as grown:
        grown.write("".join(f"appended {n}\n" for n in range(50)))
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"text": f"changed {n}"} for n in range(50)])
    (tmp_path / "in" / "c.csv").unlink()
    second = WorkerHead(tmp_path / "second")
    _, expected = embed(shards, local)
    manifest, _ = embed(shards, remote, second, **options)
    assert results(remote) == results(local)
    assert manifest["counts"]["embedded"] <= 100
    assert {text for text in second.texts() if "poison" not in text} >= {f"changed {n}" for n in range(50)}
    assert set(expected) <= set(second.texts())
    assert [flink.stages(job) for job in set(flink.jobs()) - known] == [6, 6], "docs/architecture.md names six stages"
    assert not {text for text in second.texts() if text.startswith("text ")}, "known texts were embedded again"


def test_the_pages_command_with_the_real_model(flink: Flink, tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """It is that of docs/runners.md, with other files and addresses.

    Vectors are within 2e-5 of a local run's, and on the next night, in which nothing changed, no job is started.
    """
    write_jsonl(tmp_path / "a.jsonl", [{"id": f"r{n}", "text": f"text {n} of a corpus"} for n in range(500)])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / vocabulary.name).symlink_to(vocabulary)  # the default, relative as input and output are
    addresses = {"8099": flink.jobs_port, "50000": flink.pool, "HOST:8081": f"{flink.address}:{flink.rest}"}
    files = {"/shared/texts/*.jsonl": "a.jsonl", "/shared/out": "remote", "/shared/text-head.safetensors": small_head}
    files["--tokenizer_path /shared/bpe_simple_vocab_16e6.txt.gz"] = ""
    command = page_command("Flink", "audioclip embed", {**addresses, **files})[1:]
    done = run_command(tmp_path, *command, "--id_field=id")
    assert done.status == 0, done.stderr
    assert "500 read = 500 embedded + 0 reused + 0 rejected" in done.stdout
    local = ["embed", "--input=a.jsonl", "--id_field=id", f"--checkpoint={small_head}", "--output=local"]
    done = run_command(tmp_path, *local)
    assert done.status == 0, done.stderr
    tables = [read(tmp_path / output) for output in ("local", "remote")]
    assert tables[0].drop(["embedding"]).equals(tables[1].drop(["embedding"]))
    np.testing.assert_allclose(*map(vectors, tables), atol=2e-5)
    jobs = flink.jobs()
    done = run_command(tmp_path, *command, "--id_field=id")
    assert done.stdout.startswith("unchanged since "), done.stderr
    assert flink.jobs() == jobs


def test_a_vocabulary_that_workers_do_not_have_ends_the_run(
    flink: Flink, tmp_path: Path, small_head: str, vocabulary: Path
) -> None:
    """The error is the worker's, and the launcher, which knows Flink's address, cancels the job there."""
    shard, known = write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}]), set(flink.jobs())
    model = {"checkpoint": small_head, "tokenizer_path": str(vocabulary)}
    options = EmbedOptions(input=[str(shard)], output=str(tmp_path / "out"), **model, **flink.options())
    corpus = EmbedCorpus(options, ElsewhereHead())
    with closing(corpus), pytest.raises(RuntimeError, match="no vocabulary at /nowhere/vocabulary.gz"):
        run(corpus, options)
    (job,) = set(flink.jobs()) - known
    wait_until(lambda: flink.jobs()[job] == "CANCELED", "the job is cancelled")


def start(flink: Flink, shards: object, output: Path, head: StubHead, **options: Any) -> Future[Any]:
    """Start a run in a thread of this process."""
    executor = ThreadPoolExecutor(1)
    return executor.submit(embed, str(shards), output, head, **{**flink.options(), **options})


def test_a_worker_in_the_model_a_task_manager_and_a_worker_that_has_published_are_killed(
    flink: Flink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job survives all three: its snapshot is published, and every row occurs once."""
    for shard in range(4):
        rows = [{"id": f"r{shard}-{n}", "text": f"text {shard} {n}"} for n in range(500)]
        write_jsonl(tmp_path / f"in/{shard}.jsonl", rows)
    embed(tmp_path / "in/*.jsonl", tmp_path / "local", id_field="id")
    monkeypatch.setattr(embed_module, "PublishSnapshot", PublishThenDie)
    known, head = set(flink.jobs()), WorkerHead(tmp_path / "log", delay=0.002)
    run = start(flink, tmp_path / "in/*.jsonl", tmp_path / "out", head, id_field="id", batch_size=100)
    wait_until(lambda: run.done() or len(head.texts()) > 200, "the model runs", 120)
    flink.workers("tm")[0].kill()
    before = len(head.texts())
    wait_until(lambda: run.done() or len(head.texts()) > before + 200, "the model runs again", 120)
    flink.processes.kill("tm")
    flink.start_task_manager("tm", 2)
    manifest, _ = run.result(240)
    (job,) = set(flink.jobs()) - known
    assert 3 <= flink.restarts(job) <= 6, "one for each, or two if a restart meets what is left of the dead one"
    assert manifest["counts"]["read"] == 2_000
    assert results(tmp_path / "out") == results(tmp_path / "local")
    assert list(list_runs(str(tmp_path / "out"))) == [current_name(str(tmp_path / "out"))]


def test_a_worker_that_embeds_sounds_is_killed(flink: Flink, tmp_path: Path) -> None:
    """Rows, vectors in every bit and rejected rows are a local run's."""
    sounds = write_media(tmp_path / "media", 40) / "*.[wf]*"
    options = {"window": "0.25", "hop": "0.1", "batch_size": 20}
    embed_media(sounds, tmp_path / "local", **options)
    known, head = set(flink.jobs()), WorkerSounds(tmp_path / "log", delay=0.01)
    run = ThreadPoolExecutor(1).submit(embed_media, sounds, tmp_path / "out", head, **options, **flink.options())
    wait_until(lambda: run.done() or head.embedded() > 60, "the model runs", 120)
    assert not run.done(), run.exception()
    flink.workers("tm")[0].kill()
    run.result(240)
    (job,) = set(flink.jobs()) - known
    assert flink.restarts(job) >= 1
    assert results(tmp_path / "out") == results(tmp_path / "local")


def test_a_worker_that_copies_rows_is_killed(flink: Flink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a night that links, copies and merges files: what it publishes is what a local run does."""
    prepare_night(tmp_path)
    shutil.copytree(tmp_path / "out", tmp_path / "local")
    embed(tmp_path / "in/*.jsonl", tmp_path / "local", **OPTIONS)
    monkeypatch.setattr(embed_module, "KeepRows", KeepThenDie)
    known, head = set(flink.jobs()), WorkerHead(tmp_path / "log")
    manifest, _ = embed(tmp_path / "in/*.jsonl", tmp_path / "out", head, **OPTIONS, **flink.options())
    (job,) = set(flink.jobs()) - known
    assert flink.restarts(job) >= 1
    assert (tmp_path / "died").exists()
    assert manifest["counts"]["read"] == 3
    assert set(head.texts()) == {*NEW, *CANARY_TEXTS}
    assert results(tmp_path / "out") == results(tmp_path / "local")
    assert validate(str(tmp_path / "out")).valid


def test_a_job_that_must_fail_ends_after_few_restarts_and_is_left_alone_meanwhile(flink: Flink, tmp_path: Path) -> None:
    """Its launcher was killed: the next run names the job and leaves its files, which are reused without the marker."""
    rows = [{"text": f"text {n}"} for n in range(40)]
    shard, other = write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": None}]), tmp_path / "b.jsonl"
    write_jsonl(other, [{"text": "another"}])
    known, output = set(flink.jobs()), tmp_path / "out"
    launcher = start_process(remote_run, str(shard), str(output), {**flink.options(), "max_rejected": "0"})

    def submitted() -> bool:
        return any("job" in json.loads(Path(run).read_text()) for run in glob.glob(f"{output}/snapshots/*/run.json"))

    wait_until(submitted, "a job")
    launcher.kill()
    (failing,) = list_runs(str(output))
    wait_until(lambda: list((output / "snapshots" / failing).glob("part-*")), "the job runs", 120)
    manifest, texts = embed(other, output)
    assert any(f"{failing} is still running at localhost:{flink.jobs_port}" in note for note in manifest["notes"])
    assert texts == ["another"]
    (job,) = set(flink.jobs()) - known
    wait_until(lambda: flink.jobs()[job] == "FAILED", "the job fails", 240)
    assert flink.restarts(job) == 6
    assert failing in list_runs(str(output))
    # Beam's job server cannot report the end to the dead launcher, and therefore calls the job running for ever.
    (output / "snapshots" / failing / "run.json").unlink()
    manifest, texts = embed(shard, output)
    assert (manifest["counts"]["reused"], texts) == (40, [])


def test_two_hosts_of_which_one_is_destroyed(flink: Flink, network: Network, tmp_path: Path) -> None:
    """Both do the model's work; after one is gone a new one takes its place, and every row occurs once."""
    if network.failure:
        pytest.skip(network.failure)
    for shard in range(4):
        rows = [{"id": f"r{shard}-{n}", "text": f"text {shard} {n}"} for n in range(500)]
        write_jsonl(tmp_path / f"in/{shard}.jsonl", rows)
    flink.processes.kill("tm")
    wait_until(lambda: not flink.task_managers(), "the first task manager ends")
    hosts = [network.add_host() for _ in range(3)]
    for name, address in hosts[:2]:
        flink.start_task_manager(name, 1, host=name, address=address)
    head = WorkerHead(tmp_path / "log", delay=0.002)
    run = start(flink, tmp_path / "in/*.jsonl", tmp_path / "out", head, id_field="id", batch_size=100)

    wait_until(lambda: run.done() or head.hosts() == 2, "both hosts are in the model", 120)
    assert not run.done(), "one host did all the work"
    lost = hosts[0][0]
    flink.processes.kill(lost)
    flink.processes.kill(f"{lost}-pool")
    network.remove_host(lost)
    name, address = hosts[2]
    flink.start_task_manager(name, 1, host=name, address=address)
    manifest, _ = run.result(240)
    assert manifest["counts"]["read"] == 2_000
    embed(tmp_path / "in/*.jsonl", tmp_path / "local", id_field="id")
    assert results(tmp_path / "out") == results(tmp_path / "local")
    assert head.hosts() == 3
