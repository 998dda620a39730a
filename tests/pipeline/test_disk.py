"""Real disks that are full, read-only or taken away half-way: the run says so, and the snapshot before it stands."""

from __future__ import annotations

import os
import random
import resource
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from audioclip_text.pipeline.snapshots.commit import current_name
from tests.support.corpus import embed, read, write_jsonl
from tests.support.stub import ENCODERS, StubHandler

ROOT = Path(__file__).parents[2]
NOBODY = 65534


def _corpus(path: Path, rows: int, noise: int = 0) -> Path:
    dice = random.Random(1)
    return write_jsonl(
        path, [{"id": f"r{n}", "text": f"number {n} {dice.randbytes(noise).hex()}"} for n in range(rows)]
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system of 1 MiB can be mounted by root alone: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_up(tmp_path: Path, small_disk: Path) -> None:
    """The run names path and cause; the snapshot before it stands; with room again the next run succeeds."""
    output = small_disk / "out"
    _corpus(tmp_path / "a.jsonl", 50)
    first, _ = embed(tmp_path / "a.jsonl", output, id_field="id")
    before = read(output)
    _corpus(tmp_path / "a.jsonl", 8000, noise=200)
    with pytest.raises(RuntimeError, match=r"disk/out/\S+ cannot be written: No space left on device; nothing was pub"):
        embed(tmp_path / "a.jsonl", output, StubHandler(), id_field="id")
    assert current_name(str(output)) == first["snapshot"]
    assert read(output).equals(before)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    manifest, _ = embed(tmp_path / "a.jsonl", output, StubHandler(), id_field="id")
    assert len(read(output)) == manifest["counts"]["read"] == 8000
    assert not list(output.rglob("*.tmp"))
    assert len(list((output / "snapshots").iterdir())) == 2, "what the failed run left was not removed"


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """A limit on the size of files, as quotas and shells set it, ends a run like a full disk does, on any machine."""
    _corpus(tmp_path / "a.jsonl", 3000)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(RuntimeError, match=r"out/\S+ cannot be written: File too large; nothing was published"):
            embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert current_name(str(tmp_path / "out")) is None
    assert embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")[0]["counts"]["read"] == 3000


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A corpus of 100 rows and a store with a snapshot of 50, which everybody may write to."""
    root = tmp_path if os.geteuid() else Path("/tmp") / f"audioclip-text-{os.getpid()}"  # pytest's are root's alone
    root.mkdir(exist_ok=True)
    root.chmod(0o777)
    with _as_nobody():
        embed(_corpus(root / "a.jsonl", 50), root / "out", id_field="id")
        _corpus(root / "a.jsonl", 100)
    yield root
    for path in [root, *root.rglob("*")]:
        path.chmod(0o777)
    if root != tmp_path:
        shutil.rmtree(root)


def _forbid(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o555)


def test_a_read_only_output(place: Path) -> None:
    """Nothing is begun where nothing can be written, and the message names the place and the right that is missing."""
    before = current_name(str(place / "out"))
    _forbid(place / "out")
    refused = pytest.raises(RuntimeError, match=r"out cannot be written: Permission denied; nothing was published")
    with _as_nobody(), refused:
        embed(place / "a.jsonl", place / "out", id_field="id")
    assert current_name(str(place / "out")) == before
    assert len(read(place / "out")) == 50


@pytest.mark.parametrize("where", ["out", "out/snapshots/*Z-*"])
def test_the_right_to_write_is_lost_half_way(place: Path, where: str) -> None:
    """Taken while the model runs, at any level: the run fails, says where, and the next one with it succeeds."""
    before = set((place / "out/snapshots").iterdir())

    class Forbidding(StubHandler):
        def load_model(self):  # type: ignore[no-untyped-def]
            encoder = super().load_model()
            plain = type(encoder).encode_rows

            def encode_rows(texts):  # type: ignore[no-untyped-def]
                for path in place.glob(where):
                    if path not in before:
                        path.chmod(0o555)
                return plain(encoder, texts)

            encoder.encode_rows = encode_rows  # type: ignore[method-assign]
            return encoder

    with _as_nobody():
        with pytest.raises(RuntimeError, match=r"out\S* cannot be written: Permission denied; nothing was published"):
            embed(place / "a.jsonl", place / "out", Forbidding(name="forbidding"), id_field="id")
        ENCODERS.clear()
        for path in place.glob(where):
            path.chmod(0o777)
        assert [f"{path}" for path in before] == [str(place / "out/snapshots" / str(current_name(str(place / "out"))))]
        embed(place / "a.jsonl", place / "out", StubHandler(name="forbidding"), id_field="id")
    assert len(read(place / "out")) == 100
    assert len(list((place / "out/snapshots").iterdir())) == 2


def test_the_command_line_says_it_in_one_line(place: Path, vocabulary: Path) -> None:
    """No traceback reaches the terminal, and the exit status is that of a run that failed."""
    small_state = runpy.run_path(str(ROOT / "tests/support/plain_tower.py"))["small_state"]
    torch.save(small_state(vocabulary=49408), place / "small.pt")
    (place / "out/snapshots").chmod(0o555)
    code = "import sys; from audioclip_text.pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = [
        "embed",
        "--input",
        str(place / "a.jsonl"),
        "--output",
        str(place / "out"),
        "--checkpoint",
        str(place / "small.pt"),
    ]
    flags += ["--tokenizer_path", str(vocabulary)]
    if os.geteuid() == 0:
        code = (
            f"import os; import audioclip_text.pipeline.cli.embed, audioclip_text.model; os.seteuid({NOBODY}); {code}"
        )
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "audioclip-text: error: " in done.stderr
    assert "cannot be written: Permission denied" in done.stderr
    assert "Traceback" not in done.stderr
