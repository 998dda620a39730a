"""The page of a snapshot of sounds or pictures: what it shows of rows, what it reads for that, and what it loads."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audioclip_beam.model.media import MediaHead
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.report import html, previews, sample
from audioclip_beam.pipeline.report.previews import Preview, make_previews
from audioclip_beam.pipeline.report.sample import read_sample
from audioclip_beam.pipeline.snapshots.listing import read_file_list
from tests.support import object_stores
from tests.support.browser import CHROMIUM, contrast, show_page
from tests.support.corpus import read, write_jsonl
from tests.support.object_stores import Store
from tests.support.pages_of_reports import Page, manifest_of, page_of
from tests.support.picture_files import encoded, picture
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubPictures, StubSounds, embed_media
from tests.support.tars import tar_of

store = object_stores.store

NAMES = [
    b'a "quoted" <i>&amp; {{ 7 }}',
    b"new\nline",
    b"\xff\xfe not UTF-8",
    b"100%25 #t=1,2 ?",
    "Möwe 鳥".encode(),
    b"plain",
]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds with hostile names, one of them in four windows, and their snapshot."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "in").mkdir()
    for number, name in enumerate(NAMES):
        path = os.fsencode(folder / "in") + b"/" + name + b".wav"
        Path(os.fsdecode(path)).write_bytes(sound_file(samples=8000 if number == 1 else 1000 + number, rate=8000))
    embed_media(f"{folder}/in/*", folder / "out", window="0.25")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise with hostile names, and their snapshot."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "in").mkdir()
    for number, name in enumerate(NAMES):
        path = os.fsencode(folder / "in") + b"/" + name + b".jpg"
        Path(os.fsdecode(path)).write_bytes(encoded(picture(number, 400, 300 + number), "JPEG"))
    embed_media(f"{folder}/in/*", folder / "out", StubPictures())
    return folder


def shown(folder: Path) -> Page:
    """Return the page of the snapshot of a folder, read."""
    return Page(page_of(folder / "out").read_text(encoding="utf-8"))


def thumbnails(page: Page) -> list[Image.Image]:
    """Return the small pictures in a page, which are at most 4 kB there."""
    found = []
    for url in sorted(page.attributes["src"]):
        kind, _, data = url.partition(",")
        assert kind == "data:image/webp;base64"
        assert len(url) <= 4100
        found.append(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


def test_the_page_of_pictures_contains_them_small(pictures: Path) -> None:
    """Each row of the sample has its picture, in the page itself, whatever its name."""
    manifest, page = manifest_of(pictures / "out"), shown(pictures)
    assert "report" in manifest, manifest["notes"]
    small = thumbnails(page)
    assert len(small) == len(NAMES)
    assert {max(image.size) for image in small} == {160}
    assert page.attributes.keys() & {"srcset", "data", "action", "href", "onerror"} == set()
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page.attributes["content"]
    text = page_of(pictures / "out").read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert "In the snapshot: 6 images, 96 pixels." in text
    assert " images/s." in text
    assert "Pixels of width per image" in text
    assert "Nearest by cosine among 6 of the 6 rows with a vector." in text


def test_the_page_of_sounds_has_players_that_link_to_their_files(sounds: Path) -> None:
    """A row that is a part of its file is played from its start to its end; the page has no sound itself, and loads none."""
    page, rows = shown(sounds), read(sounds / "out").to_pylist()
    files = {path.encode() if isinstance(path, str) else path for path in map(os.fsencode, (sounds / "in").iterdir())}
    links = [url.partition("#") for url in page.attributes["src"]]
    assert all(url.startswith("file:///") for url, _, _ in links)
    assert {unquote_to_bytes(url.removeprefix("file://")) for url, _, _ in links} == files
    parts = {"", *(f"t={row['start']:g},{row['end']:g}" for row in rows if row["duration"] == 1)}
    assert {part for _, _, part in links} <= parts
    assert len({part for _, _, part in links}) > 2
    assert page.attributes["preload"] == {"none"}
    assert "default-src 'none'; style-src 'unsafe-inline'; media-src file:" in page.attributes["content"]
    text = page_of(sounds / "out").read_text(encoding="utf-8")
    assert "In the snapshot: 6 recordings, 1.63 s." in text
    assert " x real time." in text
    assert "Seconds of the file per sound" in text
    assert "0.125 seconds of the file, the least of the sample" in text
    assert "1 seconds of the file, the greatest of the sample" in text


@pytest.mark.parametrize("name", ["sounds", "pictures"])
def test_names_cannot_become_markup(name: str, request: pytest.FixtureRequest) -> None:
    """Tags, quotes, template syntax, line ends and bytes that are not UTF-8 are shown."""
    folder = request.getfixturevalue(name)
    text, page = page_of(folder / "out").read_text(encoding="utf-8"), shown(folder)
    assert not page.tags & {"script", "iframe", "object", "link", "a", "i"}
    assert not [name for name in page.attributes if name.startswith("on")]
    for part in (
        "a &#34;quoted&#34; &lt;i&gt;&amp;amp; {{ 7 }}",
        "new\\nline",
        "Möwe 鳥",
        "100%25 #t=1,2 ?",
        "not UTF-8",
    ):
        assert part in text


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [{**row, "label": row["id"]} for row in read(output).sort_by("id").to_pylist()]


def plain(folder: Path) -> dict[str, Any]:
    return next(row for row in rows_of(folder / "out") if row["id"].startswith("plain"))


def note_of(head: MediaHead, row: dict[str, Any], **values: object) -> str:
    """Return the note of a row whose reference has some other values."""
    (preview,) = make_previews(head, [{**row, "file": {**row["file"], **values}}], [])
    return preview.note


@pytest.mark.parametrize(("name", "head"), [("sounds", StubSounds()), ("pictures", StubPictures())])
def test_a_file_that_cannot_be_shown_is_named_with_the_reason(
    name: str, head: MediaHead, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is missing or has changed costs its preview alone; the time for all of them is limited."""
    row = plain(request.getfixturevalue(name))
    path, size = str(shutil.copy(row["file"]["uri"], tmp_path)), row["file"]["size"]
    assert note_of(head, row, uri=path) == ""
    missing = "The file cannot be shown: missing file"
    assert note_of(head, row, uri=f"{path}x") == f"{missing}: No such file or directory"
    assert note_of(head, row, uri=str(tmp_path)) == f"{missing}: it is not a regular file"
    assert note_of(head, row, uri=path, size=size + 1) == "No preview: the file has changed since it was embedded."
    assert note_of(head, row, uri=path, offset=10) == "No preview: the file has changed since it was embedded."
    assert note_of(head, row, uri="gs://")
    monkeypatch.setattr(previews, "ALL_SECONDS", 0)
    assert note_of(head, row, uri=path) == "No preview: it took too long to read the files of other rows."


