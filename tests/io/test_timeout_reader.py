"""A read that hangs is an error after a time limit, on local paths, gs:// and s3://; no thread is left behind."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.retries import StoreError
from audioclip_beam.pipeline.io.timeout_reader import NoDataError, call_within, calls_within, open_to_read
from audioclip_beam.pipeline.io.versions import FileChanged, ListedFile
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from tests.support import object_stores
from tests.support.object_stores import Store
from tests.support.shards import read_shard

store = object_stores.store

STUCK = r"gave no data for 0\.3 s: check that its file system or object store answers, or raise --read_timeout"


def reader_threads() -> set[threading.Thread]:
    """Return the threads that read files."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("read ")}


def have_ended(threads: set[threading.Thread]) -> bool:
    """Return whether these threads end within 5 seconds."""
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


def test_the_file_reads_like_any_other(tmp_path: Path) -> None:
    """It can be read whole, in part, from a position, to its end, and closed twice; its thread ends."""
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    before = reader_threads()
    with open_to_read(str(path)) as handle:
        assert reader_threads() - before
        assert handle.read(3) == b"\0\1\2"
        assert handle.seek(-2, os.SEEK_END) == 255_998
        assert (handle.tell(), handle.read(), handle.read(1)) == (255_998, b"\xfe\xff", b"")
        handle.seek(0)
        assert handle.read() == path.read_bytes()
        handle.seek(10)
        assert io.BufferedReader(handle).read(2) == b"\x0a\x0b"  # type: ignore[arg-type]
    handle.close()
    assert have_ended(reader_threads() - before)
    with pytest.raises(ValueError, match="is closed"):
        handle.read(1)


def test_arrow_reads_parquet_from_the_file(tmp_path: Path) -> None:
    """Arrow seeks and reads as in any file."""
    table = pa.table({"text": [f"text {n}" for n in range(10_000)]})
    pq.write_table(table, tmp_path / "a.parquet")
    with open_to_read(str(tmp_path / "a.parquet")) as handle:
        assert pq.read_table(handle).equals(table)


def test_a_missing_file_is_the_usual_error(tmp_path: Path) -> None:
    """FileNotFoundError is raised, and no thread is left."""
    before = reader_threads()
    with pytest.raises(FileNotFoundError):
        open_to_read(str(tmp_path / "none"))
    assert have_ended(reader_threads() - before)


def test_an_unfinished_generator_leaves_no_thread(tmp_path: Path) -> None:
    """A shard that is not read to its end is closed with the generator."""
    (tmp_path / "a.txt").write_bytes(b"dog\n" * 1_000_000)
    before = reader_threads()
    batches = read_shard(find_shards([str(tmp_path / "a.txt")])[0], Fields(), pa.schema([]))
    next(batches)
    assert len(reader_threads() - before) == 1
    batches.close()  # type: ignore[attr-defined]
    assert have_ended(reader_threads() - before)


def test_an_open_that_hangs_is_an_error(tmp_path: Path) -> None:
    """A named pipe without a writer cannot be opened; the thread ends when a writer opens it."""
    os.mkfifo(tmp_path / "pipe.txt")
    before, began = reader_threads(), time.monotonic()
    with pytest.raises(StoreError, match=rf"pipe\.txt {STUCK}"):
        open_to_read(str(tmp_path / "pipe.txt"), 0.3)
    assert time.monotonic() - began < 3
    stuck = reader_threads() - before
    assert len(stuck) == 1
    assert all(thread.daemon for thread in stuck)  # it keeps no process alive
    (tmp_path / "pipe.txt").write_bytes(b"")
    assert have_ended(stuck)


