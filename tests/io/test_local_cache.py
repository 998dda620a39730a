"""Local copies of files on object stores: one per machine, verified, and whole even if a process is killed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from audioclip_beam.pipeline.io.local_cache import Content, ReplacedError, content_of, local_copy
from audioclip_beam.pipeline.io.retries import StoreError
from tests.support import object_stores
from tests.support.object_stores import Request, Store, print_local_copy
from tests.support.processes import start_process

store = object_stores.store

DATA = bytes(range(256)) * 20_000


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the temporary directory of this test and of its processes."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def fetches(store: Store) -> int:
    """Return how often the beginning of the object was requested."""
    ranges = [str(request.headers.get("Range", request.headers.get("range", ""))) for request in store.seen]
    return sum(requested.startswith("bytes=0-") for requested in ranges)


def test_a_local_path_is_its_own_copy() -> None:
    """The file is not read."""
    assert local_copy("/no/such/file") == "/no/such/file"


@pytest.mark.slow
def test_a_copy_is_made_once_and_keeps_its_name(store: Store, temporary: Path) -> None:
    """The second call downloads nothing, unless the copy was damaged."""
    path = store.put("models/head.safetensors", DATA)
    copy = local_copy(path)
    assert Path(copy).read_bytes() == DATA
    assert Path(copy).name == "head.safetensors"
    assert Path(copy).is_relative_to(temporary)
    assert (temporary / f"audioclip-beam-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    assert local_copy(path, content_of(copy)) == copy
    assert fetches(store) == 1
    Path(copy).write_bytes(DATA[:-1] + b"\0")
    assert local_copy(path) == copy
    assert Path(copy).read_bytes() == DATA
    assert fetches(store) == 2


@pytest.mark.slow
def test_another_content_is_another_copy(store: Store, temporary: Path) -> None:
    """A replaced object is downloaded again, but not used by a job that started with the earlier one."""
    path = store.put("models/head.safetensors", DATA)
    content = content_of(local_copy(path))
    assert content == Content(len(DATA), hashlib.sha256(DATA).hexdigest())
    store.put("models/head.safetensors", DATA[::-1])
    assert Path(local_copy(path)).read_bytes() == DATA[::-1]
    assert len(list(temporary.rglob("head.safetensors"))) == 1
    with pytest.raises(ReplacedError, match=r"head\.safetensors has sha256 .*: it was replaced since; start the job"):
        local_copy(path, content)
    store.put("models/head.safetensors", b"short")
    with pytest.raises(ReplacedError, match=r"has 5 bytes, and had 5,120,000 when the job was started"):
        local_copy(path, content)


@pytest.mark.usefixtures("temporary")
def test_a_missing_object_is_a_clear_error(store: Store) -> None:
    """It names the path and what to check."""
    with pytest.raises(StoreError, match=r"none\.pt does not exist: check its name"):
        local_copy(f"{store.url}/none.pt")


@pytest.mark.slow
def test_processes_share_one_copy_even_if_one_is_killed(store: Store, temporary: Path) -> None:
    """One process is killed during its download; of three that wait, one downloads again and two use its copy."""
    path = store.put("models/head.safetensors", DATA)
    store.seen.clear()
    hanging = []

    def fault(request: Request) -> str | None:
        requested = str(request.headers.get("Range"))
        if requested.startswith("bytes=0-") and not hanging:
            hanging.append(requested)
            return "hang"
        return None

    store.fault = fault
    killed = start_process(print_local_copy, path)
    deadline = time.monotonic() + 60
    while not hanging and time.monotonic() < deadline:
        time.sleep(0.05)
    assert hanging
    outputs = [temporary.with_name(f"output{n}") for n in range(3)]
    others = [start_process(print_local_copy, path, stdout=output) for output in outputs]
    time.sleep(1)
    killed.kill()
    killed.join()
    for process in others:
        process.join(timeout=60)
    copies = {output.read_text().strip() for output in outputs}
    assert len(copies) == 1
    assert Path(copies.pop()).read_bytes() == DATA
    assert fetches(store) == 2
    folder = temporary / f"audioclip-beam-{os.getuid()}"
    assert not [file for file in folder.rglob("*") if file.name == "unfinished"]
