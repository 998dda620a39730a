"""Lists and Parquet columns of pictures and sounds: each entry is read once, and ends as rows or as a rejected row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audioclip_beam.model.head import EncoderSettings, Head
from audioclip_beam.model.heads import find_head
from audioclip_beam.pipeline.content import Source
from audioclip_beam.pipeline.flags import defaults
from audioclip_beam.pipeline.inference.content_reader import ContentReader
from audioclip_beam.pipeline.readers.infer_schema import infer_kept_types
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.read_settings import ReadSettings, fields_of
from audioclip_beam.pipeline.readers.read_shards import read_shard
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.schemas import reasons_of
from tests.support import object_stores
from tests.support.object_stores import Store
from tests.support.picture_files import encoded, picture
from tests.support.sound_files import sound_file

store = object_stores.store

RATE = 8000


class Rows(NamedTuple):
    """What a list became: rows by id, rejected rows as (row, id, reason), and both as they are."""

    rows: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    batch: pa.RecordBatch

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows]

    @property
    def reasons(self) -> list[tuple[str, str | None, str]]:
        return [(row["row"], row["id"], row["reason"]) for row in self.rejected]


def settings_of(head: Head, **options: object) -> EncoderSettings:
    """Return the settings of an encoder with these options of `embed`."""
    return head.settings({**defaults(), "checkpoint": "untrained", **options})


def read_list(path: Path | str, head_name: str, spill: Path | None = None, **chosen: object) -> Rows:
    """Return the rows of a list that is read with these options of `embed`."""
    head = find_head(head_name)
    options = {**defaults(), "head": head_name, "media_field": ["path"], "checkpoint": "untrained", **chosen}
    fields = fields_of(options, head)
    shards = find_shards([str(path)], head=head, lists=True)
    types = infer_kept_types(shards, head, fields)
    reading = ReadSettings(
        head,
        fields,
        types.final,
        head.content_limit(options),
        encoder=settings_of(head, **{name: options[name] for name in ("window", "hop")}),
        threads=4,
        spill=None if spill is None else str(spill),
        media_root=options["media_root"],
    )
    batches = [batch for shard in shards for batch in read_shard(shard, reading)]
    rows = pa.Table.from_batches([good for good, _ in batches]).combine_chunks().to_batches() or [batches[0][0]]
    rejected = pa.Table.from_batches([bad for _, bad in batches])
    return Rows(rows[0].to_pylist(), rejected.to_pylist(), rows[0])


def write_list(path: Path, records: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def digest(data: bytes) -> str:
    return f"BLAKE2B-128:{hashlib.blake2b(data, digest_size=16).hexdigest()}"


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    """Three pictures, as files 0.png to 2.png."""
    made = [encoded(picture(number)) for number in range(3)]
    for number, data in enumerate(made):
        (tmp_path / f"{number}.png").write_bytes(data)
    return made


@pytest.fixture
def sound(tmp_path: Path) -> np.ndarray[Any, Any]:
    """Samples of 25 seconds, as long.wav."""
    samples = (np.arange(25 * RATE) % 30011 - 15000).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", samples, RATE)
    return samples


def test_a_list_names_files_relative_to_itself(tmp_path: Path, pictures: list[bytes]) -> None:
    """A path, one with ./, an absolute one and a file: URI; entries of one file are rows of one content."""
    (tmp_path / "~odd # name?.png").write_bytes(pictures[2])
    entries = ["0.png", "./1.png", str(tmp_path / "2.png"), f"file://{tmp_path}/0.png", "~odd # name?.png"]
    found = read_list(write_list(tmp_path / "a.jsonl", ({"path": each} for each in entries)), "image")
    assert found.ids == [f"a.jsonl#{row}" for row in range(5)]
    assert found.reasons == []
    names = ["0.png", "1.png", "2.png", "0.png", "~odd # name?.png"]
    assert [row["file"] for row in found.rows] == [
        {
            "uri": str(tmp_path / name),
            "offset": None,
            "size": (tmp_path / name).stat().st_size,
            "content_type": "image/png",
            "checksum": digest((tmp_path / name).read_bytes()),
        }
        for name in names
    ]
    hashes = [row["content_hash"] for row in found.rows]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]
    assert hashes[2] == hashes[4]


def test_bad_entries_are_rejected_rows(tmp_path: Path, pictures: list[bytes]) -> None:
    """Each with its id and reason, and the file if there may be one."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "torn.png").write_bytes(b"not a picture")
    (tmp_path / "loop.png").symlink_to("loop.png")
    values: list[tuple[object, str]] = [
        ("none.png", "missing file"),
        ("pipe.png", "missing file"),
        (".", "missing file"),
        ("loop.png", "missing file"),
        ("0.png/x", "missing file"),
        ("x" * 300, "missing file"),
        ("x" * 5000, "missing file"),
        ("a\0b", "missing file"),
        ("http://example.org/a.png", "wrong type"),
        ("https://example.org/a.png", "wrong type"),
        ("ftp://example.org/a.png", "wrong type"),
        ("s3:/bucket/a.png", "wrong type"),
        (None, "missing field"),
        ("", "missing field"),
        (7, "wrong type"),
        (True, "wrong type"),
        (["0.png"], "wrong type"),
        ({}, "wrong type"),
        ({"uri": None}, "missing field"),
        ({"path": None, "bytes": None}, "missing field"),
        ({"path": "0.png", "bytes": "iVBOR"}, "wrong type"),
        ({"uri": "0.png", "offset": -1}, "wrong type"),
        ({"uri": "0.png", "offset": 1.5}, "wrong type"),
        ({"uri": "0.png", "offset": 10**6}, "not decodable"),
        ({"uri": "0.png", "offset": 0, "size": 10**6}, "not decodable"),
        ({"uri": "0.png", "size": 3}, "not decodable"),
        ({"uri": "0.png", "offset": 9}, "not decodable"),
        ("empty.png", "empty file"),
        ("torn.png", "not decodable"),
    ]
    records = [{"path": value, "name": f"n{row}"} for row, (value, _) in enumerate(values)]
    lines = write_list(
        tmp_path / "a.jsonl", [*records, {"name": "m"}, {"path": "0.png"}, {"path": "1.png", "name": "z"}]
    )
    found = read_list(lines, "image", id_field=["name"])
    assert found.ids == ["z"]
    expected: list[tuple[str, str | None, str]] = [
        (str(row), f"n{row}", reason) for row, (_, reason) in enumerate(values)
    ]
    n = len(values)
    expected += [(str(n), "m", "missing field"), (str(n + 1), None, "missing field")]
    assert sorted(found.reasons, key=lambda row: int(row[0])) == expected
    rejected = {row["id"]: row for row in found.rejected}
    assert "download it first" in rejected["n8"]["detail"]
    assert rejected["n0"]["file"]["uri"] == str(tmp_path / "none.png")
    assert rejected["n28"]["file"]["checksum"] == digest(b"not a picture")


