"""Real disks that are full, read-only or fail half-way: the run reports it, and the earlier snapshot stays current."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apache_beam as beam
import pytest
import torch

from audioclip_beam.pipeline import EmbedCorpus, EmbedOptions
from audioclip_beam.pipeline.changes import find_changes
from audioclip_beam.pipeline.errors import SnapshotError, convert_write_errors
from audioclip_beam.pipeline.report.html import ensure_report
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.history import gc
from audioclip_beam.pipeline.snapshots.listing import read_file_list
from audioclip_beam.pipeline.validation import check_rows, validate
from audioclip_beam.pipeline.writers.parquet_file import ParquetFileWriter
from tests.support import synced
from tests.support.corpus import embed, read, write_jsonl
from tests.support.plain_tower import small_state
from tests.support.preloaded import preloaded_programs
from tests.support.snapshots import random_batches, write_snapshot
from tests.support.stub import ENCODERS, StubHead
from tests.support.users import UNPRIVILEGED, unprivileged

is_synced = synced.is_synced

ROOT = Path(__file__).parents[2]


def _corpus(path: Path, rows: int, noise: int = 0) -> Path:
    dice = random.Random(1)
    return write_jsonl(
        path, [{"id": f"r{n}", "text": f"number {n} {dice.randbytes(noise).hex()}"} for n in range(rows)]
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system of 1 MiB can be mounted by root alone: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(tmp_path: Path, small_disk: Path) -> None:
    """The run names path and cause, and the earlier snapshot stays current; with more space the next run succeeds."""
    output = small_disk / "out"
    _corpus(tmp_path / "a.jsonl", 50)
    first, _ = embed(tmp_path / "a.jsonl", output, id_field="id")
    before = read(output)
    _corpus(tmp_path / "a.jsonl", 8000, noise=200)
    with pytest.raises(RuntimeError, match=r"disk/out/\S+ cannot be written: No space left on device: free disk space"):
        embed(tmp_path / "a.jsonl", output, StubHead(), id_field="id")
    assert current_name(str(output)) == first["snapshot"]
    assert read(output).equals(before)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    manifest, _ = embed(tmp_path / "a.jsonl", output, StubHead(), id_field="id")
    assert len(read(output)) == manifest["counts"]["read"] == 8000
    assert not list(output.rglob("*.tmp"))
    assert len(list((output / "snapshots").iterdir())) == 2, "what the failed run left was not removed"


@contextmanager
def _limited_files(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes during the block, as quotas and shells can."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.slow
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """A limit on the size of files ends a run as a full disk does."""
    _corpus(tmp_path / "a.jsonl", 3000)
    refused = pytest.raises(RuntimeError, match=r"out/\S+ cannot be written: File too large: free disk space")
    with _limited_files(20_000), refused:
        embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")
    assert current_name(str(tmp_path / "out")) is None
    assert embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")[0]["counts"]["read"] == 3000


def test_small_files_that_cannot_be_written(tmp_path: Path) -> None:
    """The listings with which a run starts, and the report made again: the error names the file and a remedy."""
    output = tmp_path / "out"
    embed(_corpus(tmp_path / "a.jsonl", 50), output, id_field="id")
    _corpus(tmp_path / "a.jsonl", 60)
    refused = pytest.raises(SnapshotError, match=r"\S+Z-\w+/_\w+.parquet cannot be written: File too large: free disk")
    chosen = EmbedOptions(input=[str(tmp_path / "a.jsonl")], output=str(output))
    corpus = EmbedCorpus(chosen, StubHead())
    with _limited_files(500), refused:
        _ = beam.Pipeline() | corpus
    corpus.close()
    refused = pytest.raises(SnapshotError, match=r"report.html cannot be written: File too large: free disk space")
    with _limited_files(500), refused:
        ensure_report(str(output), remake=True)


def test_temporary_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `validate`, of `changes`, and of part files for an object store: the error names their directory."""
    output, folder = tmp_path / "out", tempfile.gettempdir()
    write_snapshot(output, random_batches(3000, 4), 4)
    monkeypatch.setattr(check_rows, "CACHE_KIB", 1)
    refused = rf"temporary files cannot be written into {folder}: .*: free disk space there, or set TMPDIR to another"
    with _limited_files(20_000):
        for command in (find_changes, validate):
            with pytest.raises(SnapshotError, match=refused):
                command(str(output))
    (batch,) = random_batches(3000, 4)
    refused = rf"gs://bucket/out cannot be written: File too large in {folder}: free disk space there, or set TMPDIR to"
    writer = ParquetFileWriter("gs://bucket/out", "part-1.parquet", batch.schema, {})
    writer.add(batch)
    with _limited_files(20_000), pytest.raises(SnapshotError, match=refused), convert_write_errors("gs://bucket/out"):
        writer.finish()


@pytest.fixture
def shared_directory(tmp_path: Path) -> Iterator[Path]:
    """Return a directory, writable by all, with a corpus of 100 rows and a snapshot of 50."""
    # Only root may enter the directories that pytest makes for root.
    root = tmp_path if os.geteuid() else Path(tempfile.mkdtemp())
    root.chmod(0o777)
    with unprivileged():
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


