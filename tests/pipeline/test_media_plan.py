"""`plan` over sounds and pictures: by listings and headers alone it says what a run would read, embed and copy."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from PIL import Image

from audioclip_beam.model.media import MediaHead
from audioclip_beam.pipeline.cli.plan_command import plan_summary
from audioclip_beam.pipeline.flags import defaults
from audioclip_beam.pipeline.io.byte_ranges import BLOCK_BYTES, BlockFile
from audioclip_beam.pipeline.layout import CONTENT_SPILL
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.prepare.job import prepare_job
from audioclip_beam.pipeline.run.plan_pipeline import PlanCounts, count_changes
from tests.support import object_stores
from tests.support.object_stores import Store
from tests.support.picture_files import encoded, picture
from tests.support.shards import COMPRESS
from tests.support.sound_files import endless_flac, sound_file, with_wav_lengths
from tests.support.stub_media import StubPictures, StubSounds, embed_media
from tests.support.tars import tar_of

store = object_stores.store

RATE = 48000
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 601, 3), np.uint8))
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 95, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "webp": ("WEBP", {"quality": 95}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "webp with exif": ("WEBP", {"quality": 95, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    "avif": ("AVIF", {"quality": 95, "speed": 10}),
}


class Counted(NamedTuple):
    """A file, and the ranges of it that were read."""

    file: BlockFile
    ranges: list[tuple[int, int]]


def counted(data: bytes) -> Counted:
    ranges = list[tuple[int, int]]()

    def read_range(offset: int, size: int) -> bytes:
        ranges.append((offset, size))
        return data[offset : offset + size]

    return Counted(BlockFile(len(data), read_range), ranges)


def glance(head: MediaHead, data: bytes) -> tuple[Any, Counted]:
    settings = head.settings({**defaults(), "checkpoint": "untrained"})
    found = counted(data)
    return head.glance(found.file, len(data), settings), found  # type: ignore[arg-type]


def examine(head: MediaHead, data: bytes) -> Any:
    return head.examine(io.BytesIO(data), len(data), head.settings({**defaults(), "checkpoint": "untrained"}))


@pytest.mark.parametrize("name", PICTURES)
def test_headers_of_pictures(name: str) -> None:
    """The pixels are found in one or two blocks of the file, whatever its size."""
    kind, options = PICTURES[name]
    data = encoded(NOISE, kind, **options)
    assert len(data) > 4 * BLOCK_BYTES
    pixels, found = glance(StubPictures(), data)
    assert pixels == 601 * 500 == examine(StubPictures(), data)
    assert sum(size for _, size in found.ranges) <= 2 * BLOCK_BYTES


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None), ("CAF", None)],
)
def test_headers_of_sounds(kind: str, subtype: str | None) -> None:
    """The length is found in at most three blocks."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).random((40 * RATE, 1)) - 0.5
    with soundfile.SoundFile(out, "w", RATE, 1, format=kind, subtype=subtype) as file:
        for start in range(0, len(noise), 4096):  # libsndfile ends the process if it gets more Vorbis at a time
            file.write(noise[start : start + 4096])
    data = out.getvalue()
    heard, found = glance(StubSounds(), data)
    assert heard == examine(StubSounds(), data)
    assert sum(size for _, size in found.ranges) <= 3 * BLOCK_BYTES


@pytest.mark.parametrize(
    "data", [endless_flac(), with_wav_lengths(sound_file(), 0), with_wav_lengths(sound_file(), 0xFFFFFFFF)]
)
def test_headers_that_lie(data: bytes) -> None:
    assert glance(StubSounds(), data)[0] == examine(StubSounds(), data)


def plan(source: str, output: Path | str, head: MediaHead, spill: Path, **given: object) -> tuple[PlanCounts, str]:
    options = EmbedOptions(input=[source], output=str(output), head=head.name, checkpoint="untrained", **given)
    job = prepare_job(options, head)
    spill.mkdir(exist_ok=True)
    counts = count_changes(job, options, str(spill), headers_only=True)
    assert not list(spill.rglob(f"{CONTENT_SPILL}*")), "plan copies nothing"
    return counts, plan_summary(job, counts, headers_only=True)


def test_only_headers_are_read_from_an_object_store(store: Store, tmp_path: Path) -> None:
    """Of files, and of those that lists name, of which known ones are not asked for at all."""
    for n in range(3):
        store.put(f"in/{n}.wav", sound_file(samples=400_000 - n, rate=8000))
    counts, summary = plan(f"{store.url}/in/*.wav", tmp_path / "out", StubSounds(), tmp_path / "spill")
    assert "content   3 recordings, 2.5 minutes in what is read" in summary
    assert "vectors   at most 15 rows to embed: --read finds those whose sounds are known" in summary
    assert counts.extent == {"files": 3, "milliseconds": 150_000}
    (tmp_path / "a.csv").write_text("path\n0.wav\n1.wav\n")
    given = {"media_field": ["path"], "media_root": f"{store.url}/in", "window": "whole"}
    embed_media(tmp_path / "a.csv", tmp_path / "listed", **given)
    (tmp_path / "a.csv").write_text("path\n0.wav\n1.wav\n2.wav\n")
    before = len(store.seen)
    counts, summary = plan(str(tmp_path / "a.csv"), tmp_path / "listed", StubSounds(), tmp_path / "spill", **given)
    assert "vectors   2 rows reused, at most 1 row to embed" in summary
    assert not [each for each in store.seen[before:] if re.search(r"[01]\.wav", each.path)]
    reads = [each.headers["Range"] for each in store.seen if each.headers.get("Range") and ".wav" in each.path]
    sizes = [int(end) - int(start) + 1 for start, end in (re.findall("[0-9]+", each) for each in reads)]
    assert sum(sizes) < 3 * BLOCK_BYTES + 2 * 2 * 800_100 + BLOCK_BYTES, "headers, the run's two readings, and a header"


def test_space_for_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of compressed tars are copied by a run; plan counts them, and says if there is no space."""
    pictures = {f"{n}.png": encoded(picture(n)) for n in range(5)}
    (tmp_path / "a.tar.gz").write_bytes(COMPRESS[".gz"](tar_of({**pictures, "bad.png": b"no picture"})))
    (tmp_path / "b.tar").write_bytes(tar_of(pictures))
    copied = sum(map(len, pictures.values()))
    counts, summary = plan(f"{tmp_path}/*", tmp_path / "out/deep", StubPictures(), tmp_path / "spill")
    assert (counts.copied, counts.extent) == (copied, {"files": 10, "pixels": 10 * 60 * 50})
    assert (
        f"copies    {copied:,} bytes of images that cannot be read by themselves, in {tmp_path}/out/deep, which"
        in summary
    )
    assert "limits" not in summary
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=copied - 1))
    summary = plan(f"{tmp_path}/*", tmp_path / "out/deep", StubPictures(), tmp_path / "spill")[1]
    assert f"limits    embed would publish nothing: {tmp_path}/out/deep has too little space for the copies" in summary