def test_forbidden_files_are_rejected_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list may name a file that the process must not read."""
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith(".png"))
    found = read_list(write_list(tmp_path / "a.jsonl", [{"path": "a.png"}]), "image")
    assert [(row["reason"], row["detail"]) for row in found.rejected] == [("missing file", "Permission denied")]


def test_lists_are_csv_tsv_and_parquet_too(tmp_path: Path, pictures: list[bytes]) -> None:
    """The same rows of each, with kept fields, from a directory that is given."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.csv").write_text("path,label\n0.png,x\nnone.png,y\n,z\n1.png,w\n")
    (folder / "a.tsv").write_text("path\tlabel\n0.png\tx\nnone.png\ty\n\tz\n1.png\tw\n")
    table = pa.table({"path": ["0.png", "none.png", None, "1.png"], "label": list("xyzw")})
    pq.write_table(table, folder / "a.parquet")
    for suffix in ("csv", "tsv", "parquet"):
        found = read_list(folder / f"a.{suffix}", "image", media_root=str(tmp_path), keep_fields=["label"])
        name = f"a.{suffix}"
        assert [(row["id"], row["label"]) for row in found.rows] == [(f"{name}#0", "x"), (f"{name}#3", "w")]
        reasons = [("1", f"{name}#1", "missing file"), ("2", f"{name}#2", "missing field")]
        assert sorted(found.reasons) == reasons, suffix


def test_several_fields_and_lists_of_paths(tmp_path: Path, pictures: list[bytes]) -> None:
    """As fields of other contents: each has an id of its own."""
    records = [{"a": "0.png", "b": {"many": ["1.png", "none.png", "2.png"]}}]
    found = read_list(write_list(tmp_path / "a.jsonl", records), "image", media_field=["a", "b.many[]"], id_field=None)
    assert found.ids == ["a.jsonl#0", "a.jsonl#0/b.many/0", "a.jsonl#0/b.many/2"]
    assert found.reasons == [("0", "a.jsonl#0/b.many/1", "missing file")]


