"""`current.json` is changed by one run at a time, on every kind of store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem

from audioclip_text.pipeline.errors import SnapshotError
from audioclip_text.pipeline.io import json_file as pointer
from audioclip_text.pipeline.io.json_file import read_json, update_json, write_json
from tests.support.object_stores import connected


class _OtherFileSystem(LocalFileSystem):
    """A file system that is none of those we know the preconditions of: other://PATH."""

    @classmethod
    def scheme(cls) -> str:
        return "other"

    def _plain(self, path: str) -> str:
        return path.removeprefix("other://")

    def exists(self, path: str) -> bool:
        return bool(super().exists(self._plain(path)))

    def open(self, path: str, *args: object, **options: object) -> object:
        return super().open(self._plain(path), *args, **options)

    def create(self, path: str, *args: object, **options: object) -> object:
        return super().create(self._plain(path), *args, **options)

    def delete(self, paths: list[str]) -> None:
        super().delete([self._plain(path) for path in paths])


@pytest.fixture(params=["local", "gs", "s3", "other"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """current.json on each kind of store."""
    if request.param in ("gs", "s3"):
        with connected(request.param, monkeypatch) as store:
            yield f"{store.url}/out/current.json"
    else:
        yield f"{'other://' if request.param == 'other' else ''}{tmp_path}/current.json"


def test_a_change_sees_what_is_there_and_replaces_it(path: str) -> None:
    """From nothing to one, from one to two, and left alone where nothing is decided."""
    seen: list[object] = []
    for value in ({"snapshot": "one"}, {"snapshot": "two"}, None, {"snapshot": "thrée"}):
        update_json(path, lambda now, value=value: seen.append(now) or value)  # type: ignore[func-returns-value,misc]
    assert seen == [None, {"snapshot": "one"}, {"snapshot": "two"}, {"snapshot": "two"}]


def test_of_two_changes_at_once_one_fails(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decides on what is no longer there does not write."""

    def late(now: object) -> dict[str, object]:
        update_json(path, lambda _: {"snapshot": "first"})
        return {"snapshot": "second"}

    impatient = pointer.FileLock
    monkeypatch.setattr(pointer, "FileLock", lambda lock, timeout: impatient(lock, timeout=0.1))
    with pytest.raises(
        (SnapshotError, TimeoutError), match=r"in this moment|holds .*\.lock: run again|could not be acquired"
    ):
        update_json(path, late)
    seen: list[object] = []
    update_json(path, seen.append)
    assert seen in ([{"snapshot": "first"}], [None])


def test_a_lock_file_names_its_owner_and_ages(tmp_path: Path) -> None:
    """Where there are only lock files, a fresh one is respected and an old one is not."""
    path = f"other://{tmp_path}/current.json"
    write_json(f"{path}.lock", {"owner": "ann@host:7", "time": time.time() - 60})
    with pytest.raises(SnapshotError, match="ann@host:7 holds"):
        update_json(path, lambda _: {"snapshot": "mine"})
    assert read_json(path) is None
    write_json(f"{path}.lock", {"owner": "ann@host:7", "time": time.time() - 3600})
    update_json(path, lambda _: {"snapshot": "mine"})
    assert read_json(path) == {"snapshot": "mine"}
    assert not (tmp_path / "current.json.lock").exists()


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_damaged_pointer_is_a_clear_error(tmp_path: Path, content: str) -> None:
    """What is no JSON object is named, and never taken for an empty store."""
    (tmp_path / "current.json").write_text(content)
    with pytest.raises(SnapshotError, match=r"current\.json (is not JSON|holds no JSON object)"):
        read_json(str(tmp_path / "current.json"))
