"""The same command on Beam's other runners, with workers in separate processes that import the project from a wheel."""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from tests.support.corpus import read, vectors, write_jsonl
from tests.support.pages import environment_of_the_tests, read_page, sections
from tests.support.preloaded import preloaded_programs
from tests.support.tools import free_port

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an interpreter with the requirements and the project's wheel installed, and no checkout on its path."""
    folder = tmp_path_factory.mktemp("worker")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = folder / "source"
    ignored = shutil.ignore_patterns(".*", "out", "*.egg-info", "build", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy)]
    subprocess.run(wheel, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (file,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(file)], check=True, capture_output=True)
    # Paths in a .pth are searched, but .pth files in them, such as that of an editable install, are not read.
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    note = f"import sys\nprint(sys.orig_argv, file=open({str(folder / 'started')!r}, 'a'))\n"
    (site / "sitecustomize.py").write_text(note)
    python = folder / "venv" / "bin" / "python"
    code = "import audioclip_beam.pipeline as p; print(p.__file__)"
    done = subprocess.run(
        [python, "-c", code], env=bare_environment(), check=True, capture_output=True, text=True, cwd=folder
    )
    assert Path(done.stdout.strip()).is_relative_to(site)
    return python


def bare_environment() -> dict[str, str]:
    """Return the environment without PYTHONPATH, which could lead to a checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def serve(command: list[str], port: int, folder: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server and wait until it listens on `port`."""
    log = (folder / f"{port}.log").open("wb")
    process = subprocess.Popen(command, cwd=folder, env=env or bare_environment(), stdout=log, stderr=subprocess.STDOUT)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, (folder / f"{port}.log").read_text()
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}: {(folder / f'{port}.log').read_text()}")


@pytest.fixture(scope="module")
def portable(
    worker_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[str], psutil.Process]]:
    """Start Beam's job service and worker pool as processes; yield (flags that use them, the pool)."""
    folder = tmp_path_factory.mktemp("portable")
    jobs, pool, python = free_port(), free_port(), preloaded_programs() / "python"
    servers = [
        serve(
            [str(python), "-m", "apache_beam.runners.portability.local_job_service_main", "--port", str(jobs)],
            jobs,
            folder,
        ),
        serve(
            [str(worker_python), "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"],
            pool,
            folder,
            bare_environment() | {"PATH": f"{worker_python.parent}:{os.environ['PATH']}"},  # the pool starts `python`
        ),
    ]
    flags = ["--runner=PortableRunner", f"--job_endpoint=localhost:{jobs}"]
    yield (
        [*flags, "--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"],
        psutil.Process(servers[1].pid),
    )
    stop(servers)


def stop(servers: list[subprocess.Popen[bytes]]) -> None:
    """Kill servers and their child processes."""
    for server in servers:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.kill()
        server.kill()
        server.wait()


