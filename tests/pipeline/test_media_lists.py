"""Lists and Parquet columns of sounds and pictures through the whole pipeline, and nights in which they change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from audioclip_beam.model.image import ImageEncoder
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.versions import ListedFile
from audioclip_beam.pipeline.layout import CONTENT_SPILL
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support import object_stores
from tests.support.corpus import read, vectors
from tests.support.object_stores import Store
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import relative, save_small_head
from tests.support.stub_media import StubPictures, embed_media, vector_of

store = object_stores.store

RATE = 8000
NEMO = {"media_field": ["audio_filepath"], "offset_field": "offset", "duration_field": "duration"}


def lines(records: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_manifests_of_nemo(tmp_path: Path) -> None:
    """Entries of recordings are rows, with their words as kept field; a night embeds what is new."""
    samples = (np.arange(60 * RATE) % 30011 - 15000).astype(np.int16)
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / "wavs/a.wav", samples, RATE)
    entries = [
        {"audio_filepath": "wavs/a.wav", "offset": 2.5 * n, "duration": 2.5, "words": f"w{n}"} for n in range(20)
    ]
    entries.append({"audio_filepath": "wavs/a.wav", "offset": 30, "duration": 25, "words": "long"})
    entries.append({"audio_filepath": "wavs/none.wav", "words": "gone"})
    path = tmp_path / "a.jsonl"
    path.write_text(lines(entries))
    given = {**NEMO, "keep_fields": ["words"], "unique_ids": True}
    manifest, calls = embed_media(path, tmp_path / "out", **given)
    assert manifest["totals"]["rejected_by_reason"] == {"missing file": 1}
    rows = {row["id"]: row for row in read(tmp_path / "out").to_pylist()}
    longs = ["a.jsonl#20#t=30,40", "a.jsonl#20#t=40,50", "a.jsonl#20#t=45,55"]
    assert sorted(rows) == sorted([*(f"a.jsonl#{n}" for n in range(20)), *longs])
    assert len(calls) == 23
    for row in rows.values():
        part = samples[round(row["start"] * RATE) : round(row["end"] * RATE)].astype(np.float32)[None] / 32768
        np.testing.assert_array_equal(np.float32(row["embedding"]), vector_of(np.ascontiguousarray(part)))
    assert rows["a.jsonl#3"]["words"] == "w3"
    assert {check.name for check in validate(str(tmp_path / "out")).checks if check.faults} <= {"canary"}
    path.write_text(lines([*entries, {"audio_filepath": "wavs/a.wav", "offset": 1, "duration": 1.5, "words": "new"}]))
    manifest, calls = embed_media(path, tmp_path / "out", **given)
    assert len(calls) == 1
    assert (manifest["counts"]["read"], manifest["counts"]["reused"]) == (25, 23)


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    """Pictures in a column are copied while they are read; the vectors are the model's, and no copy remains."""
    pictures = [encoded(picture(n)) for n in range(6)]
    column = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(pictures)]
    pq.write_table(pa.table({"image": column, "label": range(6)}), tmp_path / "a.parquet", row_group_size=2)
    head = save_small_head(tmp_path / "small.pt")
    command = ["embed", "--head", "image", "--checkpoint", head, "--media_field", "image", "--keep_fields", "label"]
    places = ["--input", str(tmp_path / "*.parquet"), "--output", str(tmp_path / "out")]
    assert main([*command, *places]) == 0
    table = read(tmp_path / "out").sort_by("label")
    assert table["id"].to_pylist() == [f"a.parquet#{n}" for n in range(6)]
    expected = ImageEncoder.load(head, device="cpu").encode(pictures)
    assert relative(vectors(table), expected).max() < 1e-5
    assert not list(tmp_path.rglob(f"{CONTENT_SPILL}*"))
    assert main(["plan", *command[1:], *places]) == 0


def test_lists_of_objects(store: Store, tmp_path: Path) -> None:
    """A list here names objects there."""
    for n in range(4):
        store.put(f"pictures/{n}.png", encoded(picture(n)))
    (tmp_path / "a.csv").write_text("\n".join(["path", *(f"{n}.png" for n in range(5))]) + "\n")
    given = {"media_field": ["path"], "media_root": f"{store.url}/pictures"}
    manifest, calls = embed_media(tmp_path / "a.csv", tmp_path / "out", StubPictures(), **given)
    assert sorted(calls) == sorted(encoded(picture(n)) for n in range(4))
    assert manifest["totals"]["rejected_by_reason"] == {"missing file": 1}
    files = sorted(row["uri"] for row in read(tmp_path / "out")["file"].to_pylist())
    assert files == [f"{store.url}/pictures/{n}.png" for n in range(4)]


def test_a_file_that_changes_during_the_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading and fetching: what was hashed is not what would be embedded."""
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "a.jsonl").write_text(lines([{"path": "a.png"}]))
    read_range = FileIO.read_range

    def change_before_fetching(self: FileIO, file: ListedFile, offset: int, size: int) -> bytes:
        Path(file.path).write_bytes(encoded(picture(2)))
        return read_range(self, file, offset, size)

    monkeypatch.setattr(FileIO, "read_range", change_before_fetching)
    with pytest.raises((InputError, RuntimeError), match=r"a\.png changed.* during the run"):
        embed_media(tmp_path / "a.jsonl", tmp_path / "out", StubPictures(), media_field=["path"])


def test_a_root_that_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([{"path": "a.png"}]))
    with pytest.raises(InputError, match="--media_root .*none is not a directory: name the one that paths in lists"):
        embed_media(
            tmp_path / "a.jsonl",
            tmp_path / "out",
            StubPictures(),
            media_field=["path"],
            media_root=str(tmp_path / "none"),
        )
