"""`validate` of sounds and pictures: references to files, parts of recordings, and ids and hashes that follow from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.snapshots.snapshot import open_snapshot
from audioclip_beam.pipeline.validation.check_rows import RowChecks
from tests.support.corpus import write_jsonl
from tests.support.picture_files import encoded, picture
from tests.support.snapshots import rewrite
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubPictures, StubSounds, embed_media
from tests.support.tars import tar_of


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots of two sounds, one of them in three windows; of entries of a list of them; and of pictures."""
    folder = tmp_path_factory.mktemp("media")
    for name, samples in (("a", 2000), ("b", 800)):
        (folder / f"{name}.wav").write_bytes(sound_file(samples=samples, rate=8000))
        (folder / f"{name}.png").write_bytes(encoded(picture(samples, 8, 6)))
    embed_media(f"{folder}/*.wav", folder / "sounds", window="0.1")
    entries = [
        {"id": "whole", "path": "a.wav"},
        {"id": "x#t=7,9", "path": "a.wav", "begin": 0.05, "length": 0.1},
        {"id": "cut", "path": "a.wav", "begin": 0.01, "length": 0.2},
    ]
    fields = {"media_field": ["path"], "id_field": "id", "offset_field": "begin", "duration_field": "length"}
    embed_media(write_jsonl(folder / "list.jsonl", entries), folder / "entries", StubSounds(), window="0.1", **fields)
    embed_media(f"{folder}/*.png", folder / "pictures", StubPictures())
    data = [(folder / f"{name}.png").read_bytes() for name in "ab"]
    (folder / "a.tar").write_bytes(tar_of({f"{number}.png": each for number, each in enumerate(data)}))
    embed_media(folder / "a.tar", folder / "tar", StubPictures())
    pq.write_table(pa.table({"image": data}), folder / "a.parquet")
    embed_media(folder / "a.parquet", folder / "parquet", StubPictures(), media_field=["image"])
    return folder


def faults(output: Path) -> dict[str, list[str]]:
    """Return the faults by check of what `validate` reads of rows."""
    checks = RowChecks(snapshot := open_snapshot(str(output)))
    for file in snapshot.files:
        checks.check_file(file)
    return {check.name: check.examples for check in checks.finish() if check.faults}


@pytest.mark.parametrize("name", ["sounds", "entries", "pictures", "tar", "parquet"])
def test_snapshots_as_they_were_written_are_valid(snapshots: Path, name: str) -> None:
    assert faults(snapshots / name) == {}


def in_file(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda row: row["file"].update(values)


def in_row(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda row: row.update(values)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("sounds", in_file(uri=""), ("sources", "names no file")),
        ("sounds", in_file(size=None), ("sources", "has a file without a size")),
        ("sounds", in_file(size=0), ("sources", "has a file without a size")),
        ("sounds", in_file(offset=-1), ("sources", "has an offset below 0")),
        ("sounds", in_file(checksum=None), ("sources", "has a file without a checksum")),
        ("sounds", in_file(checksum="MD5:00"), ("sources", "has a file without a checksum")),
        ("sounds", in_file(content_type="image/png"), ("sources", "has a media type that sounds do not have")),
        ("pictures", in_file(content_type="audio/wav"), ("sources", "has a media type that images do not have")),
        (
            "sounds",
            in_file(checksum=f"BLAKE2B-128:{'0' * 32}"),
            ("sources", "another content hash than that of a part"),
        ),
        (
            "pictures",
            in_file(checksum=f"BLAKE2B-128:{'0' * 32}"),
            ("sources", "another content hash than the checksum"),
        ),
        ("sounds", in_row(id="a.wav"), ("sources", "an id that does not end with its start and end")),
        ("sounds", in_row(id="a.wav#t=0,0.2"), ("sources", "an id that does not end with its start and end")),
        ("sounds", in_row(start=0.02), ("sources", "an id that does not end with its start and end")),
        ("sounds", in_row(start=0.1), ("frames", "is not a part of its file, by start, end and duration")),
        ("sounds", in_row(start=-0.1), ("frames", "is not a part of its file, by start, end and duration")),
        ("sounds", in_row(duration=0.05), ("frames", "is not a part of its file, by start, end and duration")),
        ("sounds", in_row(duration=float("nan")), ("frames", "is not a part of its file, by start, end and duration")),
        ("sounds", in_row(sample_rate=0), ("frames", "has no sample rate")),
        ("sounds", in_row(channels=0), ("frames", "has no channel")),
        ("pictures", in_row(width=0), ("pixels", "has a width or height of less than one pixel")),
    ],
)
def test_damage_in_a_row_is_named(
    snapshots: Path, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object], fault: tuple[str, str]
) -> None:
    """The first window of a recording, or a picture, has something else; the list of files describes the new file."""
    check, found = fault
    output = Path(shutil.copytree(snapshots / name, tmp_path / "out"))

    def damage(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        change(next(row for row in rows if row["id"] in ("a.wav#t=0,0.1", "a.png")))
        return pa.Table.from_pylist(rows, table.schema)

    rewrite(output, damage)
    examples = faults(output)
    assert any(found in example for example in examples[check]), examples
    assert any("'a." in example for example in examples[check])


def test_a_window_of_an_entry_must_have_its_part_in_its_id(snapshots: Path, tmp_path: Path) -> None:
    """The entry itself may have any id, also one that looks like a part."""
    output = Path(shutil.copytree(snapshots / "entries", tmp_path / "out"))

    def damage(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        assert "x#t=7,9" in [row["id"] for row in rows]
        for row in rows:
            row["id"] = row["id"].replace("cut#t=0.11,0.21", "cut#t=0.11,0.2")
        return pa.Table.from_pylist(rows, table.schema)

    rewrite(output, damage)
    assert faults(output) == {"sources": ["row 'cut#t=0.11,0.2' has an id that does not end with its start and end"]}
