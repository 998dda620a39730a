"""Versions of files: what a listing contains, and reads of other versions."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from google.api_core.exceptions import PreconditionFailed, RequestRangeNotSatisfiable

from audioclip_beam.pipeline.io import object_store
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.filesystem import remove
from audioclip_beam.pipeline.io.object_store import VERSIONED_ACCESS, VersionedAccess
from audioclip_beam.pipeline.io.versions import FileChanged, ListedFile, open_listed
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError, Shard
from tests.support import object_stores
from tests.support.object_stores import Store, Waits
from tests.support.shards import read_shard

store, waits = object_stores.store, object_stores.waits


def texts(shard: Shard) -> list[str]:
    return [text for rows, _ in read_shard(shard, Fields(), pa.schema([])) for text in rows["text"].to_pylist()]


def test_a_local_version_tells_any_change(tmp_path: Path) -> None:
    """It stays while the file does, and differs after a write, a replacement, and a new time."""
    path = tmp_path / "a.txt"
    path.write_text("dog\n")
    versions = [find_shards([str(path)])[0].version]
    assert [shard.version for shard in find_shards([str(tmp_path / "*.txt")])] == versions
    path.write_text("cat\n")
    versions.append(find_shards([str(path)])[0].version)
    (tmp_path / "new").write_text("cow\n")
    (tmp_path / "new").rename(path)
    versions.append(find_shards([str(path)])[0].version)
    os.utime(path, (1, 1))
    versions.append(find_shards([str(path)])[0].version)
    assert len(set(versions)) == 4


@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
def test_size_and_time_of_change_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int) -> None:
    """A read with --compare size_mtime takes another inode for the same file, and no other time or size."""
    monkeypatch.setattr("audioclip_beam.pipeline.io.timeout_reader.SMALL_BYTES", small_bytes)
    path, alone = tmp_path / "a.txt", FileIO(compare="size_mtime")
    path.write_text("dog\n")
    listed, time = find_shards([str(path)])[0].listed, path.stat().st_mtime_ns

    def replace(content: str, mtime_ns: int) -> None:
        (tmp_path / "new").write_text(content)
        os.utime(tmp_path / "new", ns=(0, mtime_ns))
        (tmp_path / "new").rename(path)

    replace("cat\n", time)
    with alone.open_version(listed) as handle:
        assert handle.read() == b"cat\n"
    with pytest.raises(FileChanged, match=r"a\.txt changed$"), FileIO().open_version(listed):
        pass
    for content, mtime_ns in (("cat\n", time + 1), ("cow and calf\n", time)):
        replace(content, mtime_ns)
        with pytest.raises(FileChanged, match=r"a\.txt changed"), alone.open_version(listed):
            pass


def test_a_store_lists_versions(store: Store) -> None:
    """In one request for each page, and none for each object; an equal listing has equal versions."""
    paths = [store.put(f"texts/{name}.txt", name.encode()) for name in ("a", "ab", "b")]
    store.seen.clear()
    shards = find_shards([f"{store.url}/texts/*.txt"])
    assert len([request for request in store.seen if "texts" in request.path]) == 1
    assert [(shard.path, shard.bytes) for shard in shards] == [(paths[0], 1), (paths[1], 2), (paths[2], 1)]
    assert len({shard.version for shard in shards}) == 3
    assert find_shards([paths[0]]) == [shards[0]]
    store.put("texts/a.txt", b"c")
    assert find_shards([paths[0]])[0].version != shards[0].version


def test_a_small_object_is_read_by_one_request(store: Store) -> None:
    """Its size and version are known."""
    path = store.put("texts/a.txt", b"dog\ncat\n")
    (shard,) = find_shards([path])
    store.seen.clear()
    assert texts(shard) == ["dog", "cat"]
    assert len([request for request in store.seen if "texts" in request.path]) == 1


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_another_version_of_an_object_is_refused(store: Store, change: str) -> None:
    """Also one of the same size."""
    path = store.put("texts/a.txt", b"dog\n")
    (shard,) = find_shards([path])
    if change == "replaced":
        store.put("texts/a.txt", b"cat\n")
        message = "a.txt changed during the run: run again when it is complete"
    else:
        remove([path])
        message = "a.txt existed when it was listed and cannot be read now .*: restore it or leave it out"
    with pytest.raises(InputError, match=message):
        texts(shard)


def test_an_object_that_changes_between_two_requests_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mixture of two versions is read."""
    monkeypatch.setattr("audioclip_beam.pipeline.io.versions.REQUEST_BYTES", 1 << 10)
    monkeypatch.setattr("audioclip_beam.pipeline.io.timeout_reader.SMALL_BYTES", 0)
    path = store.put("texts/a.txt", b"dog\n" * 1000)
    (shard,) = find_shards([path])
    with FileIO().open_version(shard.listed) as handle:
        assert handle.read(4) == b"dog\n"
        store.put("texts/a.txt", b"cat\n" * 1000)
        with pytest.raises(FileChanged, match=r"a\.txt changed"):
            handle.read()


def test_an_answer_that_is_too_short_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, waits: Waits) -> None:
    """A connection that ends early need not raise an error in the client."""
    answers = [b"dog", b"dog\n"]
    access = VersionedAccess(VERSIONED_ACCESS["gs"].list, lambda *_: answers.pop(0))
    monkeypatch.setitem(VERSIONED_ACCESS, "gs", access)
    with open_listed(ListedFile("gs://b/a.txt", 4, "1")) as handle:
        assert handle.read() == b"dog\n"
    assert len(waits.waited) == 1


@pytest.mark.parametrize(
    "error", [PreconditionFailed, RequestRangeNotSatisfiable], ids=["another version", "a shorter one"]
)
def test_an_answer_that_shows_a_change(monkeypatch: pytest.MonkeyPatch, waits: Waits, error: type[Exception]) -> None:
    """A service may look at the range of the request before it looks at the version."""

    def refuse(*_: object) -> bytes:
        raise error("refused")  # type: ignore[no-untyped-call]

    monkeypatch.setitem(VERSIONED_ACCESS, "gs", VersionedAccess(VERSIONED_ACCESS["gs"].list, refuse))
    with (
        open_listed(ListedFile("gs://b/a.txt", 4, "1")) as handle,
        pytest.raises(FileChanged, match=r"a\.txt changed$"),
    ):
        handle.read()
    assert waits.waited == []


@pytest.mark.slow
def test_a_listing_of_several_pages_is_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store answers with a page at a time."""
    monkeypatch.setattr(object_store, "LISTING_PAGE", 3)
    names = [f"{number}.txt" for number in range(8)]
    for name in names:
        store.put(f"texts/{name}", b"x")
    store.seen.clear()
    assert [shard.name for shard in find_shards([f"{store.url}/texts/*"])] == names
    answers = len([request for request in store.seen if "prefix=" in request.what])
    assert answers == (1 if store.url.startswith("gs://") else 3)  # the emulator of gs:// has no pages
