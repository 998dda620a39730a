"""Files of sounds and pictures through the whole pipeline: rows, ids, reasons, and nights that cost what changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from audioclip_beam.model.audio import AudioEncoder
from audioclip_beam.model.image import ImageEncoder
from audioclip_beam.pipeline.changes.compare_snapshots import find_changes
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.embed_command import run_summary
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.readers.shard import InputError
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support.corpus import read, vectors
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import relative, save_small_head
from tests.support.sound_files import endless_flac, sound_file, with_wav_lengths
from tests.support.stub_media import StubPictures, embed_media, vector_of, watch_opened

WINDOW = {"window": "0.25"}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Twelve sounds of a second and less, of several formats, in two folders; and a file that is not a sound."""
    folder = tmp_path / "sounds"
    (folder / "more").mkdir(parents=True)
    kinds = [("WAV", "wav"), ("FLAC", "FLAC"), ("OGG", "ogg"), ("MP3", "mp3"), ("AIFF", "aif"), ("W64", "w64")]
    for number, (kind, suffix) in enumerate(kinds):
        (folder / f"{number}.{suffix}").write_bytes(sound_file(kind, samples=8000, rate=8000))
        (folder / "more" / f"{number}.{suffix}").write_bytes(sound_file(kind, samples=2000 + 8 * number, rate=8000))
    (folder / "notes.xmp").write_text("x")
    return folder


def test_rows_of_sounds(sounds: Path, tmp_path: Path) -> None:
    """One row per window, with its part of the file in id and columns; the vectors are those of the windows."""
    output = tmp_path / "out"
    manifest, _ = embed_media(f"{sounds}/**/*", output, **WINDOW)
    assert manifest["notes"][0].startswith("1 file was left out for lack of a suffix of sounds; the first is ")
    assert manifest["totals"]["contents"] == {"files": 12, "milliseconds": 6 * 1000 + 6 * 250 + 15}
    rows = {row["id"]: row for row in read(output).to_pylist()}
    assert len(rows) == 6 * 4 + 6 == manifest["totals"]["vectors"]
    for path in sorted(sounds.rglob("*.*")):
        name = path.relative_to(sounds).as_posix()
        if path.suffix == ".xmp":
            continue
        cut = list(AudioEncoder.windows(path, 0.25))
        ids = [each for each in rows if each == name or each.startswith(f"{name}#t=")]
        assert len(ids) == len(cut)
        for each, track in zip(sorted(ids, key=lambda each: rows[each]["start"]), cut, strict=True):
            row = rows[each]
            assert each == (name if len(cut) == 1 else f"{name}#t={track.start:g},{track.end:g}")
            assert (row["start"], row["end"]) == (track.start, track.end)
            assert row["file"]["uri"] == str(path)
            assert row["file"]["size"] == path.stat().st_size
            assert row["file"]["offset"] is None
            assert (row["sample_rate"], row["channels"], row["shard"]) == (8000, 1, name)
            np.testing.assert_array_equal(row["embedding"], vector_of(track))
    faulty = {check.name for check in validate(str(output)).checks if check.faults}
    assert faulty <= {"canary"}, "a stub is not the model"