def test_pictures_that_have_changed_or_are_large_are_not_shown(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same size is compared by its checksum."""
    row, head = plain(pictures), StubPictures()
    data = bytearray(Path(row["file"]["uri"]).read_bytes())
    data[-9] ^= 1
    (tmp_path / "a.jpg").write_bytes(data)
    assert note_of(head, row, uri=str(tmp_path / "a.jpg")) == "No preview: the file has changed since it was embedded."
    monkeypatch.setattr(previews, "FILE_BYTES", 100)
    assert note_of(head, row) == f"No preview: the image has {len(data):,} bytes."
    monkeypatch.undo()
    monkeypatch.setattr(previews, "ALL_BYTES", 2 * len(data))
    notes = [preview.note for preview in make_previews(head, [row] * 3, [])]
    assert sorted(notes) == ["", "", "No preview: the images of other rows have many bytes."]


def test_a_file_system_that_hangs_costs_its_previews(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is written after a limited time."""
    monkeypatch.setattr(previews, "ALL_SECONDS", 0.2)
    ending = threading.Event()
    monkeypatch.setattr(previews, "locate", lambda *_: ending.wait(60))
    found = make_previews(StubSounds(), [plain(sounds)] * 9, [])
    ending.set()
    assert {preview.note.partition(" ")[0] for preview in found} == {"The", "No"}


def test_the_page_is_made_again_without_the_files(pictures: Path, tmp_path: Path) -> None:
    """Names stay, and say what is missing."""
    output = Path(shutil.copytree(pictures / "out", tmp_path / "out"))
    moved = pictures / "moved"
    (pictures / "in").rename(moved)
    try:
        text = Path(html.ensure_report(str(output), remake=True)).read_text(encoding="utf-8")
    finally:
        moved.rename(pictures / "in")
    assert "<img" not in text
    assert text.count("missing file: No such file or directory") == 36
    assert "Möwe 鳥.jpg" in text


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of each read of a content."""
    sizes, read_range = list[int](), FileIO.read_range

    def counting(self: FileIO, file: Any, offset: int, size: int) -> bytes:
        sizes.append(size)
        return read_range(self, file, offset, size)

    monkeypatch.setattr(FileIO, "read_range", counting)
    return sizes


def test_sounds_are_not_read_and_few_pictures_are(
    sounds: Path, tmp_path: Path, bytes_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording of a day costs what a second costs; of many pictures those of the sample that are shown are read, once."""
    (row, *_) = rows_of(sounds / "out")
    day = tmp_path / "day.wav"
    day.touch()
    os.truncate(day, 24 * 3600 * 88200)
    file = {**row["file"], "uri": str(day), "size": day.stat().st_size}
    (preview,) = make_previews(
        StubSounds(), [{**row, "file": file, "start": 3600.0, "end": 3610.0, "duration": 86400.0}], []
    )
    assert preview == Preview(player=f"{day.as_uri()}#t=3600,3610")
    assert bytes_read == []
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / f"in/{number:02}.png").write_bytes(encoded(picture(number, 8, 6)))
    embed_media(f"{tmp_path}/in/*", tmp_path / "out", StubPictures())
    bytes_read.clear()
    html.ensure_report(str(tmp_path / "out"), remake=True)
    assert 6 <= len(bytes_read) <= 36


