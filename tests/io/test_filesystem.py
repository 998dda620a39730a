"""Files are written whole or not at all, and hashed, on local disks and on object stores."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable
from glob import glob
from pathlib import Path

import pytest

from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io import beam_files, object_store
from audioclip_beam.pipeline.io.filesystem import (
    AtomicFile,
    copy_file,
    read,
    remove_below,
    sha256_of,
    temporary_name,
    temporary_names,
    upload,
    write_atomically,
)
from audioclip_beam.pipeline.io.retries import StoreError
from tests.support import object_stores, synced
from tests.support.object_stores import Store

store, is_synced = object_stores.store, synced.is_synced


def test_write_atomically_replaces_a_local_file(tmp_path: Path) -> None:
    """The new content replaces the old, and no temporary file is left."""
    path = tmp_path / "b[r]*?" / "page.html"
    path.parent.mkdir()
    for data in (b"one", b"two" * 100_000):
        write_atomically(str(path), data, "text/html")
        assert path.read_bytes() == data
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_write_atomically_leaves_nothing_if_it_fails(tmp_path: Path) -> None:
    """The error names the path, the reason and a remedy, and the temporary file is removed."""
    path = tmp_path / "page.html"
    path.mkdir()
    with pytest.raises(SnapshotError, match=f"{path} cannot be written: Is a directory: free disk space or"):
        write_atomically(str(path), b"one", "text/html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole write between another's write and its rename, as by two slots of one worker: the last rename wins."""
    path, fsync, contents = str(tmp_path / "page.html"), os.fsync, list[bytes]()

    def write_another(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        write_atomically(path, b"another", "text/html", sync=True)
        contents.append((tmp_path / "page.html").read_bytes())

    monkeypatch.setattr(os, "fsync", write_another)
    write_atomically(path, b"one", "text/html", sync=True)
    contents.append((tmp_path / "page.html").read_bytes())
    assert contents == [b"another", b"one"]
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_temporary_names_are_those_of_this_process(tmp_path: Path) -> None:
    """Its globs match no other process's files, also not of one whose process id is equal or ends alike."""
    folder = tmp_path / "b[r]*?"
    folder.mkdir()
    mine = {temporary_name(str(folder / name)) for name in ("current.json", ".run") for _ in range(2)}
    for path in (*mine, *(f"{folder}/current.json.{process}.tmp" for process in (os.getpid(), f"47{os.getpid()}"))):
        Path(path).touch()
    assert {path for pattern in temporary_names(str(folder)) for path in glob(pattern)} == mine
    assert len(mine) == 4


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


def test_copy_file_links_on_a_disk(tmp_path: Path) -> None:
    """A copy can be repeated, also when its source is gone; another content is an error."""
    source, target, data = tmp_path / "part-1", tmp_path / "run" / "part-1", b"rows" * 9
    target.parent.mkdir()
    source.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        copy_file(str(source), str(target), len(data), digest)
        assert target.samefile(source)
    source.unlink()
    copy_file(str(source), str(target), len(data), digest)
    target.write_bytes(b"ROWS" * 9)
    with pytest.raises(OSError, match="another content"):
        copy_file(str(source), str(target), len(data), digest)
    target.unlink()
    with pytest.raises(FileNotFoundError):
        copy_file(str(source), str(target), len(data), digest)
    source.write_bytes(data[1:])
    with pytest.raises(OSError, match="has 35 bytes instead of 36"):
        copy_file(str(source), str(target), len(data), digest)
    assert not target.exists()


@pytest.mark.parametrize("error", ["EXDEV", "EPERM", "EMLINK", "ENOTSUP", "ENOSYS", "EACCES"])
def test_copy_file_copies_where_a_disk_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced: Callable[[Path], bool], error: str
) -> None:
    """The copy is compared with the digest, and is on the disk, before it gets its name."""

    def link(*_: object) -> None:
        raise OSError(getattr(errno, error), "no link can be made")

    monkeypatch.setattr(os, "link", link)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"rows")
    copy_file(str(source), str(target), 4, hashlib.sha256(b"rows").hexdigest())
    assert target.read_bytes() == b"rows"
    assert not target.samefile(source)
    assert is_synced(target)
    target.unlink()
    with pytest.raises(OSError, match="another content"):
        copy_file(str(source), str(target), 4, hashlib.sha256(b"ROWS").hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_copy_file_on_an_object_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte passes this machine if the service gives checksums; without them the copy is read, and a wrong one found."""
    data = b"rows" * 1000
    source, target = store.put("out/1/part-1", data), f"{store.url}/out/2/part-1"
    digest = hashlib.sha256(data).hexdigest()
    copy_file(source, target, len(data), digest)
    assert read(target) == data
    scheme = store.url.partition("://")[0]
    monkeypatch.setitem(object_store.SAME_CONTENT, scheme, lambda *_: False)
    copy_file(source, target, len(data), digest)
    with pytest.raises(OSError, match="another content"):
        copy_file(source, target, len(data), "0" * 64)


def test_object_stores_compare_contents(store: Store) -> None:
    """Their checksums show whether two objects are equal, or show nothing."""
    same = object_store.SAME_CONTENT[store.url.partition("://")[0]]
    first, second, other = (f"{store.url}/{name}" for name in "abc")
    for path, data in ((first, b"rows"), (second, b"rows"), (other, b"ROWS")):
        upload(io.BytesIO(data), path)
    assert same(first, second)
    assert not same(first, other)


def test_files_that_remain_after_a_removal_are_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every file system raises an error for what it could not delete."""
    for name in ("run/part-1", "run/more/part-2", "running"):
        store.put(f"out/{name}", b"rows")
    with monkeypatch.context() as patched:
        patched.setattr(beam_files.FileSystems, "delete", lambda _: None)
        with pytest.raises(StoreError, match=r"out/run cannot be removed: 2 files are left, for example .*out/run/"):
            remove_below(f"{store.url}/out/run")
    remove_below(f"{store.url}/out/run")
    assert store.names("out/") == ["out/running"]


def test_a_new_directory_of_the_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have removed the old one, too, and a run may have made the next one at once."""
    (tmp_path / "run/old").mkdir(parents=True)
    rmdir = os.rmdir

    def remove_and_make(path: str, **options: int | None) -> None:
        rmdir(path, **options)
        if str(path) == str(tmp_path / "run"):
            (tmp_path / "run").mkdir()
            (tmp_path / "run/new").touch()
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(os, "rmdir", remove_and_make)
    remove_below(str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["new"]