def test_the_real_heads(tmp_path: Path) -> None:
    """The command embeds as the encoders do; the suffixes choose the head."""
    (tmp_path / "in").mkdir()
    for number, rate in enumerate((8000, 44_100, 22_050)):
        (tmp_path / f"in/{number}.wav").write_bytes(sound_file(samples=rate // 2, rate=rate))
        (tmp_path / f"in/{number}.jpg").write_bytes(encoded(picture(number), "JPEG"))
    head = save_small_head(tmp_path / "small.pt")
    for suffix, checkpoint, flags in (("wav", "untrained", ["--window", "0.2"]), ("jpg", head, [])):
        given = ["--input", f"{tmp_path}/in/*.{suffix}", "--output", f"{tmp_path}/{suffix}", "--checkpoint", checkpoint]
        assert main(["embed", *given, *flags]) == 0
    rows = read(tmp_path / "wav")
    tracks = [track for n in range(3) for track in AudioEncoder.windows(tmp_path / f"in/{n}.wav", 0.2)]
    expected = AudioEncoder.load("untrained", device="cpu").encode(tracks)
    order = np.lexsort([rows["start"].to_numpy(), rows["shard"].to_pylist()])
    assert relative(vectors(rows)[order], expected).max() < 5e-6
    pictures = read(tmp_path / "jpg")
    assert pictures["id"].to_pylist() == ["0.jpg", "1.jpg", "2.jpg"]
    again = ImageEncoder.load(head, device="cpu").encode([tmp_path / f"in/{n}.jpg" for n in range(3)])
    assert relative(vectors(pictures), again).max() < 5e-6
    assert set(zip(pictures["width"].to_pylist(), pictures["height"].to_pylist(), strict=True)) == {(60, 50)}


def test_bad_sounds_are_rejected_rows(tmp_path: Path) -> None:
    """Each with its reason and file; headers that lie cost the rows that are not there."""
    whole = sound_file("FLAC", samples=8000, rate=8000)
    mp3 = sound_file("MP3", samples=16_000, rate=8000)
    files = {
        "empty.wav": b"",
        "text.wav": b"not a sound",
        "header.wav": sound_file(samples=0),
        "cut.flac": whole[: len(whole) * 6 // 10],
        "cut.mp3": mp3[: len(mp3) // 2],
        "endless.flac": endless_flac(),
        "zero.wav": with_wav_lengths(sound_file(samples=4000, rate=8000), 0),
        "pipe.wav": with_wav_lengths(sound_file(samples=4000, rate=8000), 0xFFFFFFFF),
        "GOOD.WAV": sound_file(samples=2000, rate=8000),
    }
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    manifest, _ = embed_media(f"{tmp_path}/in/*.*", tmp_path / "out", **WINDOW)
    rejected = read(tmp_path / "out", "rejected").to_pylist()
    assert {(row["id"], row["reason"]) for row in rejected} == {
        ("empty.wav", "empty file"),
        ("text.wav", "not decodable"),
        ("header.wav", "too short"),
    }
    assert all(row["file"]["uri"].endswith(row["id"]) and row["start"] is None for row in rejected)
    ids = read(tmp_path / "out")["id"].to_pylist()
    assert {"zero.wav#t=0,0.25", "zero.wav#t=0.25,0.5", "pipe.wav#t=0.25,0.5", "GOOD.WAV", "endless.flac"} < set(ids)
    assert sum(each.startswith("cut.flac") for each in ids) in (2, 3)
    assert 3 <= sum(each.startswith("cut.mp3") for each in ids) <= 5
    assert manifest["totals"]["read"] == len(ids) + 3


def test_bad_pictures_are_rejected_rows(tmp_path: Path) -> None:
    """Those whose header is bad when they are read, others when they are decoded."""
    (tmp_path / "in").mkdir()
    good = encoded(picture(1), "JPEG")
    for name, data in {"a.jpg": good, "b.png": b"", "c.png": b"no", "d.jpg": b"broken" + good, "e.bmp": good}.items():
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in/f.jpg").write_bytes(good + b"broken")
    embed_media(f"{tmp_path}/in/*", tmp_path / "out", StubPictures(), max_image_bytes=len(good) + 100)
    rejected = {row["id"]: row["reason"] for row in read(tmp_path / "out", "rejected").to_pylist()}
    assert rejected == {
        "b.png": "empty file", "c.png": "not decodable", "d.jpg": "not decodable", "f.jpg": "not decodable"
    }  # fmt: skip
    assert read(tmp_path / "out")["id"].to_pylist() == ["a.jpg", "e.bmp"], "what is in a file decides, not its suffix"
    embed_media(f"{tmp_path}/in/*", tmp_path / "small", StubPictures(), max_image_bytes=len(good) - 1, allow_empty=True)
    assert [row["reason"] for row in read(tmp_path / "small", "rejected").to_pylist()].count("too large") == 4


def test_nights_cost_what_changed(sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed or copied file costs no model time, a removed one opens nothing, a new one is the only one that is read."""
    opened = watch_opened(monkeypatch)

    def night() -> tuple[list[str], int, int]:
        opened.clear()
        manifest, embedded = embed_media(f"{sounds}/**/*", tmp_path / "out", **WINDOW)
        names = sorted({os.path.relpath(path, sounds) for path in opened})
        return names, len(embedded), manifest["totals"]["vectors"]

    assert night()[1:] == (30, 30)
    os.rename(sounds / "0.wav", sounds / "renamed.wav")
    shutil.copy(sounds / "1.FLAC", sounds / "more/copy.flac")
    assert night() == (["more/copy.flac", "renamed.wav"], 0, 34)
    (sounds / "2.ogg").unlink()
    assert night() == ([], 0, 30)
    (sounds / "new.wav").write_bytes(sound_file(samples=4000, rate=8000))
    assert night() == (["new.wav"], 2, 32)
    (sounds / "new.wav").write_bytes(sound_file(samples=1000, rate=8000))
    assert night() == (["new.wav"], 1, 31)
    changes = find_changes(str(tmp_path / "out"))
    assert (changes.added, changes.changed, changes.removed) == (1, 0, 2)


def test_a_file_that_changes_between_reading_and_embedding_ends_the_run(sounds: Path, tmp_path: Path) -> None:
    """Its content would not be the one that was hashed."""
    path = sounds / "0.wav"

    class Changing(FileIO):
        def read_range(self, file, offset, size):  # type: ignore[no-untyped-def]
            if file.path == str(path):
                path.write_bytes(sound_file(samples=70, rate=8000))
            return super().read_range(file, offset, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileIO, "from_options", classmethod(lambda cls, *args: Changing()))
        with pytest.raises(RuntimeError, match=r"0\.wav changed from .* bytes to .*: run again when it is complete"):
            embed_media(f"{sounds}/*.wav", tmp_path / "out")
    assert not (tmp_path / "out/current.json").exists()


def test_plan_reads_headers_alone(sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It counts windows and hours; --read also finds known contents."""
    given = ["--input", f"{sounds}/**/*", "--head", "audio", "--checkpoint", "untrained", "--window", "0.25"]
    given += ["--output", f"{tmp_path}/out"]
    (sounds / "twice.wav").write_bytes((sounds / "0.wav").read_bytes())
    assert main(["plan", *given]) == 0
    printed = capsys.readouterr().out
    assert "rows      34 new, 0 with a file that is new or changed" in printed
    assert "vectors   at most 34 rows to embed: --read finds those whose sounds are known" in printed
    assert "model     34 sounds, " in printed
    assert main(["plan", *given, "--read"]) == 0
    printed = capsys.readouterr().out
    assert "vectors   0 rows reused, 34 rows to embed" in printed
    assert "model     30 sounds, " in printed
    assert main(["plan", "--input", "a.txt", "--output", "out", "--read"]) == 2


def test_inputs_without_a_head(tmp_path: Path) -> None:
    """Errors name what the files are for, and files that nothing reads."""
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "b.heic").write_bytes(b"x")
    (tmp_path / "c.psd").write_bytes(b"x")
    for source, head, message in (
        (
            "*",
            None,
            r"\* matches 1 sound and 2 other files: give --head audio, which leaves",
        ),
        ("b.heic", "image", r"b\.heic: HEIC is not read: convert it to JPEG, as with heif-convert"),
        ("c.psd", "image", r"c\.psd: \.psd is not an image by its suffix \(\.jpg, "),
        (
            "*.heic",
            "image",
            r"no file of --input is an image by its suffix \(.*\); the first of 1 file is .*b\.heic: correct --input",
        ),
    ):
        with pytest.raises(InputError, match=message):
            embed_media(tmp_path / source, tmp_path / "out", StubPictures() if head else _NoHead())


def test_the_summary_says_of_what_the_content_is(tmp_path: Path) -> None:
    """Of the run if it has read all, else of the snapshot; one of a thing is not several."""
    for number, expected in enumerate(("1 recording, 1 s", "2 recordings, 2 s in the snapshot")):
        soundfile.write(tmp_path / f"{number}.wav", np.full(8000, 0.1 * number), 8000)
        manifest, _ = embed_media(f"{tmp_path}/*.wav", tmp_path / "out")
        lines = run_summary(str(tmp_path / "out"), manifest).splitlines()
        assert f"content   {expected}" in lines
        assert any(line.startswith("model     1 sound, ") for line in lines)


class _NoHead(StubPictures):
    name = "text"


def test_memory_is_bounded_by_blocks_of_long_recordings(tmp_path: Path) -> None:
    """Each window of ten minutes is the one that is cut by hand."""
    (tmp_path / "in").mkdir()
    samples = (np.random.default_rng(0).random(8000 * 600) - 0.5).astype(np.float32)
    soundfile.write(tmp_path / "in/long.wav", samples, 8000)
    soundfile.write(tmp_path / "in/long.mp3", samples, 8000)
    embed_media(f"{tmp_path}/in/*", tmp_path / "out")
    rows = read(tmp_path / "out", columns=["id", "start", "end", "embedding", "shard"])
    assert len(rows) == 120
    for name in ("long.wav", "long.mp3"):
        found = rows.filter(pa.compute.equal(rows["shard"], name)).sort_by("start")
        for row, track in zip(found.to_pylist(), AudioEncoder.windows(tmp_path / "in" / name), strict=True):
            np.testing.assert_array_equal(row["embedding"], vector_of(track))