def test_small_files_are_read_in_one_thread(tmp_path: Path) -> None:
    """Also after one that cannot be read; one that hangs is an error, and does not hold up the next."""
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"dog {number}\n")
    listed = [shard.listed for shard in find_shards([f"{tmp_path}/*.txt"])]

    def read_all() -> set[bytes]:
        contents = set[bytes]()
        for file in listed:
            with FileIO(0.3).open_version(file) as handle:
                contents.add(handle.read())
        return contents

    expected = {f"dog {number}\n".encode() for number in range(20)}
    assert read_all() == expected
    before = threading.active_count()
    with pytest.raises(FileChanged, match="existed when it was listed"):
        FileIO(0.3).open_version(ListedFile(f"{tmp_path}/none", 5, "1-5-1-1")).__enter__()
    assert read_all() == expected
    assert threading.active_count() == before
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match=rf"pipe {STUCK}"):
        FileIO(0.3).open_version(ListedFile(f"{tmp_path}/pipe", 5, "1-5-1-1")).__enter__()
    assert read_all() == expected
    (tmp_path / "pipe").write_bytes(b"")


def test_calls_share_a_thread_and_each_has_its_time(tmp_path: Path) -> None:
    """Errors have their places; all together may take longer than one."""

    def slow(number: int) -> tuple[int, str]:
        time.sleep(0.15)
        return number, threading.current_thread().name

    def fail() -> tuple[int, str]:
        raise TimeoutError("the call's own")

    calls = [("a", lambda: slow(0)), ("b", fail), ("c", lambda: slow(2)), ("d", lambda: slow(3))]
    first, error, third, last = calls_within(calls, 0.3)
    assert (first, third, last) == tuple((number, "read small files") for number in (0, 2, 3))
    assert isinstance(error, TimeoutError)


def test_an_error_of_an_object_store_has_its_cause() -> None:
    with pytest.raises(StoreError, match="gs://a/b cannot be read: ") as error:
        call_within("gs://a/b", 5, lambda: int("no token"))
    assert isinstance(error.value.__cause__, ValueError)


def test_a_call_that_hangs_ends_the_calls_behind_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "b").write_bytes(b"b")
    files = [ListedFile(str(tmp_path / name), size, "") for name, size in (("b", 1), ("pipe", 1), ("b", 1))]
    content, *errors = FileIO(0.3).read_ranges([(file, 0, 1) for file in files])
    assert content == b"b"
    assert [type(error) for error in errors] == [NoDataError, NoDataError]
    assert "pipe gave no data for 0.3 s" in str(errors[0])
    os.close(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_a_read_that_hangs_is_an_error(tmp_path: Path, suffix: str) -> None:
    """The error names the file and a remedy."""
    path = tmp_path / f"pipe.{suffix}"
    os.mkfifo(path)
    text = b"dog\n" * 100_000
    data = gzip.compress(text) if suffix == "txt.gz" else text
    ends = threading.Event()

    def write() -> None:
        with path.open("wb") as handle:
            handle.write(data[: len(data) // 2])
            handle.flush()
            ends.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    before = reader_threads()
    with pytest.raises(StoreError, match=STUCK):
        list(read_shard(find_shards([str(path)])[0], Fields(), pa.schema([]), file_io=FileIO(0.3)))
    ends.set()
    writer.join()
    assert have_ended(reader_threads() - before)


@pytest.mark.slow
def test_an_object_store_that_hangs_is_an_error(store: Store) -> None:
    """The time limit holds although the client would wait longer."""
    path = store.put("texts/a.txt", b"dog\n" * 100_000)
    store.fault = lambda request: "hang" if "a.txt" in request.path and request.headers.get("Range") else None
    with pytest.raises(StoreError, match=STUCK):
        list(read_shard(find_shards([path])[0], Fields(), pa.schema([]), file_io=FileIO(0.3)))


def test_an_error_of_an_object_store_is_not_a_damaged_shard(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its class, the error fails the run; the shard's rows are not rejected as damaged."""
    path = store.put("texts/a.txt.gz", gzip.compress(b"dog\n" * 1000))
    for kind in ("google.cloud.storage.fileio.BlobReader", "apache_beam.io.filesystemio.DownloaderStream"):
        name = "read" if kind.endswith("BlobReader") else "readinto"
        monkeypatch.setattr(f"{kind}.{name}", lambda *_: json.loads("<html>"))
    with pytest.raises(StoreError, match=r"a\.txt\.gz cannot be read: Expecting value"):
        list(read_shard(find_shards([path])[0], Fields(), pa.schema([])))
