"""The page of `browse` by requests: who may ask, what is found, and the bytes of contents."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from starlette.testclient import TestClient

from audioclip_beam.pipeline.browse import app as app_module
from audioclip_beam.pipeline.browse import contents, snapshot_rows
from audioclip_beam.pipeline.browse.app import is_host, make_app
from audioclip_beam.pipeline.browse.server import browse
from audioclip_beam.pipeline.browse.snapshot_rows import SnapshotRows
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.search.exact_search import search
from audioclip_beam.pipeline.snapshots.snapshot import open_snapshot
from tests.support import object_stores
from tests.support.browsing import (
    TEXTS,
    TOKEN,
    client_of,
    library_of,
    make_media,
    make_snapshots,
    picture,
    sound,
    use_stub_models,
)
from tests.support.corpus import embed
from tests.support.object_stores import Store
from tests.support.snapshots import batch_of, directory_of, edit_manifest, random_batches, rewrite, write_snapshot
from tests.support.stub_media import StubPictures, embed_media
from tests.support.tars import tar_of

store = object_stores.store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with media and snapshots of them."""
    folder = tmp_path_factory.mktemp("browse")
    make_snapshots(folder)
    return folder


@pytest.fixture(scope="module")
def outputs(folder: Path) -> list[Path]:
    return [folder / "out" / name for name in ("sounds", "pictures", "texts")]


@pytest.fixture(scope="module")
def client(outputs: list[Path]) -> TestClient:
    return client_of(outputs)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder with media of its own and a snapshot of the sounds, which a test changes."""
    make_media(tmp_path)
    embed_media(tmp_path / "sounds/*", tmp_path / "out", window="1")
    return tmp_path


def rows_of(client: TestClient, snapshot: int = 0) -> dict[str, int]:
    """Return the number of each row by its id."""
    hits = client.get("/first", params={"top": "100"}).json()["answers"][snapshot]["hits"]
    return {hit["id"]: hit["row"] for hit in hits}


PATHS = [
    "/",
    "/static/browse.js",
    "/snapshots",
    "/first",
    "/near/0/0",
    "/content/0/0",
    "/content/0/0/state",
    "/nothing",
]


@pytest.mark.parametrize("path", PATHS)
def test_every_request_needs_the_token(outputs: list[Path], client: TestClient, path: str) -> None:
    """One without it or with another one gets no answer, nor one under a name that may have been rebound."""
    other = TestClient(client.app, base_url="http://localhost")
    for token in ("", "?token=", "?token=a-tokem", f"?Token={TOKEN}", "?token=%ff%00"):
        answer = other.get(path + token)
        assert answer.status_code == 403
        assert "Open the whole address" in answer.text
    assert client.get(path, headers={"host": "attacker.example"}).status_code == 421
    right = client.get(path)
    assert right.status_code == (404 if path == "/nothing" else 200)
    for answer in (right, other.get(path)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
    assert ("sandbox" in right.headers["content-security-policy"]) == (path != "/")


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("localhost:80", True), ("LOCALHOST", True), ("localhost.", True), ("127.0.0.1:8000", True), ("[::1]:8000", True),
        ("192.168.0.7", True), ("", False), ("attacker.example", False), ("localhost.attacker.example:80", False),
        ("127.0.0.1.attacker.example", False), ("[::1", False), ("localhost:80:80", False),
    ],
)  # fmt: skip
def test_a_name_that_may_be_rebound_is_refused(header: str, known: bool) -> None:
    """An address cannot be rebound; of names the server knows its own."""
    assert is_host(header, {"localhost"}) == known


def test_the_page_has_no_data_and_no_script_in_it(client: TestClient) -> None:
    """What it shows comes as JSON; its script and style are files of the package."""
    page = client.get("/").text
    assert "<script>" not in page
    assert "style=" not in page
    assert f"/static/browse.js?token={TOKEN}" in page
    assert "http://" not in page + client.get("/static/browse.js").text + client.get("/static/browse.css").text
    assert client.get("/static/app.py").status_code == 404
    assert client.get("/static/..%2fapp.py").status_code == 404


def test_snapshots_and_their_first_rows(client: TestClient, folder: Path) -> None:
    """Each with its head, rows and warning; rows with their place, kept fields and hostile names as data."""
    described = client.get("/snapshots").json()["snapshots"]
    assert [(each["head"], each["rows"]) for each in described] == [("audio", 6), ("image", 4), ("text", 4)]
    assert all("random weights, for testing only" in each["notes"][0] for each in described)
    sounds, pictures, texts = (each["hits"] for each in client.get("/first").json()["answers"])
    long = next(hit for hit in sounds if hit["id"] == "long.wav#t=1,2")
    assert (long["start"], long["end"], long["duration"], long["score"]) == (1.0, 2.0, 2.5, None)
    assert long["file"] == str(folder / "sounds/long.wav")
    assert "<b>bold & 'quoted'.ogg" in [hit["id"] for hit in sounds]
    assert (pictures[0]["width"], pictures[0]["height"]) == (4, 4)  # the stub's
    assert {hit["text"] for hit in texts} == set(TEXTS)
    assert ["lang", "en"] in texts[0]["kept"]
    assert any(value.startswith('["a"') for name, value in texts[0]["kept"] if name == "tags")
    assert len(client.get("/first", params={"top": "2"}).json()["answers"][0]["hits"]) == 2
    for top in ("0", "501", "x", "-1", "1e3", "²"):
        assert client.get("/first", params={"top": top}).status_code == 400


def test_a_stored_vector_is_searched_for_without_a_model(
    client: TestClient, outputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are those that `search` finds for the same vector, of each snapshot."""
    monkeypatch.setattr("audioclip_beam.pipeline.browse.library.find_query_model", None)
    row = rows_of(client)["bark.wav"]
    answer = client.get(f"/near/0/{row}").json()
    assert answer["query"]["id"] == "bark.wav"
    part = pq.read_table(open_snapshot(str(outputs[0])).part_paths())
    vector = part["embedding"].to_pylist()[part["id"].to_pylist().index("bark.wav")]
    np.save(tmp_path / "v.npy", np.array(vector))
    for output, found in zip(outputs, answer["answers"], strict=True):
        hits = search(str(output), [str(tmp_path / "v.npy")], top=20).hits[0]
        assert [(hit["id"], hit["score"]) for hit in found["hits"]] == [(hit.id, hit.score) for hit in hits]
    assert answer["answers"][0]["hits"][0]["row"] == row
    for path in ("/near/0/6", "/near/3/0", "/near/0/x", "/near/-1/0"):
        assert client.get(path).status_code == 404


