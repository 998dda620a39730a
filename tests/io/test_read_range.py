"""Reads of byte ranges of listed files in threads, local and on object stores, and of blocks as they are needed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from apache_beam.io.filesystems import FileSystems

from audioclip_beam.pipeline.io.byte_ranges import BLOCK_BYTES, BlockFile
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.in_order import map_in_order
from audioclip_beam.pipeline.io.retries import StoreError
from audioclip_beam.pipeline.io.versions import FileChanged, ListedFile, list_remote, local_version
from tests.support import object_stores
from tests.support.object_stores import Request, Store

store, waits = object_stores.store, object_stores.waits

CONTENT = bytes(range(256)) * 4


def listed(path: Path) -> ListedFile:
    return ListedFile(str(path), path.stat().st_size, local_version(str(path)))


def put(store: Store, names: list[str]) -> list[ListedFile]:
    for name in names:
        store.put(name, CONTENT)
    return [ListedFile(*row) for row in zip(*list_remote(f"{store.url}/**", f"{store.url}/"), strict=True)]


def read_all(requests: list[tuple[ListedFile, int, int]], threads: int = 4) -> list[bytes | type[Exception]]:
    """Return the bytes of each range, or the type of its error."""

    def read(request: tuple[ListedFile, int, int]) -> bytes | type[Exception]:
        try:
            return FileIO().read_range(*request)
        except Exception as error:
            return type(error)

    return list(map_in_order(read, requests, threads, lambda _: 1, 1 << 20))


def test_ranges_of_local_files(tmp_path: Path) -> None:
    """A file that changed or is missing has an error."""
    for name in "abc":
        (tmp_path / name).write_bytes(CONTENT)
    a, b, c = (listed(tmp_path / name) for name in "abc")
    (tmp_path / "b").write_bytes(CONTENT[:-1])
    (tmp_path / "c").unlink()
    results = read_all([(a, 0, 1024), (b, 0, 3), (a, 1000, 24), (c, 1, 2)])
    assert results == [CONTENT, FileChanged, CONTENT[1000:], FileChanged]


@pytest.mark.usefixtures("waits")
def test_ranges_of_objects(store: Store) -> None:
    """A request that fails once is repeated; an object that changed or is missing has an error."""
    files = put(store, ["a", "b", "c"])
    store.put("b", CONTENT[::-1])
    FileSystems.delete([f"{store.url}/c"])
    failed = set[str]()

    def fault(request: Request) -> str | None:
        if request.method != "GET" or request.what in failed:
            return None
        failed.add(request.what)
        return ["503", "lost", "cut"][len(failed) % 3]

    store.fault = fault
    results = read_all([(file, *part) for file in files for part in [(0, 1024), (7, 9), (1023, 1)]])
    store.fault = lambda _: None
    assert results == [CONTENT, CONTENT[7:16], CONTENT[1023:], *[FileChanged] * 6]
    assert failed


def test_a_large_range_is_read_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that breaks off is not read again from its beginning."""
    monkeypatch.setattr("audioclip_beam.pipeline.io.versions.REQUEST_BYTES", 100)
    (file,) = put(store, ["a"])
    assert read_all([(file, 10, 1000)]) == [CONTENT[10:1010]]
    assert sum("a" in request.path.split("/")[-1] and request.method == "GET" for request in store.seen) >= 10


@pytest.mark.usefixtures("waits")
def test_a_store_that_fails(store: Store) -> None:
    """The error names the object and the answer."""
    (file,) = put(store, ["a"])
    store.fault = lambda _: "503"
    with pytest.raises(StoreError, match=f"{file.path} cannot be read: .*503"):
        FileIO().read_range(file, 0, 10)
    store.fault = lambda _: None


def test_a_read_that_hangs_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match=r"pipe gave no data for 0\.3 s"):
        FileIO(read_timeout=0.3).read_range(ListedFile(str(tmp_path / "pipe"), 10, ""), 0, 10)
    os.close(os.open(tmp_path / "pipe", os.O_WRONLY))  # lets the thread that hangs end


def test_blocks_of_a_file(tmp_path: Path) -> None:
    """Any reads give what the file has, and each block is read once, unless a read takes more than one block."""
    chance = random.Random(5)
    content = chance.randbytes(5 * BLOCK_BYTES + 77)
    ranges = list[tuple[int, int]]()

    def read_range(offset: int, size: int) -> bytes:
        ranges.append((offset, size))
        return content[offset : offset + size]

    file = BlockFile(len(content), read_range)
    for _ in range(200):
        start, size = chance.randrange(len(content) + 9), chance.choice([1, 9, 5000, BLOCK_BYTES])
        assert file.seek(start) == start
        assert file.read(size) == content[start : start + size]
        assert file.tell() == min(start + size, max(start, len(content)))
    assert sorted(ranges) == sorted(set(ranges))
    assert len(ranges) == 6
    assert file.seek(-3 * BLOCK_BYTES, os.SEEK_END) == len(content) - 3 * BLOCK_BYTES
    assert file.read() == content[-3 * BLOCK_BYTES :]
    assert len(ranges) == 7