def test_a_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run may allow more pixels than a page."""
    monkeypatch.setattr("audioclip_beam.model.image.thumbnail.MAX_PIXELS", 10_000)
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("L", (200, 100))))
    embed_media(tmp_path / "bomb.png", tmp_path / "out", StubPictures())
    text = page_of(tmp_path / "out").read_text(encoding="utf-8")
    assert "The file cannot be shown: too large: 200 x 100 pixels are too many for a small picture" in text


def test_members_of_tars_and_rows_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are read from their place in a tar, or by their row in Parquet; what has no place of its own is named."""
    data = [encoded(picture(number, 9, 7)) for number in range(3)]
    tar = tar_of({f"{number}.png": each for number, each in enumerate(data)})
    (tmp_path / "a.tar").write_bytes(tar)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "a.tar", "skipped")
        packed.addfile(*_member("3.png", encoded(picture(3, 9, 7))))
    nested = pa.array([{"bytes": each, "path": "x.png"} for each in data])
    pq.write_table(pa.table({"image": nested, "n": [7, 8, 9]}), tmp_path / "c.parquet", row_group_size=2)
    embed_media(f"{tmp_path}/a.tar", tmp_path / "tar", StubPictures())
    embed_media(f"{tmp_path}/b.tar.gz", tmp_path / "packed", StubPictures())
    options = {"media_field": ["image"], "keep_fields": ["n"]}
    embed_media(f"{tmp_path}/c.parquet", tmp_path / "parquet", StubPictures(), **options)
    for name in ("tar", "parquet"):
        page = page_of(tmp_path / name).read_text(encoding="utf-8")
        assert len(thumbnails(Page(page))) == 3
        assert "No preview" not in page
    assert all(f"<dt>n</dt><dd>{n}</dd>" in page for n in (7, 8, 9))
    page = page_of(tmp_path / "packed").read_text(encoding="utf-8")
    assert "No preview: it cannot be read by itself from b.tar.gz." in page
    (row, *_) = rows_of(tmp_path / "parquet")
    for values in ({"label": "an id of another field"}, {"label": "c.parquet#3"}, {"label": "c.parquet#1"}):
        (preview,) = make_previews(StubPictures(), [{**row, **values}], ["image"])
        assert preview.note.startswith("No preview: it ")
    with monkeypatch.context() as patch:
        patch.setattr(previews, "FILE_BYTES", row["file"]["size"])
        (preview,) = make_previews(StubPictures(), [row], ["image"])
        assert preview.note == "No preview: it was not found in c.parquet, or has too large a row group there."
    values = {"offset": 512, "uri": str(tmp_path / "a.tar")}
    sound = {**row, "file": {**row["file"], **values}, "start": 0.0, "end": 1.0, "duration": 1.0}
    assert make_previews(StubSounds(), [sound], [])[0].note == "No preview: the sound is inside of a.tar."


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, io.BytesIO(data)


def test_files_on_an_object_store(pictures: Path, sounds: Path, store: Store) -> None:
    """Pictures are read by their reference; a player would have a link that no browser opens."""
    row = plain(pictures)
    data = Path(row["file"]["uri"]).read_bytes()
    url = store.put("in/plain.jpg", data)
    inside = store.put("in/a.bin", b"0123" + data + b"456")
    places = ((url, None), (inside, 4), (f"{url}x", None))
    rows = [{**row, "file": {**row["file"], "uri": uri, "offset": offset}} for uri, offset in places]
    found = make_previews(StubPictures(), rows, [])
    assert found[0] == found[1]
    assert found[0].picture
    assert found[2].note.startswith("The file cannot be shown: missing file: ")
    (sound, *_) = rows_of(sounds / "out")
    (preview,) = make_previews(StubSounds(), [{**sound, "file": {**sound["file"], "uri": url}}], [])
    assert preview == Preview(note=f"No preview: a browser cannot open {store.url.partition(':')[0]}://.")