ENTRIES = [
    ({"path": "long.wav"}, [(0, 10), (10, 20), (15, 25)]),
    ({"path": "long.wav", "at": 0, "for": 25}, [(0, 10), (10, 20), (15, 25)]),
    ({"path": "long.wav", "at": 3.5, "for": 2}, [(3.5, 5.5)]),
    ({"path": "long.wav", "at": 20}, [(20, 25)]),
    ({"path": "long.wav", "for": "12.5"}, [(0, 10), (2.5, 12.5)]),
    ({"path": "long.wav", "at": 20, "for": 5.06}, [(20, 25)]),
    ({"path": "long.wav", "at": None, "for": None}, [(0, 10), (10, 20), (15, 25)]),
]


def test_entries_are_parts_of_recordings(tmp_path: Path, sound: np.ndarray[Any, Any]) -> None:
    """Windows count from the entry's begin, ids and times are those of the file, and samples are exact."""
    records = [{**record, "name": f"n{row}"} for row, (record, _) in enumerate(ENTRIES)]
    options = {"offset_field": "at", "duration_field": "for", "id_field": ["name"]}
    found = read_list(write_list(tmp_path / "a.jsonl", records), "audio", **options)
    assert found.reasons == []
    times = [(row["id"], row["start"], row["end"], row["duration"]) for row in found.rows]
    assert times == [
        (f"n{row}" + (f"#t={begin:g},{end:g}" if len(spans) > 1 else ""), begin, end, 25)
        for row, (_, spans) in enumerate(ENTRIES)
        for begin, end in spans
    ]
    hashes = [row["content_hash"] for row in found.rows]
    assert hashes[:3] == hashes[3:6] == hashes[-3:], "an entry of the whole file is the file"
    assert hashes[7] == hashes[10]
    assert len(set(hashes)) == 7
    head = find_head("audio")
    backwards = found.batch.take(pa.array(range(found.batch.num_rows - 1, -1, -1)))
    for batch in (found.batch, backwards):
        tracks = [track for group in ContentReader(head, 4).groups(batch) for track in group]  # type: ignore[arg-type]
        for row, track in zip(batch.to_pylist(), tracks, strict=True):
            expected = sound[round(row["start"] * RATE) : round(row["end"] * RATE)] / 32768
            np.testing.assert_array_equal(track.samples[0], expected.astype(np.float32))


def test_wrong_entries_are_rejected_rows(tmp_path: Path, sound: np.ndarray[Any, Any]) -> None:
    values: list[tuple[object, object, str]] = [
        (-1, 2, "wrong type"),
        (1, -2, "wrong type"),
        (float("nan"), 1, "wrong type"),
        (1, float("inf"), "wrong type"),
        ("1e999", 1, "wrong type"),
        ("soon", 1, "wrong type"),
        (True, 1, "wrong type"),
        ([1], 1, "wrong type"),
        (25, 1, "too short"),
        (1e300, None, "too short"),
        (20, 6, "too short"),
        (20, 1e300, "too short"),
        (0, 0, "too short"),
        (1, 1e-9, "too short"),
    ]
    records = [{"path": "long.wav", "at": offset, "for": duration} for offset, duration, _ in values]
    lines = write_list(tmp_path / "a.jsonl", [*records, {"path": "long.wav", "at": 1, "for": 1}])
    found = read_list(lines, "audio", offset_field="at", duration_field="for")
    assert [(row["id"], row["start"], row["end"]) for row in found.rows] == [("a.jsonl#14", 1, 2)]
    rejected = sorted(found.reasons, key=lambda row: int(row[0]))
    assert rejected == [(str(row), f"a.jsonl#{row}", reason) for row, (_, _, reason) in enumerate(values)]


def content_of(row: Mapping[str, Any]) -> bytes:
    """Return the bytes that a row's source names."""
    source = Source.of_row(row["_source"])
    with open(source.path, "rb") as file:
        file.seek(source.offset)
        return file.read(source.size)