def test_gc_of_a_directory_that_cannot_be_removed(shared_directory: Path) -> None:
    """The error names it and the cause, and says how many others were removed."""
    output = shared_directory / "out"
    with unprivileged():
        for rows in (60, 70):
            embed(_corpus(shared_directory / "a.jsonl", rows), output, id_field="id")
        first, _, third = sorted((output / "snapshots").iterdir())
        first.chmod(0o555)
        message = rf"1 directory cannot be removed, for instance {first} \(Permission denied\), and 1 could: give write"
        with pytest.raises(SnapshotError, match=message):
            gc(str(output), 1)
        assert sorted((output / "snapshots").iterdir()) == [first, third]
        first.chmod(0o777)
        assert gc(str(output), 1) == [first.name]


def test_a_read_only_output(shared_directory: Path) -> None:
    """If nothing can be written, nothing is started, and the message names the directory and the missing permission."""
    before = current_name(str(shared_directory / "out"))
    _forbid(shared_directory / "out")
    refused = pytest.raises(RuntimeError, match=r"out cannot be written: Permission denied: free disk space")
    with unprivileged(), refused:
        embed(shared_directory / "a.jsonl", shared_directory / "out", id_field="id")
    assert current_name(str(shared_directory / "out")) == before
    assert len(read(shared_directory / "out")) == 50


@pytest.mark.slow
@pytest.mark.parametrize("directories", ["out", "out/snapshots/*Z-*"])
def test_the_right_to_write_is_lost_half_way(shared_directory: Path, directories: str) -> None:
    """If the permission is removed while the model runs, the run fails and names the path; the next run with it succeeds."""
    before = set((shared_directory / "out/snapshots").iterdir())

    class Forbidding(StubHead):
        def encoder(self):  # type: ignore[no-untyped-def]
            encoder = super().encoder()
            plain = type(encoder).encode_rows

            def encode_rows(texts):  # type: ignore[no-untyped-def]
                for path in shared_directory.glob(directories):
                    if path not in before:
                        path.chmod(0o555)
                return plain(encoder, texts)

            encoder.encode_rows = encode_rows  # type: ignore[method-assign]
            return encoder

    with unprivileged():
        with pytest.raises(RuntimeError, match=r"out\S* cannot be written: Permission denied: free disk space"):
            embed(
                shared_directory / "a.jsonl", shared_directory / "out", Forbidding(weights="forbidding"), id_field="id"
            )
        ENCODERS.clear()
        for path in shared_directory.glob(directories):
            path.chmod(0o777)
        assert [f"{path}" for path in before] == [
            str(shared_directory / "out/snapshots" / str(current_name(str(shared_directory / "out"))))
        ]
        embed(shared_directory / "a.jsonl", shared_directory / "out", StubHead(weights="forbidding"), id_field="id")
    assert len(read(shared_directory / "out")) == 100
    assert len(list((shared_directory / "out/snapshots").iterdir())) == 2


@pytest.mark.slow
def test_the_command_line_reports_it_in_one_line(shared_directory: Path, vocabulary: Path) -> None:
    """No traceback is printed, and the exit status is that of a failed run."""
    torch.save(small_state(vocabulary=49408), shared_directory / "small.pt")
    (shared_directory / "out/snapshots").chmod(0o555)
    code = "import sys; from audioclip_beam.pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ["embed", f"--input={shared_directory / 'a.jsonl'}", f"--output={shared_directory / 'out'}"]
    flags += [f"--checkpoint={shared_directory / 'small.pt'}", f"--tokenizer_path={vocabulary}"]
    if os.geteuid() == 0:
        modules = ("pipeline.cli.embed_command", "pipeline.embed", "model.text.encoder")
        imports = f"import os, {', '.join(f'audioclip_beam.{module}' for module in modules)}"
        code = f"{imports}; os.seteuid({UNPRIVILEGED}); {code}"
    command = [preloaded_programs() / "python", "-c", code, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "audioclip: error: " in done.stderr
    assert "cannot be written: Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_manifest_names_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced: Callable[[Path], bool]
) -> None:
    """Files of rows, also those that are carried over on a disk without links, lists of files, manifest and pointer."""

    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    output = tmp_path / "out"
    _corpus(tmp_path / "a.jsonl", 50)
    first, _ = embed(tmp_path / "*.jsonl", output, id_field="id")
    write_jsonl(tmp_path / "b.jsonl", [{"id": "new", "text": "new"}, {"id": "empty", "text": ""}])
    manifest, _ = embed(tmp_path / "*.jsonl", output, id_field="id")
    files = {file.name for file in read_file_list(str(output), manifest)}
    assert files > {file.name for file in read_file_list(str(output), first)}, "nothing was carried over"
    directory = output / "snapshots" / manifest["snapshot"]
    names = {*files, manifest["files"]["name"], manifest["shards"]["name"], "manifest.json"}
    assert {name for name in names if not is_synced(directory / name)} == set()
    assert is_synced(output / "current.json")
