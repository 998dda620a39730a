"""The image, built without Docker, embeds as any user, stops at SIGTERM, and serves Flink as a worker pool."""

from __future__ import annotations

import glob
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from audioclip_beam.model.files import sha256_of_file
from tests.support import image
from tests.support.commands import run_command
from tests.support.corpus import read, vectors, write_jsonl
from tests.support.engines import wait_until
from tests.support.flink import Flink
from tests.support.http_server import serving
from tests.support.paths import ROOT
from tests.support.tools import require

pytestmark = [pytest.mark.extra, pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(2400)]

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    """Build the image; buildah fetches three gigabytes for it the first time."""
    if missing := image.missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    image.build()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that every user may write into, with the vocabulary in `cache` beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    for each in (*tmp_path.parents, tmp_path, folder):
        if each.is_relative_to("/tmp") and each != Path("/tmp"):
            each.chmod(0o777)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / VOCABULARY).write_bytes((ROOT / ".cache" / VOCABULARY).read_bytes())
    return folder


def from_dockerfile(out: Path, texts: Path) -> tuple[list[str], list[str]]:
    """Return podman's options and the arguments of the `docker run` line in the Dockerfile, with random weights."""
    line = re.search(r"docker run ((?:.*\\\n)*.*)", (ROOT / "Dockerfile").read_text())
    assert line
    words = shlex.split(re.sub(r"\\\n# *", " ", line[1]).replace("$PWD/out", str(out)).replace("$PWD/texts", str(texts))
                        .replace("$PWD/.cache", str(out.parent / "cache")).replace("$(id -u)", "1000"))  # fmt: skip
    words = ["untrained" if word.endswith(".pt") else word for word in words]
    place = words.index("audioclip-beam", words.index("--entrypoint") + 2)
    return words[1:place], words[place + 1 :]


