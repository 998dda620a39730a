"""JSON files are updated by one process at a time, on local disks and on every kind of object store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from botocore.exceptions import ClientError

from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io import json_file, object_store
from audioclip_beam.pipeline.io.json_file import read_json, update_json, write_json
from tests.support.object_stores import connected


class _OtherFileSystem(LocalFileSystem):
    """A file system without conditional writes: other://PATH."""

    @classmethod
    def scheme(cls) -> str:
        return "other"

    def _local_path(self, path: str) -> str:
        return path.removeprefix("other://")

    def exists(self, path: str) -> bool:
        return bool(super().exists(self._local_path(path)))

    def open(self, path: str, *args: object, **options: object) -> object:
        return super().open(self._local_path(path), *args, **options)

    def create(self, path: str, *args: object, **options: object) -> object:
        return super().create(self._local_path(path), *args, **options)

    def delete(self, paths: list[str]) -> None:
        super().delete([self._local_path(path) for path in paths])


@pytest.fixture(autouse=True)
def short_lock_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less after a lock file is written."""
    monkeypatch.setattr(json_file, "LOCK_CHECK_SECONDS", 0.01)


@pytest.fixture(params=["local", "gs", "s3", "other"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """current.json on each kind of file system."""
    if request.param in ("gs", "s3"):
        with connected(request.param, monkeypatch) as store:
            yield f"{store.url}/out/current.json"
    else:
        yield f"{'other://' if request.param == 'other' else ''}{tmp_path}/current.json"


def test_update_replaces_the_object_that_decide_was_given(path: str) -> None:
    """A file is created, replaced, and left alone if `decide` returns None."""
    seen: list[object] = []
    for value in ({"snapshot": "one"}, {"snapshot": "two"}, None, {"snapshot": "thrée"}):
        update_json(path, lambda now, value=value: seen.append(now) or value)  # type: ignore[func-returns-value,misc]
    assert seen == [None, {"snapshot": "one"}, {"snapshot": "two"}, {"snapshot": "two"}]


@pytest.mark.slow
def test_one_of_two_simultaneous_updates_fails(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that was decided on an older object is not written."""

    def decide_late(now: object) -> dict[str, object]:
        update_json(path, lambda _: {"snapshot": "first"})
        return {"snapshot": "second"}

    file_lock = json_file.FileLock
    monkeypatch.setattr(json_file, "FileLock", lambda lock, timeout: file_lock(lock, timeout=0.1))
    with pytest.raises(
        (SnapshotError, TimeoutError), match=r"at the same time|holds .*\.lock: run again|could not be acquired"
    ):
        update_json(path, decide_late)
    seen: list[object] = []
    update_json(path, seen.append)
    assert seen in ([{"snapshot": "first"}], [None])