def columns(pictures: Sequence[bytes]) -> dict[str, tuple[pa.Array, list[str]]]:
    """Return columns of Parquet with the same contents, and the reasons of their rejected rows."""
    binary = [pictures[0], None, b"", pictures[1], b"\xff\xfe"]
    faults = ["missing field", "empty file", "not decodable"]
    structs = [{"bytes": data, "path": "x.png"} for data in binary]
    structs[1] = {"bytes": None, "path": None}
    structs[3] = {"bytes": None, "path": "1.png"}
    ranges = [
        {"uri": "all.bin", "offset": 5, "size": len(pictures[0])},
        {"uri": None, "offset": None, "size": None},
        {"uri": "all.bin", "offset": 0, "size": 0},
        {"uri": "1.png", "offset": None, "size": None},
        {"uri": "all.bin", "offset": 0, "size": 5},
    ]
    return {
        "binary": (pa.array(binary, pa.binary()), faults),
        "large": (pa.array(binary, pa.large_binary()), faults),
        "view": (pa.array(binary, pa.binary_view()), faults),
        "struct": (pa.array(structs), faults),
        "ranges": (pa.array(ranges), faults),
    }


@pytest.mark.parametrize("kind", ["binary", "large", "view", "struct", "ranges"])
def test_columns_of_parquet(kind: str, tmp_path: Path, pictures: list[bytes]) -> None:
    """Bytes are copied once, and the row names the Parquet file; references are read where they are."""
    (tmp_path / "all.bin").write_bytes(b"12345" + pictures[0] + b"more")
    column, faults = columns(pictures)[kind]
    pq.write_table(pa.table({"path": column, "n": range(5)}), tmp_path / "a.parquet", row_group_size=2)
    spill = tmp_path / "spill"
    found = read_list(tmp_path / "a.parquet", "image", spill, keep_fields=["n"])
    assert [(row["id"], row["n"]) for row in found.rows] == [("a.parquet#0", 0), ("a.parquet#3", 3)]
    assert [content_of(row) for row in found.rows] == pictures[:2]
    assert found.reasons == [(str(n), f"a.parquet#{n}", reason) for n, reason in zip((1, 2, 4), faults, strict=True)]
    shard = str(tmp_path / "a.parquet")
    expected = {
        "struct": [(shard, None), (str(tmp_path / "1.png"), None)],
        "ranges": [(str(tmp_path / "all.bin"), 5), (str(tmp_path / "1.png"), None)],
    }.get(kind, [(shard, None), (shard, None)])
    assert [(row["file"]["uri"], row["file"]["offset"]) for row in found.rows] == expected
    assert [row["file"]["size"] for row in found.rows] == list(map(len, pictures[:2]))
    assert [row["file"]["checksum"] for row in found.rows] == list(map(digest, pictures[:2]))
    copied = sum(path.stat().st_size for path in spill.iterdir()) if spill.exists() else 0
    kept = {"ranges": 0, "struct": len(pictures[0])}.get(kind, len(pictures[0]) + len(pictures[1]))
    assert copied == kept, "rejected bytes are not copied"


def test_large_values_of_parquet(tmp_path: Path) -> None:
    """Sounds are longer than records of other shards may be."""
    data = sound_file(samples=12 << 20)
    assert len(data) > 20 << 20
    pq.write_table(pa.table({"path": [data, sound_file()]}), tmp_path / "a.parquet")
    found = read_list(tmp_path / "a.parquet", "audio", tmp_path / "spill")
    assert (len(found.rows), found.reasons) == (30, [])
    assert content_of(found.rows[0]) == data


def test_paths_of_parquet_that_are_not_utf8(tmp_path: Path, pictures: list[bytes]) -> None:
    """A column of strings is never taken for one of bytes."""
    raw = pa.array([b"0.png", b"\xff.png"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"path": raw}), tmp_path / "a.parquet")
    found = read_list(tmp_path / "a.parquet", "image")
    assert found.ids == ["a.parquet#0"]
    assert found.reasons == [("1", "a.parquet#1", "not UTF-8")]


