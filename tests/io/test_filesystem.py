"""Files are written whole or not at all, and hashed, on local disks and on object stores."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from audioclip_text.pipeline.io.filesystem import AtomicFile, read, sha256_of, write_atomically
from tests.support import object_stores
from tests.support.object_stores import Store

store = object_stores.store


def test_write_atomically_replaces_a_local_file(tmp_path: Path) -> None:
    """The new content replaces the old, and no temporary file is left."""
    path = tmp_path / "b[r]*?" / "page.html"
    path.parent.mkdir()
    for data in (b"one", b"two" * 100_000):
        write_atomically(str(path), data, "text/html")
        assert path.read_bytes() == data
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_write_atomically_leaves_nothing_if_it_fails(tmp_path: Path) -> None:
    """A directory in the way is an OSError, and the temporary file is removed."""
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(str(tmp_path / "page.html"), b"one", "text/html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_write_atomically_to_an_object_store(store: Store) -> None:
    """An object is replaced by its new content."""
    for data in (b"one", b"two"):
        write_atomically(f"{store.url}/out/page.html", data, "text/html")
        assert read(f"{store.url}/out/page.html") == data


def test_an_atomic_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    """Until then only its temporary name exists; a discarded one leaves nothing, also if discarded twice."""
    file = AtomicFile(str(tmp_path / ".part.tmp"))
    file.handle.write(b"rows")
    assert [path.name for path in tmp_path.iterdir()] == [".part.tmp"]
    file.commit(str(tmp_path / "part"), sync=True)
    assert (tmp_path / "part").read_bytes() == b"rows"
    other = AtomicFile(str(tmp_path / ".part.tmp"))
    other.discard()
    other.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_sha256_of_reads_from_the_position_to_the_end() -> None:
    """The digest is that of hashlib."""
    data = bytes(range(256)) * 10_000
    file = io.BytesIO(data)
    file.seek(5)
    assert sha256_of(file) == hashlib.sha256(data[5:]).hexdigest()
