"""Snapshots of all three heads by stubs, for tests of `browse`, and models for queries over them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from audioclip_beam.pipeline.browse.app import make_app
from audioclip_beam.pipeline.browse.library import Library
from audioclip_beam.pipeline.browse.snapshot_rows import SnapshotRows
from audioclip_beam.pipeline.inference.find_model import SnapshotModel
from tests.support.corpus import embed, write_jsonl
from tests.support.stub import StubHead
from tests.support.stub_media import StubPictures, StubSounds, embed_media

TOKEN = "a-token"
TEXTS = ["dog barking", "rain", "<script>document.title = 'owned'</script>", "glass breaking"]


def tone(number: int, seconds: float = 0.3, rate: int = 8000) -> NDArray[np.float64]:
    """Return the samples of a sound, another one for each number."""
    times = np.arange(round(seconds * rate)) / rate
    return np.asarray(0.3 * np.sin(2 * np.pi * 110 * (number + 2) * times))


def sound(number: int, kind: str = "WAV", seconds: float = 0.3) -> bytes:
    """Return the bytes of a sound file."""
    file = io.BytesIO()
    soundfile.write(file, tone(number, seconds), 8000, format=kind)
    return file.getvalue()


def picture(number: int, kind: str = "PNG", size: tuple[int, int] = (60, 40)) -> bytes:
    """Return the bytes of a picture of one color."""
    file = io.BytesIO()
    Image.new("RGB", size, (40 * number % 256, 90, 200 - 20 * number)).save(file, kind)
    return file.getvalue()


def make_media(folder: Path) -> None:
    """Write sounds, one of them of three windows, and pictures."""
    for name in ("sounds", "pictures"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(("bark.wav", "rain.flac", "<b>bold & 'quoted'.ogg")):
        path = folder / "sounds" / name
        path.write_bytes(sound(number, path.suffix[1:].upper()))
    soundfile.write(folder / "sounds/long.wav", tone(5, 2.5), 8000)
    for number in range(4):
        (folder / "pictures" / f"{number}.png").write_bytes(picture(number))


def make_snapshots(folder: Path) -> list[Path]:
    """Make media, and snapshots of sounds, pictures and texts; return the directories of the snapshots."""
    make_media(folder)
    outputs = [folder / "out" / name for name in ("sounds", "pictures", "texts")]
    embed_media(folder / "sounds/*", outputs[0], window="1")
    embed_media(folder / "pictures/*", outputs[1], StubPictures())
    rows = [{"id": f"t{n}", "text": text, "lang": "en", "tags": ["a", n]} for n, text in enumerate(TEXTS)]
    write_jsonl(folder / "texts.jsonl", rows)
    embed(folder / "texts.jsonl", outputs[2], id_field="id", keep_fields=["lang", "tags"])
    return outputs


def use_stub_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let queries of `browse` be embedded by stubs."""
    heads = {"text": StubHead(), "audio": StubSounds(), "image": StubPictures()}

    def find(manifest: Any, head_name: str, files: Mapping[str, str | None]) -> SnapshotModel:
        head = heads[head_name]
        options: dict[str, Any] = {flag.name: flag.default for flag in head.flags}
        options |= {"window": "1", "hop": None} if head_name == "audio" else {}
        options |= {"checkpoint": "untrained", "device": "cpu", "dtype": "float32", "normalize": False}
        return SnapshotModel(head, head.settings(options))

    monkeypatch.setattr("audioclip_beam.pipeline.browse.library.find_query_model", find)


def library_of(outputs: Iterable[Path], **files: str | None) -> Library:
    """Return the library of the current snapshots of these directories."""
    return Library([SnapshotRows.read(str(output)) for output in outputs], files)


def client_of(outputs: Iterable[Path], **files: str | None) -> TestClient:
    """Return a client of the page of these snapshots, which gives the token."""
    app = make_app(library_of(outputs, **files), TOKEN, {"localhost"})
    client = TestClient(app, base_url="http://localhost")
    client.params = {"token": TOKEN}  # type: ignore[assignment]
    return client
