"""Copies of contents are complete before a row refers to them, and nothing but a full disk stops them."""

from __future__ import annotations

import io
import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest

from audioclip_beam.pipeline.content import Source
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io.filesystem import list_directory, read
from audioclip_beam.pipeline.layout import CONTENT_SPILL
from audioclip_beam.pipeline.readers import content_spill
from audioclip_beam.pipeline.readers.content_spill import ContentSpill
from audioclip_beam.pipeline.readers.shard import Batches
from tests.support import object_stores
from tests.support.object_stores import Store

store = object_stores.store

_NO_ROW = pa.RecordBatch.from_pylist([], pa.schema([]))


def _numbers(batches: Batches) -> Iterator[int]:
    for batch, _ in batches:
        yield batch.column(0)[0].as_py()


def _batch(number: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    return pa.RecordBatch.from_pylist([{"n": number}]), _NO_ROW


def test_rows_wait_for_the_files_that_they_refer_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a row refers to can be read when the row is yielded; rows come in order, also those without a copy."""
    monkeypatch.setattr(content_spill, "FILE_BYTES", 10)
    spill, sources = ContentSpill(str(tmp_path)), dict[int, Source]()

    def batches() -> Batches:
        yield _batch(0)
        for number in range(1, 6):
            sources[number] = spill.add(b"%d" % number * 4)
            yield _batch(number)

    yielded = []
    for number in _numbers(spill.hold(batches())):
        yielded.append((number, len(sources)))
        if number:
            source = sources[number]
            data = Path(source.path).read_bytes()
            assert data[source.offset :][: source.size] == b"%d" % number * 4
            assert not source.is_whole
            assert source.version == ""
    assert yielded == [(0, 0), (1, 4), (2, 4), (3, 4), (4, 5), (5, 5)], "a file of three contents, one of two"
    assert len(list(tmp_path.iterdir())) == 2
    assert all(path.name.startswith(CONTENT_SPILL) for path in tmp_path.iterdir())


def test_a_large_content_is_copied_in_pieces_and_read_again_before_the_next_one(tmp_path: Path) -> None:
    spill, data = ContentSpill(str(tmp_path)), bytes(range(256)) * 10_000
    spill.add(b"before")
    source = spill.copy(io.BytesIO(data + b"behind"), len(data))
    opened = spill.open(source)
    assert opened.read(300) == data[:300]
    opened.seek(0)
    assert opened.read() == data
    after = spill.add(b"after")
    list(spill.hold(iter([])))
    assert Path(source.path).read_bytes() == b"before" + data + b"after"
    assert (after.path, after.offset, after.size) == (source.path, 6 + len(data), 5)


def test_a_full_disk_ends_the_run_with_the_directory_and_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(5000))
    spill = ContentSpill(str(tmp_path / "run"))
    spill.add(bytes(5000))
    message = f"{tmp_path}/run has 5,000 bytes free, and 5,001 more are needed for a copy of a content"
    with pytest.raises(SnapshotError, match=re.escape(message)):
        spill.add(bytes(5001))


def test_a_remote_run_has_its_copies_on_the_object_store(store: Store) -> None:
    """An object appears when it is complete; a reader that fails leaves none behind."""
    directory = f"{store.url}/out/snapshots/run"

    def batches(spill: ContentSpill, *, fails: bool) -> Batches:
        spill.add(b"content")
        yield _batch(1)
        assert not list_directory(directory)
        if fails:
            raise OSError("broken")

    for fails in (True, False):
        spill = ContentSpill(directory)
        with pytest.raises(OSError, match="broken") if fails else nullcontext():
            assert list(_numbers(spill.hold(batches(spill, fails=fails)))) == [1]
    (entry,) = list_directory(directory)
    assert entry.path.startswith(f"{directory}/{CONTENT_SPILL}")
    assert read(entry.path) == b"content"