def test_a_lock_file_excludes_a_run_that_saw_no_lock_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs see no lock; the second writes its own when the first has. One goes on, and keeps its lock to the end."""
    path, lock = f"other://{tmp_path}/current.json", tmp_path / "current.json.lock"
    both, exists, create, late = (
        threading.Barrier(2),
        _OtherFileSystem.exists,
        _OtherFileSystem.create,
        threading.local(),
    )
    monkeypatch.setattr(json_file, "LOCK_CHECK_SECONDS", 0.6)

    def see_none(system: _OtherFileSystem, name: str) -> bool:
        found = exists(system, name)
        if not hasattr(late, "seconds"):  # the first look of this thread
            late.seconds = 0.3 * both.wait()
        return found

    def create_late(system: _OtherFileSystem, name: str, *args: object, **options: object) -> object:
        time.sleep(late.seconds if name.endswith(".lock") else 0)
        return create(system, name, *args, **options)

    monkeypatch.setattr(_OtherFileSystem, "exists", see_none)
    monkeypatch.setattr(_OtherFileSystem, "create", create_late)

    def decide(_: object) -> dict[str, object]:
        time.sleep(0.5)
        assert lock.exists()
        return {"snapshot": "mine"}

    with ThreadPoolExecutor(2) as pool:
        errors = [run.exception() for run in [pool.submit(update_json, path, decide) for _ in range(2)]]
    assert sorted(str(error) for error in errors) == [
        "None",
        f"another run took {path}.lock at the same time: run again when it has finished",
    ]
    monkeypatch.undo()
    assert read_json(path) == {"snapshot": "mine"}
    assert not lock.exists()


def test_a_lock_file_of_another_run_is_not_removed(tmp_path: Path) -> None:
    """A run that takes longer than its lock counts leaves the lock of the run that replaced it."""
    path = f"other://{tmp_path}/current.json"
    update_json(path, lambda _: write_json(f"{path}.lock", {"owner": "ann@host:7", "time": time.time()}))  # type: ignore[func-returns-value]
    with pytest.raises(SnapshotError, match="ann@host:7 holds"):
        update_json(path, lambda _: {"snapshot": "mine"})


@pytest.mark.parametrize("scheme", ["", "other://"])
def test_the_lock_of_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """A file that is updated under the lock of another one is not updated while another run holds that lock."""
    monkeypatch.setattr(json_file, "LOCAL_LOCK_SECONDS", 0.1)
    pointer, path = f"{scheme}{tmp_path}/current.json", f"{scheme}{tmp_path}/run/manifest.json"
    (tmp_path / "run").mkdir()

    def update_another(_: object) -> None:
        update_json(path, lambda _: {"snapshot": "mine"}, lock=pointer)

    with pytest.raises(SnapshotError, match=r" holds .*/(publish|current\.json)\.lock: run again"):
        update_json(pointer, update_another)
    assert read_json(path) is None
    update_json(path, lambda _: {"snapshot": "mine"}, lock=pointer)
    assert read_json(path) == {"snapshot": "mine"}


@pytest.mark.parametrize(("status", "refused"), [(409, True), (412, True), (403, False)])
def test_a_conflict_on_s3_is_a_refused_write(monkeypatch: pytest.MonkeyPatch, status: int, refused: bool) -> None:
    """Two writes of one object at the same time: the service may answer with either status."""

    def put_object(**_: object) -> None:
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")  # type: ignore[typeddict-item]

    client = SimpleNamespace(put_object=put_object)
    monkeypatch.setattr(object_store, "s3_object", lambda _: (client, "b", "current.json"))
    access = object_store.conditional_access("s3://b/current.json")
    assert access
    if refused:
        assert access.write("s3://b/current.json", b"{}", None) is False
    else:
        with pytest.raises(ClientError):
            access.write("s3://b/current.json", b"{}", None)


def test_a_lock_file_names_its_owner_and_expires(tmp_path: Path) -> None:
    """On a file system with lock files only, a recent lock is respected and an old or damaged one is not.

    Neither is one with a time far in the future: that is from a clock that was set back since.
    """
    path = f"other://{tmp_path}/current.json"
    for ahead in (-60, 300):
        write_json(f"{path}.lock", {"owner": "ann@host:7", "time": time.time() + ahead})
        with pytest.raises(SnapshotError, match="ann@host:7 holds"):
            update_json(path, lambda _: {"snapshot": "mine"})
    assert read_json(path) is None
    for moment in (time.time() - 3600, time.time() + 86_400, "noon"):
        write_json(f"{path}.lock", {"owner": "ann@host:7", "time": moment})
        update_json(path, lambda _: {"snapshot": "mine"})
        assert read_json(path) == {"snapshot": "mine"}
        assert not (tmp_path / "current.json.lock").exists()


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, content: str) -> None:
    """A file that is not a JSON object is named, and not treated as missing."""
    (tmp_path / "current.json").write_text(content)
    with pytest.raises(SnapshotError, match=r"current\.json is not (a JSON object|JSON)"):
        read_json(str(tmp_path / "current.json"))


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file nor a temporary one stays behind."""
    path = tmp_path / "current.json"
    write_json(str(path), {"snapshot": "one"})

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(SnapshotError, match=r"current\.json cannot be written: No space left on device: .* run again"):
        write_json(str(path), {"snapshot": "two"})
    assert read_json(str(path)) == {"snapshot": "one"}
    assert [file.name for file in tmp_path.iterdir()] == ["current.json"]
