"""Lists and Parquet columns of sounds and pictures through the whole pipeline, and nights in which they change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

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
from tests.support.snapshots import directory_of
from tests.support.stub_media import StubPictures, embed_media, show_no_previews, vector_of, watch_opened

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


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the media files that are opened, in order, each time that they are."""
    return watch_opened(monkeypatch)


def names_of(paths: Sequence[str]) -> list[str]:
    """Return the names of files, sorted."""
    return sorted(path.rpartition("/")[2] for path in paths)


def write_list(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Write a list as its suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=7)
    else:
        path.write_text(lines(records))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_changed_list_costs_its_new_and_changed_entries(tmp_path: Path, suffix: str, opened: list[str]) -> None:
    """Of fifty entries one is new, one is changed, one is gone: two files are read for their hashes, and two are embedded.

    A rejected entry is read again, new labels and ids cost nothing, and --force reads all.
    """
    for n in range(53):
        (tmp_path / f"{n}.png").write_bytes(encoded(picture(n, 8, 6)))
    entries = [{"id": f"r{n}", "path": f"{n}.png", "label": "a"} for n in range(50)]
    entries.append({"id": "late", "path": "late.png", "label": "a"})
    given = {"media_field": ["path"], "id_field": ["id"], "keep_fields": ["label"], "max_shrink": 0.5}

    def night(records: Sequence[Mapping[str, object]], **more: object) -> tuple[list[str], int]:
        write_list(tmp_path / f"a{suffix}", records)
        opened.clear()
        manifest, calls = embed_media(
            tmp_path / f"a{suffix}", tmp_path / "out", StubPictures(), **given, **more, unique_ids=True
        )
        by_id = {row["id"]: row for row in read(tmp_path / "out").to_pylist()}
        for record in records:
            if (tmp_path / str(record["path"])).exists():
                row = by_id.pop(str(record["id"]))
                content = (tmp_path / str(record["path"])).read_bytes()
                np.testing.assert_array_equal(np.float32(row["embedding"]), vector_of(content))
                assert row["label"] == record["label"]
        assert not by_id
        assert manifest["counts"]["read"] == len(records)
        return names_of(opened), len(calls)

    assert night(entries) == (sorted(f"{n}.png" for n in [*range(50)] * 2), 50)
    entries[7] |= {"path": "50.png"}
    entries[9:10] = []
    entries.append({"id": "new", "path": "51.png", "label": "b"})
    assert night(entries) == (["50.png", "50.png", "51.png", "51.png"], 2)
    (tmp_path / "late.png").write_bytes(encoded(picture(52, 8, 6)))
    entries[3] |= {"id": "other", "label": "c"}
    assert night(entries) == (["late.png", "late.png"], 1)
    assert night([{**entries[0], "id": "same"}, *entries]) == ([], 0)
    assert night(entries, force=True) == (sorted(str(each["path"]).rpartition("/")[2] for each in entries), 0)


def test_entries_of_known_recordings(tmp_path: Path, opened: list[str]) -> None:
    """A file of which one entry is new is read once more; one of which entries are gone, or that are too short, is not."""
    (tmp_path / "wavs").mkdir()
    for n in range(6):
        samples = (np.arange((20 + n) * RATE) % (30011 - n) - 15000).astype(np.int16)
        soundfile.write(tmp_path / f"wavs/{n}.wav", samples, RATE)
    entries = [
        {"audio_filepath": f"wavs/{n}.wav", "offset": offset, "duration": 2.5} for n in range(6) for offset in range(3)
    ]
    entries.append({"audio_filepath": "wavs/5.wav", "offset": 0, "duration": 25})

    def night() -> tuple[list[str], int, dict[str, int]]:
        (tmp_path / "a.jsonl").write_text(lines(entries))
        opened.clear()
        manifest, calls = embed_media(tmp_path / "a.jsonl", tmp_path / "out", **NEMO, max_shrink=0.5)
        return names_of(opened), len(calls), manifest["totals"]["rejected_by_reason"]

    assert night()[1:] == (21, {})
    del entries[4]
    entries.append({"audio_filepath": "wavs/0.wav", "offset": 17.5, "duration": 2.5})
    entries.append({"audio_filepath": "wavs/1.wav", "offset": 90, "duration": 1})
    assert night() == (["0.wav", "0.wav"], 1, {"too short": 1})
    rows = {row["id"]: row for row in read(tmp_path / "out").to_pylist()}
    assert len(rows) == 21
    assert [round(rows[f"a.jsonl#{n}"]["start"], 3) for n in (3, 4, 18)] == [0, 2, 17.5]
    assert rows["a.jsonl#17#t=15,25"]["duration"] == 25
    entries.append({"audio_filepath": "wavs/none.wav", "offset": 0, "duration": 1})
    assert night() == ([], 0, {"too short": 1, "missing file": 1})


def test_earlier_vectors_that_are_damaged(tmp_path: Path, opened: list[str]) -> None:
    """What cannot be reused is read again if it is what it was, and else ends the run: nothing is embedded as another."""
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(encoded(picture(n)))

    def night(last: int) -> int:
        (tmp_path / "a.jsonl").write_text(lines({"path": f"{n}.png", "n": last} for n in range(last)))
        opened.clear()
        return len(embed_media(tmp_path / "a.jsonl", tmp_path / "out", StubPictures(), media_field=["path"])[1])

    def damage() -> None:
        (part,) = directory_of(tmp_path / "out").glob("part-*")
        column = pq.ParquetFile(part).metadata.row_group(0)
        places = [column.column(n) for n in range(column.num_columns)]
        vectors_at = next(each.data_page_offset for each in places if each.path_in_schema.startswith("embedding"))
        data = bytearray(part.read_bytes())
        data[vectors_at + 60] ^= 1
        part.write_bytes(data)

    assert night(2) == 2
    damage()
    assert night(3) == 3
    assert names_of(opened) == ["0.png", "0.png", "1.png", "1.png", "2.png", "2.png"]
    assert read(tmp_path / "out").num_rows == 3
    damage()
    (tmp_path / "1.png").write_bytes(encoded(picture(9)))
    with pytest.raises(RuntimeError, match=r"1\.png, which a list names, has other content, .* --force reads all"):
        night(2)


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


def test_lists_of_objects(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list here names objects there; a night asks the object store for new entries alone."""
    show_no_previews(monkeypatch)
    for n in range(4):
        store.put(f"pictures/{n}.png", encoded(picture(n)))
    (tmp_path / "a.csv").write_text("\n".join(["path", *(f"{n}.png" for n in range(5))]) + "\n")
    given = {"media_field": ["path"], "media_root": f"{store.url}/pictures"}
    manifest, calls = embed_media(tmp_path / "a.csv", tmp_path / "out", StubPictures(), **given)
    assert sorted(calls) == sorted(encoded(picture(n)) for n in range(4))
    assert manifest["totals"]["rejected_by_reason"] == {"missing file": 1}
    files = sorted(row["uri"] for row in read(tmp_path / "out")["file"].to_pylist())
    assert files == [f"{store.url}/pictures/{n}.png" for n in range(4)]
    store.put("pictures/5.png", encoded(picture(5)))
    with (tmp_path / "a.csv").open("a") as file:
        file.write("5.png\n")
    store.seen.clear()
    assert embed_media(tmp_path / "a.csv", tmp_path / "out", StubPictures(), **given)[1] == [encoded(picture(5))]
    found = {name for request in store.seen for name in re.findall(r"[0-9]\.png", unquote(request.path))}
    assert found == {"4.png", "5.png"}


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
