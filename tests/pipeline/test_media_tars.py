"""Tars of sounds and pictures through the whole pipeline, and nights in which they are packed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioclip_beam.model.image import ImageEncoder
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.versions import ListedFile
from audioclip_beam.pipeline.layout import CONTENT_SPILL
from audioclip_beam.pipeline.readers import content_spill
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.run import runner
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support import object_stores
from tests.support.corpus import read, vectors
from tests.support.object_stores import Store
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import relative, save_small_head
from tests.support.shards import COMPRESS
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubPictures, embed_media, show_no_previews, vector_of
from tests.support.tars import tar_of

store = object_stores.store

PICTURES = {f"{number:02}": encoded(picture(number, 8, 6)) for number in range(20)}


def pack(folder: Path, suffix: str, keys: Any, name: str = "a", **more: bytes) -> Path:
    """Write a tar of pictures with captions."""
    members = dict[str, bytes]()
    for key in keys:
        members |= {f"{key}.json": b'{"n": %d}' % int(key), f"{key}.png": PICTURES[key], f"{key}.txt": key.encode()}
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.tar{suffix}"
    path.write_bytes(COMPRESS[suffix](tar_of(members | more)))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_nights_of_tars(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key has its vector; a tar that is packed again in another order, or compressed, costs no model time."""
    monkeypatch.setattr(content_spill, "FILE_BYTES", 500)
    output, glob = tmp_path / "out", f"{tmp_path}/in/*"
    keys = list(PICTURES)
    pack(tmp_path / "in", suffix, keys[:12])
    pack(tmp_path / "in", suffix, keys[12:], "b", **{"bad.png": b"no picture", "none.txt": b""})
    fields = {"keep_fields": ["txt", "json.n"], "unique_ids": True}
    manifest, calls = embed_media(glob, output, StubPictures(), **fields)
    assert sorted(calls) == sorted(PICTURES.values())
    table = read(output)
    assert set(table["id"].to_pylist()) == {f"{'a' if n < 12 else 'b'}.tar{suffix}#{key}" for n, key in enumerate(keys)}
    assert table["txt"].to_pylist() == [f"{n:02}" for n in table["json.n"].to_pylist()]
    expected = np.stack([vector_of(PICTURES[key]) for key in table["txt"].to_pylist()])
    np.testing.assert_array_equal(vectors(table), expected)
    offsets = [file["offset"] for file in table["file"].to_pylist()]
    assert (None in offsets) == (suffix != "")
    bad = read(output, "rejected").to_pylist()
    assert sorted((row["id"], row["reason"]) for row in bad) == [
        (f"b.tar{suffix}#bad", "not decodable"),
        (f"b.tar{suffix}#none", "missing field"),
    ]
    assert {check.name for check in validate(str(output)).checks if check.faults} <= {"canary"}
    assert not list(tmp_path.rglob(f"{CONTENT_SPILL}*"))

    pack(tmp_path / "in", suffix, reversed(keys[:12]))
    manifest, calls = embed_media(glob, output, StubPictures(), **fields)
    assert not calls
    assert (manifest["counts"]["read"], manifest["counts"]["reused"]) == (12, 12), "the other tar is not opened"
    assert read(output).num_rows == 20

    (tmp_path / f"in/a.tar{suffix}").unlink()
    pack(tmp_path / "in", ".zst", keys[:11], "c")
    manifest, calls = embed_media(glob, output, StubPictures(), **fields)
    assert not calls
    assert (manifest["counts"]["reused"], manifest["totals"]["vectors"]) == (11, 19)


def test_a_run_that_fails_leaves_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "in", ".gz", PICTURES)

    def fail(self: object, opened: Any, parts: Any) -> Any:
        assert list(tmp_path.rglob(f"{CONTENT_SPILL}*"))
        raise OSError("the model's step failed")

    monkeypatch.setattr(StubPictures, "decode", fail)
    with pytest.raises(RuntimeError, match="the model's step failed"):
        embed_media(f"{tmp_path}/in/*", tmp_path / "out", StubPictures())
    assert not list(tmp_path.rglob(f"{CONTENT_SPILL}*"))


