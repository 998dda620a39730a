"""Heads of sounds and pictures whose encoders are arithmetic, and runs with them over real files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioclip_beam.model.audio.head import AudioHead
from audioclip_beam.model.audio.recordings import Track
from audioclip_beam.model.fingerprint import SCHEME
from audioclip_beam.model.head import ContentError, EncoderSettings, Encoding, ModelInfo, Work
from audioclip_beam.model.heads import find_head
from audioclip_beam.model.image.head import ImageHead
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.inference import find_model
from audioclip_beam.pipeline.io import file_io
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.versions import ListedFile
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.report import sample_rows
from audioclip_beam.pipeline.report.previews import Preview
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import read_manifest
from audioclip_beam.pipeline.snapshots.manifest import Manifest

DIM = 8
CALLS: list[list[Any]] = []  # the contents of each call of an encoder of this process, without the canary


class StubMediaEncoder:
    """An encoder whose vectors are digests of the bytes or samples; a file with "broken" in it has an error."""

    device_type = ""

    def __init__(self, info: ModelInfo) -> None:
        self.info, self.dim = info, info.dim
        self.on_progress: Callable[[int], object] = lambda items: None
        self.run_call: Callable[[Callable[[], Any]], Any] | None = None
        self.decoding: Callable[[object], AbstractContextManager[object]] = nullcontext

    def encode_rows(self, contents: Sequence[Any]) -> Encoding:
        vectors = np.empty((len(contents), self.dim), np.float32)
        for place, content in enumerate(contents):
            vectors[place] = np.resize(vector_of(content), self.dim)
        errors = {
            place: ContentError("not decodable", "it is broken")
            for place, content in enumerate(contents)
            if isinstance(content, bytes) and b"broken" in content
        }
        vectors[list(errors)] = np.nan
        if list(contents) not in _canaries():
            CALLS.append(list(contents))
        self.on_progress(len(contents) - len(errors))
        size = np.full(len(contents), 4, np.int32)
        columns = {"width": size, "height": size}
        return Encoding(vectors, columns, errors, Work(len(contents), len(contents), 1, model_seconds=0.001))


@functools.cache
def _canaries() -> list[list[bytes]]:
    return [list(head.canary().values()) for head in (AudioHead(), ImageHead())]


def vector_of(content: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the stub's vector of bytes, or of the samples of a Track."""
    data = np.ascontiguousarray(content.samples).tobytes() if isinstance(content, Track) else bytes(content)
    return np.frombuffer(hashlib.blake2b(data, digest_size=DIM).digest(), np.uint8).astype(np.float32) + 1


def _info(name: str, settings: EncoderSettings, dim: int) -> ModelInfo:
    parts = {"scheme": SCHEME, "head": name, "weights": "stub", **settings.fingerprint_parts()}
    return ModelInfo(name, "stub", "0" * 64, True, dim, parts)


class _Stub:
    """What both heads have instead of a model."""

    name: str

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim

    def settings(self, options: Any) -> Any:
        return replace(super().settings(options), device="cpu")  # type: ignore[misc]

    def versions(self) -> dict[str, str]:
        return {}

    def read(self, copies: Sequence[str]) -> Any:
        return None

    def describe(self, settings: Any, files: Any) -> ModelInfo:
        return _info(self.name, settings, self.dim)

    def load(self, settings: Any, files: Any, device: str) -> Any:
        return StubMediaEncoder(_info(self.name, settings, self.dim))


class StubSounds(_Stub, AudioHead):
    """The audio head over a StubMediaEncoder."""


class StubPictures(_Stub, ImageHead):
    """The image head over a StubMediaEncoder."""


@pytest.fixture
def stub_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `validate` embed the canary with the stubs, not with random weights of the real heads."""
    heads = {head.name: head for head in (StubSounds(), StubPictures())}
    monkeypatch.setattr(find_model, "find_head", lambda name: heads.get(name) or find_head(name))


def show_no_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no page read pictures again: a test counts what a run reads besides."""
    monkeypatch.setattr(sample_rows, "make_previews", lambda head, rows, fields: [Preview()] * len(rows))


def watch_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the path of each picture and sound, each time that it is opened, but for the page."""
    show_no_previews(monkeypatch)
    paths = list[str]()
    read_range, open_version = file_io.read_range, FileIO.open_version

    def note(file: ListedFile) -> None:
        if not file.path.endswith((".jsonl", ".parquet")):
            paths.append(file.path)

    def watched_range(file: ListedFile, *rest: Any) -> bytes:
        note(file)
        return read_range(file, *rest)

    def watched_open(self: FileIO, file: ListedFile) -> Any:
        note(file)
        return open_version(self, file)

    monkeypatch.setattr(file_io, "read_range", watched_range)
    monkeypatch.setattr(FileIO, "open_version", watched_open)
    return paths


def embed_media(source: Path | str, output: Path, head: Any = None, **options: object) -> tuple[Manifest, list[Any]]:
    """Run over the files of a glob with a stub; return the manifest and the contents that were embedded."""
    head = head or StubSounds()
    CALLS.clear()
    chosen = EmbedOptions(input=[str(source)], output=str(output), head=head.name, checkpoint="untrained", **options)
    with closing(EmbedCorpus(chosen, head)) as corpus:
        run(corpus, chosen)
    manifest = read_manifest(str(output), str(corpus.snapshot))
    assert manifest is not None
    return manifest, [content for call in CALLS for content in call]
