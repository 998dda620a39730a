"""Changes between snapshots of sounds: rows are compared by their content and by the part of the file that they are."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from audioclip_beam.pipeline.changes import find_changes
from tests.support.corpus import write_jsonl
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubSounds, embed_media


def test_entries_of_a_list_change_with_their_file_and_their_part_of_it(tmp_path: Path) -> None:
    """The content, its file or its part, or a kept field: each is a change; a row that moved in the list has none."""
    for name, samples in (("a", 2000), ("b", 1600)):
        (tmp_path / f"{name}.wav").write_bytes(sound_file(samples=samples, rate=8000))
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    entry = {"path": "a.wav", "begin": 0.0, "length": 0.1, "label": "dog"}
    before = dict.fromkeys(("same", "file", "start", "length", "content", "label", "gone"), entry)
    now = {
        "new": entry,
        "label": {**entry, "label": "cat"},
        "content": {**entry, "path": "b.wav"},
        "length": {**entry, "length": 0.05},
        "start": {**entry, "begin": 0.05},
        "file": {**entry, "path": "copy.wav"},
        "same": entry,
    }
    fields = {"media_field": ["path"], "id_field": "id", "offset_field": "begin", "duration_field": "length"}
    for entries in (before, now):
        source = write_jsonl(tmp_path / "list.jsonl", [{"id": name, **values} for name, values in entries.items()])
        embed_media(source, tmp_path / "out", StubSounds(), window="1", keep_fields=["label"], **fields)
    changes = find_changes(str(tmp_path / "out"), target=str(tmp_path / "changes"))
    assert (changes.added, changes.changed, changes.removed) == (1, 5, 1)
    (changed,) = (tmp_path / "changes").glob("changed-*")
    rows = {row["id"]: row for row in pq.read_table(changed).to_pylist()}
    assert sorted(rows) == ["content", "file", "label", "length", "start"]
    assert rows["file"]["file"]["uri"] == str(tmp_path / "copy.wav")
    assert (rows["start"]["start"], rows["length"]["end"]) == (0.05, 0.05)