def test_texts_and_files_are_searched_for(
    outputs: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file finds itself first, a long sound its first window with a note; no temporary file is written."""
    use_stub_models(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = client_of(outputs)
    found = client.post("/near/text", content="rain").json()["answers"]
    assert found[2]["hits"][0]["text"] == "rain"
    assert found[2]["hits"][0]["score"] == pytest.approx(1)
    assert [len(each["hits"]) for each in found] == [6, 4, 4]
    for place, path in ((0, "sounds/rain.flac"), (1, "pictures/2.png"), (0, "sounds/long.wav")):
        name, data = Path(path).name, (folder / path).read_bytes()
        found = client.post("/near/media", params={"name": name}, content=data).json()["answers"]
        assert found[place]["hits"][0]["score"] == pytest.approx(1)
        assert found[place]["hits"][0]["id"].partition("#")[0] == name
        assert any("its first window, #t=0,1" in note for note in found[place]["notes"]) == (name == "long.wav")
    assert list(tmp_path.iterdir()) == []


def test_queries_that_cannot_be_used(outputs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a message: of the request, or of the snapshot for which it failed."""
    use_stub_models(monkeypatch)
    client = client_of(outputs)
    for content, message in (
        ("", "an empty text cannot be searched for"),
        (" \n", "an empty text cannot be searched for"),
    ):
        assert all(message in each["error"] for each in client.post("/near/text", content=content).json()["answers"])
    assert client.post("/near/text", content=b"\xff").json()["error"] == "the text is not UTF-8"
    for name in ("", "a", "a.txt", "v.npy", "a.heic"):
        answer = client.post("/near/media", params={"name": name}, content=b"x")
        assert answer.status_code == 400
        assert "neither a sound nor a picture" in answer.json()["error"]
    for name, data in (("a.wav", b"no sound"), ("a.wav", b"")):
        answers = client.post("/near/media", params={"name": name}, content=data).json()["answers"]
        assert all("a.wav cannot be embedded" in each["error"] for each in answers)
    monkeypatch.setattr(app_module, "UPLOAD_BYTES", 1000)
    small = client_of(outputs)
    for body in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
        answer = small.post("/near/media", params={"name": "a.wav"}, content=body)
        assert answer.status_code == 413
        assert "at most 1,000 bytes" in answer.json()["error"]
    assert client.post("/near/text", content="x" * (64 << 10) + "y").status_code == 413


def test_vectors_of_other_trainings_are_not_compared(outputs: list[Path], tmp_path: Path) -> None:
    """The error is that of `search` and `pairs`, for the snapshot that it is about; the others are searched."""
    other = tmp_path / "out"
    (tmp_path / "1.png").write_bytes(picture(1))
    embed_media(tmp_path / "*.png", other, StubPictures())
    edit_manifest(other, lambda edited: edited.update(weights="trained"))
    edit_manifest(other, lambda edited: edited["checkpoint"].update(released_sha256="b" * 64))
    answers = client_of([outputs[0], other]).get("/near/0/0").json()["answers"]
    assert len(answers[0]["hits"]) == 6
    assert "vectors of different trainings cannot be compared" in answers[1]["error"]
    for checkpoint, message in (("untrained", "different trainings cannot be compared"), ("gone.pt", "gone.pt")):
        client = client_of([other], checkpoint=checkpoint)
        answers = client.post("/near/media", params={"name": "a.wav"}, content=sound(1)).json()["answers"]
        assert message in answers[0]["error"]


def test_blocks_are_searched_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have the same numbers and scores whatever the size of a block; rows without a direction are counted."""
    zero = batch_of(
        ["zero", "small"], ["zero", "small"], np.array([[0.0] * 16, [1e-30] * 16], np.float16).astype(np.float32)
    )
    batches = [*random_batches(2500, 16), zero]
    write_snapshot(tmp_path / "out", batches, 16)
    np.save(tmp_path / "v.npy", np.arange(16.0))
    expected = search(str(tmp_path / "out"), [str(tmp_path / "v.npy")], top=30).hits[0]
    for size in (700, 1024, 1 << 16):
        monkeypatch.setattr(snapshot_rows, "BLOCK_ROWS", size)
        rows = SnapshotRows.read(str(tmp_path / "out"))
        query = np.arange(16.0) / np.linalg.norm(np.arange(16.0))
        hits = rows.nearest(query, 30)
        assert hits == expected
        assert [rows.row(hit.row)["id"] for hit in hits] == [hit.id for hit in hits]
        assert (len(rows), rows.unusable) == (2502, 2)
        client = client_of([tmp_path / "out"])
        assert "2 of 2,502 rows cannot be compared" in client.get("/snapshots").json()["snapshots"][0]["notes"][0]
        assert client.get("/near/0/2499").json()["answers"][0]["hits"][0]["row"] == 2499
        assert "zero or not finite" in client.get("/near/0/2500").json()["error"]


def test_a_snapshot_without_rows(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "out", [], 8)
    client = client_of([tmp_path / "out"])
    assert client.get("/first").json()["answers"] == [{"hits": [], "notes": []}]
    assert client.get("/near/0/0").status_code == 404


def test_contents_come_by_ranges(client: TestClient, folder: Path) -> None:
    """As HTTP has them: a part, the end, what is beyond, and nothing but the header."""
    data = (folder / "sounds/long.wav").read_bytes()
    address, size = f"/content/0/{rows_of(client)['long.wav#t=1,2']}", len(data)
    whole = client.get(address)
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-type"] == "audio/wav"
    assert whole.headers["accept-ranges"] == "bytes"
    for header, start, end in (
        ("bytes=0-", 0, size), ("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=1000-", 1000, size),
        ("bytes=-44", size - 44, size), (f"bytes=10-{size + 5}", 10, size), (f"bytes=-{size + 5}", 0, size),
    ):  # fmt: skip
        part = client.get(address, headers={"range": header})
        assert (part.status_code, part.content) == (206, data[start:end]), header
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part.headers["content-length"] == str(end - start)
    for header in (f"bytes={size}-", f"bytes={size + 7}-{size + 9}", "bytes=-0"):
        beyond = client.get(address, headers={"range": header})
        assert (beyond.status_code, beyond.content) == (416, b""), header
        assert beyond.headers["content-range"] == f"bytes */{size}"
    for header in ("bytes=9-3", "bytes=0-1,5-6", "lines=0-1", "bytes=-", "bytes=a-b", "bytes=" + "9" * 30 + "-"):
        assert client.get(address, headers={"range": header}).status_code == 200, header
    head = client.head(address, headers={"range": "bytes=0-9"})
    assert (head.status_code, head.headers["content-length"], head.content) == (206, "10", b"")
    assert client.get("/content/2/0").status_code == 404
    picture_address = f"/content/1/{rows_of(client, 1)['1.png']}"
    assert client.get(picture_address).headers["content-type"] == "image/png"
    assert client.get(f"{picture_address}/state").json() == {
        "head": "image",
        "type": "image/png",
        "bytes": len(picture(1)),
    }


def test_members_of_tars_are_ranges_of_them(tmp_path: Path) -> None:
    """What can be read in its file is served from there; what was copied out of it says that it cannot be played."""
    members = {f"{n}.wav": sound(n) for n in range(3)}
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar_of(members)))
    rows = pa.table({"audio": list(members.values())})
    pq.write_table(rows, tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text('{"audio": "e.wav"}\n')
    (tmp_path / "e.wav").write_bytes(sound(7))
    for name in ("a.tar", "b.tar.gz", "c.parquet", "d.jsonl"):
        embed_media(tmp_path / name, tmp_path / "out" / name, **({} if ".tar" in name else {"media_field": ["audio"]}))
    client = client_of([tmp_path / "out" / name for name in ("a.tar", "b.tar.gz", "c.parquet", "d.jsonl")])
    for name, row in rows_of(client).items():
        part = client.get(f"/content/0/{row}", headers={"range": "bytes=2-"})
        assert part.content == members[f"{name.partition('#')[2]}.wav"][2:]
        assert part.headers["content-type"] == "audio/wav"
    for place in (1, 2):
        for path in (f"/content/{place}/0", f"/content/{place}/0/state"):
            answer = client.get(path)
            assert answer.status_code == 410
            assert "cannot be played or shown by itself" in answer.json()["error"]
    assert client.get("/content/3/0").content == sound(7)
    (tmp_path / "e.wav").write_bytes(sound(8))  # as many bytes
    assert "changed since it was embedded" in client.get("/content/3/0").json()["error"]


def test_files_that_changed_or_are_gone(sounds: Path) -> None:
    """They are not played; a file that was written again with the same bytes is."""
    client = client_of([sounds / "out"])
    row = rows_of(client)["bark.wav"]
    path, address = sounds / "sounds/bark.wav", f"/content/0/{row}"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert client.get(address).content == data
    path.write_bytes(bytes(reversed(data)))
    assert client.get(address).status_code == 410
    assert client.get(f"{address}/state").json()["error"] == "its file changed since it was embedded"
    path.write_bytes(data + b"x")
    assert "its file changed since it was embedded: it has 4,845 bytes now" in client.get(address).json()["error"]
    path.unlink()
    assert client.get(address).json()["error"] == "its file is missing: No such file or directory"
    path.mkdir()
    assert client.get(address).json()["error"] == "its file is missing: it is not a regular file"
    path.rmdir()
    path.write_bytes(data)
    assert client.get(address, headers={"range": "bytes=5-6"}).content == data[5:7]


def test_large_contents_are_not_hashed(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their size and time of change decide."""
    monkeypatch.setattr(contents, "CHECKED_BYTES", 10)
    client = client_of([sounds / "out"])
    address = f"/content/0/{rows_of(client)['bark.wav']}"
    assert client.get(address).status_code == 200
    os.utime(sounds / "sounds/bark.wav", (1, 1))
    assert client.get(address).status_code == 410


def test_a_file_that_changes_while_it_is_sent(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent is not followed by bytes of another file."""
    monkeypatch.setattr(contents, "PIECE_BYTES", 1000)
    library = library_of([sounds / "out"])
    row = next(n for n in range(6) if library.snapshots[0].row(n)["id"] == "bark.wav")
    found = library.contents[0].find(library.snapshots[0].row(row))
    pieces = library.contents[0].read(found, 0, found.size)
    assert len(next(pieces)) == 1000
    (sounds / "sounds/bark.wav").write_bytes(sound(3))
    with pytest.raises(OSError, match="changed"):
        next(pieces)
    client = TestClient(make_app(library, TOKEN, {"localhost"}), base_url="http://localhost")
    monkeypatch.setattr(library.contents[0], "find", lambda row: found)
    with pytest.raises(app_module.ReadingStopped):
        client.get(f"/content/0/{row}", params={"token": TOKEN})


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `sounds`; its tests write the files that all rows name into the snapshot."""
    folder = tmp_path_factory.mktemp("edited")
    make_media(folder)
    embed_media(folder / "sounds/*", folder / "out", window="1")
    return folder


HOSTILE = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"


@pytest.mark.parametrize(
    ("name", "content_type", "expected"),
    [
        ("evil.html", "text/html", "audio/octet-stream"),
        ("evil.svg", "image/svg+xml", "audio/octet-stream"),
        ("evil", None, "audio/octet-stream"),
        ("evil.html", "audio/wav\r\nx: y", "audio/octet-stream"),
        ("evil.wav", "text/html", "audio/wav"),
    ],
)
def test_files_that_hostile_snapshots_name_run_nothing(
    edited: Path, name: str, content_type: str | None, expected: str
) -> None:
    """Their media type is one of sounds, and a browser that opens them runs nothing in them."""
    (edited / name).write_bytes(HOSTILE)
    file = {
        "uri": str(edited / name),
        "offset": None,
        "size": len(HOSTILE),
        "content_type": content_type,
        "checksum": None,
    }
    _name_in_all_rows(edited / "out", file)
    answer = client_of([edited / "out"]).get("/content/0/0")
    assert answer.content == HOSTILE
    assert answer.headers["content-type"] == expected
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; sandbox")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uri": "http://127.0.0.1/a.wav"}, "cannot be read"),
        ({"uri": "/dev/zero"}, "not a regular file"),
        ({"uri": "a\0b"}, "is missing"),
        ({"uri": "nothing://x"}, "cannot be read"),
        ({"offset": -5}, "changed"),
        ({"offset": 5, "size": 1 << 62}, "changed"),
        ({"size": 0}, "changed"),
        ({"size": -1}, "changed"),
    ],
)
def test_places_that_hostile_snapshots_name(edited: Path, change: dict[str, Any], message: str) -> None:
    """Nothing is asked of other machines, and nothing but files is read, inside of their ends."""
    data = (edited / "sounds/bark.wav").read_bytes()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    file = {"uri": str(edited / "sounds/bark.wav"), "offset": None, "size": len(data), "content_type": "audio/wav"}
    _name_in_all_rows(edited / "out", {**file, "checksum": f"BLAKE2B-128:{digest}", **change})
    answer = client_of([edited / "out"]).get("/content/0/0")
    assert answer.status_code == 410
    assert message in answer.json()["error"]