def test_formats_that_browsers_do_not_play_have_no_player(tmp_path: Path) -> None:
    (tmp_path / "a.aif").write_bytes(sound_file("AIFF", samples=2000, rate=8000))
    embed_media(tmp_path / "a.aif", tmp_path / "out")
    text = page_of(tmp_path / "out").read_text(encoding="utf-8")
    assert "<audio" not in text
    assert "No preview: browsers do not play files of this kind." in text


def test_a_snapshot_of_one_row_has_no_nearest_rows(tmp_path: Path) -> None:
    """The row is shown without an empty list, and the page says why."""
    (tmp_path / "a.png").write_bytes(encoded(picture(1, 8, 6)))
    embed_media(tmp_path / "a.png", tmp_path / "out", StubPictures())
    text = page_of(tmp_path / "out").read_text(encoding="utf-8")
    assert "<h3>a.png</h3>" in text
    assert "<ol>" not in text
    assert "There is no other row to compare with." in text
    assert "Nearest by cosine" not in text


def test_a_long_recording_does_not_fill_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its windows are neighbours in the order of hashes; one of each recording comes first, and not always the beginning."""
    monkeypatch.setattr(sample, "SAMPLE_ROWS", 8)
    (tmp_path / "in").mkdir()
    for number in range(8):
        (tmp_path / f"in/{number}.wav").write_bytes(sound_file(samples=800 * (number * 5 + 1), rate=8000))
    manifest, _ = embed_media(f"{tmp_path}/in/*", tmp_path / "out", window="0.1")
    files = read_file_list(str(tmp_path / "out"), manifest)
    rows = read_sample(str(tmp_path / "out"), manifest["snapshot"], StubSounds(), files).to_pylist()
    assert len({row["file"]["uri"] for row in rows}) == 8
    assert any(row["start"] > 0 for row in rows)


def test_kept_fields_of_any_type_are_shown_if_they_are_short(tmp_path: Path) -> None:
    """Also what Python cannot have as its own type; long ones are cut, nested ones left out, and names are escaped."""
    (tmp_path / "a.wav").write_bytes(sound_file(samples=2000, rate=8000))
    kept = {
        "label": pa.array(["a <i>cat</i>" + "t" * 5000]),
        "nanoseconds": pa.array([1], pa.timestamp("ns")),
        "zoned": pa.array([1], pa.timestamp("us", "Nowhere/Else")),
        "half": pa.array([1.5], pa.float16()),
        "<b>": pa.array([12]),
        "nothing": pa.array([None], pa.int8()),
        "inner": pa.array([{"x": 1}]),
    }
    pq.write_table(pa.table({"path": ["a.wav"], **kept}), tmp_path / "list.parquet")
    options = {"media_field": ["path"], "keep_fields": list(kept)}
    manifest, _ = embed_media(tmp_path / "list.parquet", tmp_path / "out", StubSounds(), **options)
    assert "report" in manifest, manifest["notes"]
    text = page_of(tmp_path / "out").read_text(encoding="utf-8")
    assert "<dt>&lt;b&gt;</dt><dd>12</dd>" in text
    assert "<dt>nanoseconds</dt><dd>1970-01-01 00:00:00.000000001</dd>" in text
    assert "<dt>label</dt><dd>a &lt;i&gt;cat&lt;/i&gt;ttt" in text
    assert "t" * 200 not in text
    assert "<dt>inner</dt>" not in text
    assert "<dt>nothing</dt>" not in text


def test_of_a_long_path_the_end_is_shown(tmp_path: Path) -> None:
    """The label may be an id that does not name the file."""
    folder = tmp_path / ("a" * 200)
    folder.mkdir()
    (folder / "<b>.png").write_bytes(encoded(picture(1, 8, 6)))
    source = write_jsonl(tmp_path / "list.jsonl", [{"id": "one", "path": f"{folder}/<b>.png"}])
    embed_media(source, tmp_path / "out", StubPictures(), media_field=["path"], id_field="id")
    text = page_of(tmp_path / "out").read_text(encoding="utf-8")
    assert "<h3>one</h3>" in text
    assert re.search("<dt>file</dt><dd>…a{91}/&lt;b&gt;.png</dd>", text)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize(("name", "width", "dark"), [("sounds", 390, True), ("pictures", 1280, False)])
def test_a_browser_shows_the_page(
    name: str, width: int, dark: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its policy allows what it loads, and nothing is wider than the window."""
    page = page_of(request.getfixturevalue(name) / "out")
    opened = show_page(page, tmp_path, width=width, height=5200, dark=dark)
    assert opened.console == []
    measures = opened.measures
    assert measures["content"] <= width
    assert measures["overlaps"] == measures["covered"] == []
    assert all(contrast(ink, measures["surface"]) >= 4.5 for ink in measures["inks"])
