"""Parallel reads of byte ranges of listed files, local and on object stores."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.io.filesystems import FileSystems

from audioclip_beam.pipeline.io import RangeRequest, StoreError, read_ranges
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.versions import FileChanged, ListedFile, list_remote, local_version
from tests.support import object_stores
from tests.support.object_stores import Request, Store, Waits

store, waits = object_stores.store, object_stores.waits

CONTENT = bytes(range(256)) * 4


def listed(path: Path) -> ListedFile:
    return ListedFile(str(path), path.stat().st_size, local_version(str(path)))


def put(store: Store, names: list[str]) -> list[ListedFile]:
    for name in names:
        store.put(name, CONTENT)
    return [ListedFile(*row) for row in zip(*list_remote(f"{store.url}/**", f"{store.url}/"), strict=True)]


def read_all(requests: list[RangeRequest], **options: int) -> list[tuple[bytes, OSError | None]]:
    """Return the bytes and error of each request, in the order of the requests."""
    results = sorted(read_ranges(requests, file_io=FileIO(), **options), key=lambda result: result.place)
    assert [result.place for result in results] == list(range(len(requests)))
    return [(result.data, result.error) for result in results]


def test_ranges_of_local_files(tmp_path: Path) -> None:
    """Each place gets its bytes; a file that changed or is missing has an error at its place only."""
    for name in "abc":
        (tmp_path / name).write_bytes(CONTENT)
    a, b, c = (listed(tmp_path / name) for name in "abc")
    (tmp_path / "b").write_bytes(CONTENT[:-1])
    (tmp_path / "c").unlink()
    results = read_all(
        [RangeRequest(a, 0, 1024), RangeRequest(b, 0, 3), RangeRequest(a, 1000, 24), RangeRequest(c, 1, 2)]
    )
    assert results[0] == (CONTENT, None)
    assert results[2] == (CONTENT[1000:], None)
    assert isinstance(results[1][1], FileChanged)
    assert isinstance(results[3][1], FileNotFoundError)
    assert results[3][1].filename == c.path


@pytest.mark.usefixtures("waits")
def test_ranges_of_objects(store: Store) -> None:
    """A request that fails once is repeated; an object that changed or is missing has an error at its place only."""
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
    requests = [RangeRequest(file, *part) for file in files for part in [(0, 1024), (7, 9), (1023, 1), (5, 0)]]
    results = read_all(requests)
    store.fault = lambda _: None
    assert results[:4] == [(CONTENT, None), (CONTENT[7:16], None), (CONTENT[1023:], None), (b"", None)]
    assert [type(error) for _, error in results[4:7]] == [FileChanged] * 3
    assert [type(error) for _, error in results[8:11]] == [FileNotFoundError] * 3
    assert failed


def test_a_large_range_is_read_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that breaks off is not read again from its beginning."""
    monkeypatch.setattr("audioclip_beam.pipeline.io.versions.REQUEST_BYTES", 100)
    (file,) = put(store, ["a"])
    assert read_all([RangeRequest(file, 10, 1000)]) == [(CONTENT[10:1010], None)]
    assert sum("a" in request.path.split("/")[-1] and request.method == "GET" for request in store.seen) >= 10


def test_a_store_that_fails_has_errors_at_its_places(store: Store, waits: Waits, tmp_path: Path) -> None:
    """They name the object and the answer, and other files are read."""
    (tmp_path / "local").write_bytes(CONTENT)
    (file,) = put(store, ["a"])
    store.fault = lambda _: "503"
    results = read_all([RangeRequest(file, 0, 10), RangeRequest(listed(tmp_path / "local"), 0, 10)])
    store.fault = lambda _: None
    assert isinstance(results[0][1], StoreError)
    assert f"{file.path} cannot be read: " in str(results[0][1])
    assert "503" in str(results[0][1])
    assert results[1] == (CONTENT[:10], None)


def test_a_read_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Another thread takes the place of the one that hangs, and the rest is read."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "a").write_bytes(CONTENT)
    requests = [RangeRequest(ListedFile(str(pipe), 10, ""), 0, 10)] * 2 + [
        RangeRequest(listed(tmp_path / "a"), 0, 10)
    ] * 3
    results = {result.place: result for result in read_ranges(requests, file_io=FileIO(read_timeout=0.3), threads=1)}
    for place in (0, 1):
        assert "pipe gave no data for 0.3 s" in str(results[place].error)
    assert [results[place].data for place in (2, 3, 4)] == [CONTENT[:10]] * 3
    os.close(os.open(pipe, os.O_WRONLY))  # lets the threads that hang end


def test_bytes_in_memory_are_limited(tmp_path: Path) -> None:
    """No more requests are begun than fit; a range that is larger than the limit is read alone."""
    (tmp_path / "a").write_bytes(CONTENT)
    file = listed(tmp_path / "a")
    sizes = list[int]()

    def requests() -> Iterator[RangeRequest]:
        for size in itertools.chain([100] * 20, [1024], [100] * 20):
            sizes.append(size)
            yield RangeRequest(file, 0, size)

    done, buffered = 0, set[int]()
    for result in read_ranges(requests(), file_io=FileIO(), threads=4, buffer_bytes=300):
        assert result.data == CONTENT[: len(result.data)]
        if len(sizes) < 41:  # the last one waits
            buffered.add(sum(sizes[:-1]) - done)
        done += len(result.data)
    assert max(buffered - {1024}) == 300
    assert 1024 in buffered
    assert done == sum(sizes) == 5024


def test_threads_end_with_the_iteration(tmp_path: Path) -> None:
    """Also if the caller does not take all results."""
    (tmp_path / "a").write_bytes(CONTENT)
    requests = [RangeRequest(listed(tmp_path / "a"), 0, 10)] * 50
    before = set(threading.enumerate())
    results = read_ranges(requests, file_io=FileIO(), threads=3)
    next(iter(results))
    results.close()  # type: ignore[attr-defined]
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before


def test_a_range_outside_its_file_is_refused(tmp_path: Path) -> None:
    """The caller's mistake, and not an error of the file."""
    (tmp_path / "a").write_bytes(b"12345")
    for part in [(0, 6), (-1, 2), (6, 0)]:
        with pytest.raises(ValueError, match=r"are not inside .*a, which has 5: list the file again"):
            list(read_ranges([RangeRequest(listed(tmp_path / "a"), *part)], file_io=FileIO()))