def test_columns_of_hostile_snapshots(sounds: Path) -> None:
    """What is not a number or is missing is left out, and control characters are spelled out."""

    def change(table: pa.Table) -> pa.Table:
        for name, value in (("start", float("nan")), ("end", float("inf"))):
            table = table.set_column(table.schema.get_field_index(name), name, pa.array([value] * len(table)))
        ids = [f"{n}\x00\x1b[31m\u202e<b>" for n in range(len(table))]
        return table.set_column(0, table.schema.field("id"), pa.array(ids)).drop_columns(["file"])

    rewrite(sounds / "out", change)
    client = client_of([sounds / "out"])
    (first, *_) = client.get("/first").json()["answers"][0]["hits"]
    assert first == {"row": 0, "score": None, "id": r"0\x00\x1b[31m\u202e<b>", "kept": []}
    assert client.get("/content/0/0/state").json()["error"] == "the snapshot names no file"


def _name_in_all_rows(output: Path, file: dict[str, Any]) -> None:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("file")
        return table.set_column(
            place, table.schema.field(place), pa.array([file] * len(table), table.schema.field(place).type)
        )

    rewrite(output, change)


def test_kept_values_that_python_cannot_have(tmp_path: Path) -> None:
    """Each is shown as Arrow has it, and does not cost the page."""
    values = {
        "nanoseconds": (pa.array([10**18 + 1], pa.timestamp("ns")), "2001-09-09 01:46:40.000000001"),
        "time": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
        "far": (pa.array([10**17], pa.timestamp("ms")), "<value out of range: 100000000000000000>"),
        "date": (pa.array([10**8], pa.date32()), "<value out of range: 100000000>"),
        "zone": (pa.array([1], pa.timestamp("us", tz="Nowhere/X")), "a value of the type timestamp[us, tz=Nowhere/X]"),
        "bytes": (pa.array([b"\xff"]), "b'\\xff'"),
        "list": (pa.array([[10**8]], pa.list_(pa.date32())), "a value of the type list<element: date32[day]>"),
        "nan": (pa.array([float("nan")]), "nan"),
    }
    pq.write_table(
        pa.table({"text": ["rain"], **{name: column for name, (column, _) in values.items()}}), tmp_path / "a.parquet"
    )
    embed(tmp_path / "a.parquet", tmp_path / "out", keep_fields=[*values])
    (hit,) = client_of([tmp_path / "out"]).get("/first").json()["answers"][0]["hits"]
    assert hit["kept"] == [[name, shown] for name, (_, shown) in values.items()]