def assert_equal_to_a_run_here(out: Path, checkpoint: str | Path) -> None:
    """Compare what a container wrote into `out` with the examples as this machine embeds them."""
    expected_out = out.parent / "expected"
    flags = ["--input", str(ROOT / "examples/shards/*"), "--tokenizer_path", str(ROOT / ".cache" / VOCABULARY)]
    assert run_command(out.parent, "embed", *flags, "--output", expected_out, "--checkpoint", checkpoint).status == 0
    theirs, ours = read(out), read(expected_out)
    assert theirs.drop_columns(["embedding"]).equals(ours.drop_columns(["embedding"]))
    np.testing.assert_allclose(vectors(theirs), vectors(ours), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [[], ["--user", "4242:4242"], ["--user", "1000", "--read-only"]],
    ids=["as told", "any user", "read-only"],
)
def test_the_line_of_the_dockerfile_embeds_the_examples(out: Path, changes: list[str]) -> None:
    """Vectors equal those that this machine computes."""
    options, arguments = from_dockerfile(out, ROOT / "examples/shards")
    done = subprocess.run(image.command(*arguments, options=[*options, *changes]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "weights   untrained" in done.stdout
    assert_equal_to_a_run_here(out, "untrained")


@pytest.fixture
def with_checkpoint(checkpoint_file: Path, out: Path) -> Iterator[str]:
    """The name of an image that was built with CHECKPOINT=full, which it fetched from a server on this machine.

    While it is built, Python in it takes this server for the release's, and the checksum of the file of seeded weights
    for the released one's.
    """
    served = out.parent / "served"
    served.mkdir()
    (served / checkpoint_file.name).symlink_to(checkpoint_file)
    (served / VOCABULARY).symlink_to(ROOT / ".cache" / VOCABULARY)
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with serving(handler) as port:
        released = checkpoint_file.name, checkpoint_file.stat().st_size, sha256_of_file(checkpoint_file)
        statements = [
            "import audioclip_beam.model.fetch as fetching",
            f"fetching.FILES['full'] = fetching.Released(*{released})",
            f"fetching.fetch.__defaults__ = ('.cache', 'http://127.0.0.1:{port}')",
        ]
        (out.parent / "release.pth").write_text("; ".join(statements))
        place = "/usr/local/lib/python3.11/dist-packages/release.pth"
        tag = f"{image.NAME}-with-checkpoint"
        image.build("-v", f"{out.parent}/release.pth:{place}:ro", "--build-arg", "CHECKPOINT=full", tag=tag)
    yield tag
    subprocess.run(["buildah", "rmi", tag], check=True, capture_output=True)


def test_an_image_with_a_checkpoint(with_checkpoint: str, out: Path, safetensors_file: Path) -> None:
    """The three heads and the vocabulary are in it, verified, and the released file is not."""
    baked = ["--checkpoint", "/opt/audioclip/text-head.safetensors", "--tokenizer_path", f"/opt/audioclip/{VOCABULARY}"]
    flags = ["--input", str(ROOT / "examples/shards/*"), "--output", "/out", *baked]
    options = ["--entrypoint", "sh", "-v", f"{out}:/out", "-v", f"{ROOT}/examples:{ROOT}/examples:ro"]
    script = f"ls /opt/audioclip && {shlex.join(['audioclip', 'embed', *flags])}"
    done = subprocess.run(
        image.command("-c", script, options=options, image=with_checkpoint), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    baked = [VOCABULARY, *(f"{head}-head.safetensors" for head in ("audio", "image", "text"))]
    assert sorted(done.stdout.splitlines()[:4]) == sorted(baked)
    assert_equal_to_a_run_here(out, safetensors_file)


def test_a_container_stops_at_sigterm(out: Path) -> None:
    """SIGTERM reaches the first process of the container: exit status 143, nothing is published."""
    texts = out.parent / "texts"
    write_jsonl(texts / "a.jsonl", [{"text": f"a long text number {n} of a corpus"} for n in range(50_000)])
    options, arguments = from_dockerfile(out, texts)
    name = f"audioclip-beam-{out.parent.name}"
    container = subprocess.Popen(
        image.command(*arguments, options=[*options, "--name", name]), stderr=subprocess.PIPE, text=True
    )
    wait_until(
        lambda: [*glob.glob(f"{out}/snapshots/*/run.json"), *glob.glob(f"{out}/snapshots/*/.*")], "the run begins", 120
    )
    subprocess.run(["podman", "kill", "--signal", "TERM", name], check=True, capture_output=True)
    _, errors = container.communicate(timeout=60)
    assert container.returncode == 128 + signal.SIGTERM, errors
    assert "interrupted by SIGTERM" in errors
    assert not (out / "current.json").exists()


@pytest.fixture
def flink(tmp_path: Path) -> Iterator[Flink]:
    """A cluster whose task manager has a worker pool that is a container."""
    require("java", "mvn")
    (tmp_path / "flink").mkdir()
    cluster = Flink(tmp_path / "flink")
    cluster.pool = 50000  # the image's own
    name = f"audioclip-beam-pool-{os.getpid()}"
    try:
        cluster.start()
        options = ["--name", name, "-v", f"{tmp_path}:{tmp_path}", "-v", f"{ROOT}/examples:{ROOT}/examples:ro"]
        cluster.processes.start("tm-pool", *image.command("--worker_pool", options=options))
        cluster.processes.wait_for_port("tm-pool", cluster.pool)
        cluster.start_task_manager("tm", 2)
        yield cluster
    finally:
        subprocess.run(["podman", "kill", name], check=False, capture_output=True)  # it outlives podman's own process
        cluster.processes.stop()


def test_a_worker_pool_of_the_image_serves_flink(flink: Flink, out: Path) -> None:
    """Workers need nothing of this machine but the texts, the vocabulary and the output."""
    flags = ["--input", str(ROOT / "examples/shards/*"), "--output", out, "--checkpoint", "untrained"]
    vocabulary = out.parent / "cache" / VOCABULARY
    done = run_command(out.parent, "embed", *flags, "--tokenizer_path", vocabulary, *flink.flags())
    assert done.status == 0, done.stderr
    assert read(out).num_rows > 10