def test_a_tar_that_changes_before_its_contents_are_read_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "in", "", PICTURES)
    run = runner.choose_runner

    def change(options: Any) -> Any:
        path.write_bytes(path.read_bytes() + bytes(512))
        return run(options)

    monkeypatch.setattr(runner, "choose_runner", change)
    with pytest.raises((InputError, RuntimeError), match=r"a\.tar changed from .* during the run: run again"):
        embed_media(f"{tmp_path}/in/*", tmp_path / "out", StubPictures())


def test_the_command_embeds_tars_with_the_real_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--head image reads a tar; without it the command says what to give. The plan knows the keys."""
    path, head = pack(tmp_path / "in", ".gz", PICTURES), save_small_head(tmp_path / "small.pt")
    given = ["--input", str(path), "--output", f"{tmp_path}/out", "--checkpoint", head]
    assert main(["embed", *given]) == 2
    assert "a tar has pictures or sounds: give --head image or --head audio, or unpack it" in capsys.readouterr().err
    assert main(["plan", *given, "--head", "image"]) == 0
    assert "20" in capsys.readouterr().out
    assert main(["embed", *given, "--head", "image", "--keep_fields", "txt"]) == 0
    table = read(tmp_path / "out")
    pictures = [PICTURES[key] for key in table["txt"].to_pylist()]
    assert sorted(table["txt"].to_pylist()) == sorted(PICTURES)
    assert relative(vectors(table), ImageEncoder.load(head, device="cpu").encode(pictures)).max() < 5e-6


def test_windows_of_recordings_in_tars(tmp_path: Path) -> None:
    """A recording has the windows that it has as a file, and they are known content of it."""
    sounds = {f"{n}.flac": sound_file("FLAC", samples=(4 + n) * 2000, rate=8000) for n in range(3)}
    (tmp_path / "files").mkdir()
    for name, data in sounds.items():
        (tmp_path / "files" / name).write_bytes(data)
    (tmp_path / "a.tar").write_bytes(tar_of(sounds))
    (tmp_path / "a.tar.gz").write_bytes(COMPRESS[".gz"](tar_of(sounds)))
    for form in ("files/*", "a.tar", "a.tar.gz"):
        manifest, calls = embed_media(f"{tmp_path}/{form}", tmp_path / "out", window="0.25", max_shrink=1.0)
        assert len(calls) == (15 if form == "files/*" else 0)
        rows = {row["id"]: row for row in read(tmp_path / "out").to_pylist()}
        assert len(rows) == 15 == manifest["totals"]["vectors"]
        start = {"files/*": "0.flac", "a.tar": "a.tar#0", "a.tar.gz": "a.tar.gz#0"}[form]
        assert (rows[f"{start}#t=0.25,0.5"]["start"], rows[f"{start}#t=0.25,0.5"]["sample_rate"]) == (0.25, 8000)


@pytest.mark.parametrize("remote", [False, True])
def test_tars_on_an_object_store(store: Store, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar is read once for the hashes, and each new content by one request for its range.

    Copies are on the local disk, or, in a remote run, in the run directory until the job has ended.
    """
    read_range = FileIO.read_range
    places = set[str]()

    def spy(self: FileIO, file: ListedFile, offset: int, size: int) -> bytes:
        places.add(file.path.rpartition("/")[0])
        return read_range(self, file, offset, size)

    monkeypatch.setattr(FileIO, "read_range", spy)
    show_no_previews(monkeypatch)
    if remote:
        monkeypatch.setattr(EmbedCorpus, "_spill_path", lambda self, directory: None)
    folder = {"a.tar": tar_of({f"{key}.png": data for key, data in PICTURES.items()})}
    folder["b.tar.gz"] = COMPRESS[".gz"](tar_of({f"{key}.png": data + b"!" for key, data in PICTURES.items()}))
    for name, data in folder.items():
        store.put(f"in/{name}", data)
    store.seen.clear()
    manifest, calls = embed_media(f"{store.url}/in/*", f"{store.url}/out", StubPictures())  # type: ignore[arg-type]
    assert manifest["totals"]["vectors"] == len(calls) == 40
    reads = [request for request in store.seen if request.method == "GET" and "a.tar" in request.path]
    assert len(reads) <= 20 + 3
    assert any(place.startswith(f"{store.url}/out/snapshots/") for place in places) == remote
    assert not [name for name in store.names("out/") if CONTENT_SPILL in name]