def test_commands_of_the_page_work_as_shown(vocabulary: Path, tmp_path: Path) -> None:
    """Those of docs/runners.md without an engine, in a directory like a checkout: only the ports differ, and the wait."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / vocabulary.name).symlink_to(vocabulary)
    text = sections(read_page("docs/runners.md"))
    page = "".join(text[name] for name in ("Several processes", "A job service and a worker pool"))
    ports = {"8099": str(free_port()), "50000": str(free_port())}
    page = re.sub("8099|50000", lambda found: ports[found[0]], page)
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) for line in block.splitlines()]
    servers: list[subprocess.Popen[bytes]] = []
    outputs, environment = [], environment_of_the_tests()
    try:
        for line in lines:
            if line.endswith(" &"):
                (port,) = (port for port in ports.values() if port in line)
                command = shlex.split(line.removesuffix(" &"))
                servers.append(serve(command, int(port), tmp_path, environment))
            elif not line.startswith("sleep "):
                done = subprocess.run(
                    shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
                )
                assert done.returncode == 0, done.stderr[-3000:]
                outputs.append(done.stdout)
    finally:
        stop(servers)
    assert len(servers) == len(outputs) == 2
    assert all("298 read = 296 embedded + 0 reused + 2 rejected" in each for each in outputs)


class Corpus:
    """A corpus and how it is embedded from the command line."""

    def __init__(self, folder: Path, rows: int, head: Path, vocabulary: Path) -> None:
        self.folder, self.rows = folder, rows
        for shard in range(2):
            numbers = range(shard, rows, 2)
            write_jsonl(
                folder / "in" / f"{shard}.jsonl",
                [{"id": f"r{n}", "text": f"text {n % (rows - rows // 10)} of a corpus"} for n in numbers],
            )
        self.command = [str(preloaded_programs() / "audioclip"), "embed", f"--input={folder}/in/*.jsonl"]
        self.command += [f"--checkpoint={head}", f"--tokenizer_path={vocabulary}", "--id_field=id"]

    def start(self, output: str, flags: list[str]) -> subprocess.Popen[str]:
        command = [*self.command, f"--output={self.folder / output}", *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    def embed(self, output: str, flags: list[str]) -> str:
        process = self.start(output, flags)
        printed, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors[-3000:]
        return printed

    def assert_same(self, one: str, other: str) -> None:
        """Check that ids and texts are equal, vectors within 1e-5, and every row occurs once."""
        tables = [read(self.folder / output) for output in (one, other)]
        assert tables[0].num_rows == self.rows
        assert tables[0].drop(["embedding"]).equals(tables[1].drop(["embedding"]))
        np.testing.assert_allclose(*map(vectors, tables), atol=1e-5)

    def counts(self, output: str) -> dict[str, object]:
        """Return the counts of the current snapshot, except those that depend on how rows are batched."""
        manifest = read_manifest(str(self.folder / output), str(current_name(str(self.folder / output))))
        assert manifest
        assert "report" in manifest, manifest["notes"]
        by_batch = ("nodes", "slots", "micro_batches")
        counts = {**manifest["counts"], **manifest["counts"]["model"]}
        return {name: number for name, number in counts.items() if name not in ("model", *by_batch)}


@pytest.fixture(scope="module")
def corpus(small_head: Path, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = Corpus(tmp_path_factory.mktemp("corpus"), 600, small_head, vocabulary)
    corpus.embed("local", [])
    return corpus


def test_workers_from_a_pool_with_the_wheel_alone(
    corpus: Corpus, portable: tuple[list[str], psutil.Process], worker_python: Path
) -> None:
    """PortableRunner, with job service and workers in other processes, gives what one process gives, and reuses it."""
    flags, _ = portable
    process = corpus.start("portable", flags)
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-3000:]
    assert re.search(r"Beam's job id: job-[0-9a-f-]{36}$", errors, re.MULTILINE), errors
    assert f"{corpus.rows} read = {corpus.rows} embedded + 0 reused + 0 rejected" in output
    assert "SdkHarness" in (worker_python.parents[2] / "started").read_text(), "the workers were other interpreters"
    corpus.assert_same("portable", "local")
    assert corpus.counts("portable") == corpus.counts("local")
    output = corpus.embed("portable", [*flags, "--force"])
    assert f"{corpus.rows} read = 0 embedded + {corpus.rows} reused + 0 rejected" in output
    corpus.assert_same("portable", "local")


def test_several_processes_of_the_local_runner(corpus: Corpus) -> None:
    """multi_processing gives what one process gives."""
    output = corpus.embed("processes", ["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    assert f"{corpus.rows} read = {corpus.rows} embedded" in output
    corpus.assert_same("processes", "local")
    assert corpus.counts("processes") == corpus.counts("local")


def test_a_worker_killed_in_a_bundle_loses_and_duplicates_nothing(
    portable: tuple[list[str], psutil.Process], small_head: Path, vocabulary: Path, tmp_path: Path
) -> None:
    """The run fails with a message and publishes nothing; the next one reuses finished files, and every row occurs once."""
    flags, pool = portable
    corpus = Corpus(tmp_path, 3_000, small_head, vocabulary)
    small_files = ["--batch_size=250", "--max_file_rows=250"]
    process = corpus.start("out", [*flags, *small_files])
    while (
        len(glob.glob(f"{tmp_path}/out/snapshots/*/part-*.parquet")) < 3
    ):  # unlike pathlib's, it lets a directory vanish
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    max(pool.children(recursive=True), key=psutil.Process.create_time).kill()  # older ones belong to jobs that ended
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "audioclip: error: " in errors
    assert current_name(str(tmp_path / "out")) is None
    output = corpus.embed("out", [*flags, *small_files])
    assert "3,000 read = " in output
    assert " 0 reused" not in output, "the finished files of the dead run were not reused"
    corpus.embed("local", [])
    corpus.assert_same("out", "local")