def test_a_damaged_snapshot_is_an_error_at_the_start(sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of another type, and a list of shards that is missing."""

    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index("start"), "start", pa.array(["0"] * len(table)))

    (shards,) = directory_of(sounds / "out").glob("_shards-*")
    data = shards.read_bytes()
    shards.unlink()
    assert main(["browse", str(sounds / "out")]) == 1
    assert f"{shards} is missing" in capsys.readouterr().err
    shards.write_bytes(data)
    rewrite(sounds / "out", change)
    assert main(["browse", str(sounds / "out")]) == 1
    assert "is not the file that the manifest describes" in capsys.readouterr().err


def test_contents_on_an_object_store(store: Store) -> None:
    """A range is asked for of the version that was embedded; another one has changed."""
    for number in range(2):
        store.put(f"in/{number}.wav", sound(number))
    embed_media(f"{store.url}/in/*", f"{store.url}/out", window="1")  # type: ignore[arg-type]
    client = client_of([f"{store.url}/out"])  # type: ignore[list-item]
    address = f"/content/0/{rows_of(client)['1.wav']}"
    store.seen.clear()
    assert client.get(address, headers={"range": "bytes=100-299"}).content == sound(1)[100:300]
    (read,) = [request for request in store.seen if "range" in {name.lower() for name in request.headers}]
    assert "bytes=100-299" in {value for name, value in read.headers.items() if name.lower() == "range"}
    assert client.head(address).headers["content-length"] == str(len(sound(1)))
    store.put("in/1.wav", sound(5))
    assert client.get(address).json()["error"] == "its file changed since it was embedded"
    FileSystems.delete([f"{store.url}/in/1.wav"])
    assert "its file is missing" in client.get(address).json()["error"]


def test_a_snapshot_that_is_published_meanwhile(sounds: Path) -> None:
    """The page shows what it has read."""
    client = client_of([sounds / "out"])
    before = rows_of(client)
    (sounds / "sounds/new.wav").write_bytes(sound(9))
    embed_media(sounds / "sounds/*", sounds / "out", window="1")
    assert rows_of(client) == before
    assert len(client.get("/near/0/0").json()["answers"][0]["hits"]) == 6
    assert len(rows_of(client_of([sounds / "out"]))) == 7
    shutil.rmtree(sounds / "out")  # as gc removes the snapshot
    assert client.get(f"/content/0/{before['bark.wav']}").content == sound(0)


def test_mistakes_on_the_command_line(
    outputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends the command before anything is served."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it was not installed
    assert main(["browse", str(outputs[0])]) == 2
    assert "run pip install 'audioclip-beam[browse]'" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("uvicorn.Server.run", lambda *values, **named: None)
    for arguments, status, message in (
        ([str(outputs[0]), str(outputs[0])], 2, "is given twice"),
        ([str(outputs[0]), f"{outputs[0]}/"], 2, "is given twice"),
        ([str(outputs[0]), os.path.relpath(outputs[0])], 2, "is given twice"),
        ([str(tmp_path)], 1, "has no current snapshot"),
        ([str(outputs[0]), "--port", "70000"], 2, "'70000' is not a port"),
        (
            [str(outputs[0]), "--host", "no.such.host.invalid"],
            1,
            "--host no.such.host.invalid --port 0 cannot be listened",
        ),
    ):
        assert main(["browse", *arguments]) == status, arguments
        assert message in capsys.readouterr().err
    browse([str(outputs[0])], host="0.0.0.0", port=0, files={})
    printed = capsys.readouterr()
    assert "can be reached from other machines" in printed.err
    assert "/?token=" in printed.out