def test_a_file_of_many_entries_is_read_once(
    tmp_path: Path, sound: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[str]()
    head = find_head("audio")
    examine = type(head).examine

    def count(self: Any, file: Any, size: int, settings: EncoderSettings) -> Any:
        opened.append("")
        return examine(self, file, size, settings)

    monkeypatch.setattr(type(head), "examine", count)
    lines = write_list(tmp_path / "a.jsonl", ({"path": "long.wav", "at": n % 20, "for": 2} for n in range(500)))
    found = read_list(lines, "audio", offset_field="at", duration_field="for")
    assert len(found.rows) == 500
    assert len(opened) == 1


def test_a_list_of_many_files_is_in_order(tmp_path: Path, pictures: list[bytes]) -> None:
    """More than a block, read in threads."""
    names = [f"{n % 3}.png" if n % 7 else f"none{n}.png" for n in range(6000)]
    found = read_list(write_list(tmp_path / "a.jsonl", ({"path": name} for name in names)), "image")
    assert found.ids == [f"a.jsonl#{n}" for n in range(6000) if n % 7]
    assert [int(row) for row, _, _ in found.reasons] == list(range(0, 6000, 7))


def test_lists_in_object_stores(store: Store) -> None:
    """URIs, and paths relative to the list, also upwards; an object that does not exist costs its row."""
    data = encoded(picture(1))
    store.put("lists/a.jsonl", b"".join(json.dumps({"path": path}).encode() + b"\n" for path in (
        "../pictures/1.png", f"{store.url}/pictures/1.png", "none.png", "1.png", "./1.png"
    )))  # fmt: skip
    store.put("pictures/1.png", data)
    store.put("lists/1.png", data)
    found = read_list(f"{store.url}/lists/a.jsonl", "image")
    uris = [row["file"]["uri"].removeprefix(f"{store.url}/") for row in found.rows]
    assert uris == ["pictures/1.png", "pictures/1.png", "lists/1.png", "lists/1.png"]
    assert found.reasons == [("2", "a.jsonl#2", "missing file")]


@pytest.mark.parametrize(
    ("names", "chosen", "message"),
    [
        (["a.jsonl"], {"media_field": None}, r"a.jsonl: .jsonl is a list .*: name its field with --media_field"),
        (["a.png"], {}, r"a.png: .png is not a list by its suffix .*: leave --media_field out, which is for lists"),
        (["a.txt"], {}, r"a.txt: .txt is not a list by its suffix"),
        (["a.txt"], {"media_field": None}, r"a.txt: .txt is not an image by its suffix"),
    ],
)
def test_shards_are_lists_if_a_field_is_named(
    names: Sequence[str], chosen: Mapping[str, object], message: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}\n")
    lists = chosen.get("media_field", ["path"]) is not None
    with pytest.raises(InputError, match=message):
        find_shards([str(tmp_path / name) for name in names], head=find_head("image"), lists=lists)


def test_lists_and_files_in_one_directory(tmp_path: Path, pictures: list[bytes]) -> None:
    """Below a wildcard, the files of the other kind are counted."""
    write_list(tmp_path / "a.jsonl", [{"path": "0.png"}])
    notes = list[str]()
    head = find_head("image")
    assert [shard.name for shard in find_shards([f"{tmp_path}/*"], head=head, lists=True, notes=notes)] == ["a.jsonl"]
    assert [shard.name for shard in find_shards([f"{tmp_path}/*"], head=head, notes=notes)] == [
        f"{n}.png" for n in range(3)
    ]
    assert [note.partition(";")[0] for note in notes] == [
        "3 files were left out for lack of a suffix of lists",
        "1 file was left out for lack of a suffix of images",
    ]


@pytest.mark.parametrize("flag", ["media_root", "offset_field", "duration_field"])
def test_flags_of_lists_need_a_field(flag: str) -> None:
    options = {**defaults(), flag: "x"}
    with pytest.raises(InputError, match=f"--{flag} is for lists: name their field of the sound with --media_field"):
        fields_of(options, find_head("audio"))


def test_a_column_of_another_type_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [1.5], "at": [[1]]}), tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match="field 'path' is double, which cannot be a picture or sound: give another --media"
    ):
        read_list(tmp_path / "a.parquet", "audio")
    pq.write_table(pa.table({"path": ["x"], "at": [[1]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="field 'at' is list.*, which cannot be a number of seconds"):
        read_list(tmp_path / "a.parquet", "audio", offset_field="at")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0.png", "./1.png"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["uri", "path", "bytes", "offset", "size"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=30))
def test_any_list_is_read(tmp_path: Path, pictures: list[bytes], values: list[tuple[object, object, object]]) -> None:
    """Whatever fields contain, every record is a row or a rejected row."""
    known = [{"path": "0.png", "at": 0, "for": 1}]  # without it the fields might not exist
    records = [*known, *({"path": path, "at": at, "for": length} for path, at, length in values)]
    lines = write_list(tmp_path / "a.jsonl", records)
    for head, options in (("image", {}), ("audio", {"offset_field": "at", "duration_field": "for"})):
        found = read_list(lines, head, **options)
        numbers = [row["row"] for row in found.rows] + [int(row) for row, _, _ in found.reasons]
        assert sorted(numbers) == list(range(len(records)))
        assert {reason for _, _, reason in found.reasons} <= set(reasons_of(find_head(head)))
