"""Jobs for engines: a corpus in all formats, a model that notes its worker, and steps whose workers die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audioclip_beam.model.head import Encoding
from audioclip_beam.model.heads import find_head
from audioclip_beam.model.text.head import TextHead, TextSettings
from audioclip_beam.pipeline.layout import is_copy
from audioclip_beam.pipeline.publish.publish_snapshot import PublishSnapshot
from audioclip_beam.pipeline.publish.run_totals import RunReport
from audioclip_beam.pipeline.readers.settle_types import SettledTypes
from audioclip_beam.pipeline.snapshots.commit import read_manifest
from audioclip_beam.pipeline.snapshots.listing import CarriedFile
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from audioclip_beam.pipeline.writers.kept_files import KeepRows, KeptRows
from tests.support.corpus import read, vectors
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import relative
from tests.support.shards import COMPRESS, encode_rows
from tests.support.sound_files import sound_file
from tests.support.stub import StubEncoder, StubHead
from tests.support.stub_media import StubMediaEncoder, StubSounds, embed_media

_TEXT_SHARDS = ("a.txt", "b.jsonl", "c.csv", "d.tsv", "e.txt.gz", "f.jsonl.zst", "g.csv.bz2", "h.tsv.xz")


def write_corpus(folder: Path, rows: int) -> str:
    """Write a corpus of about `rows` rows in all formats, with rows of every kind that is rejected; return its glob."""
    folder.mkdir(parents=True)
    share = rows // (len(_TEXT_SHARDS) + 1)
    for number, name in enumerate(_TEXT_SHARDS):
        numbers = range(number * share, (number + 1) * share)
        texts = [f"text {n % (rows * 9 // 10)} of a corpus" for n in numbers]
        texts[3], texts[5], texts[7] = "", f"poison {number}", f"not a number {number}"
        form, _, compression = name.partition(".")[2].partition(".")
        records = [{"id": f"r{n}", "text": text} for n, text in zip(numbers, texts, strict=True)]
        data = encode_rows(form, records)
        if form == "jsonl":
            data += b'{"id": "x", "text": null}\n{"id": "y"}\n{"text": 7}\n{"text": "not closed\n'
        (folder / name).write_bytes(COMPRESS["." + compression if compression else ""](data))
    last = [None if n % 100 == 1 else f"text {n} of a table" for n in range(share)]
    pq.write_table(pa.table({"text": last}), folder / "i.parquet", row_group_size=100)
    return str(folder / "*")


def write_media(folder: Path, count: int) -> Path:
    """Write sounds of a quarter to two seconds, pictures, and a file of each that cannot be decoded; return the folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        sound = sound_file("FLAC" if number % 2 else "WAV", samples=2000 * (1 + number % 8), rate=8000)
        (folder / f"{number}.{'flac' if number % 2 else 'wav'}").write_bytes(sound)
        (folder / f"{number}.jpg").write_bytes(encoded(picture(number), "JPEG"))
    (folder / "bad.wav").write_bytes(b"not a sound")
    (folder / "bad.jpg").write_bytes(b"not a picture")
    return folder


def assert_real_heads(folder: Path, options: Mapping[str, Any]) -> None:
    """Embed sounds and pictures by the real encoders, with random weights, here and at an engine, and compare the rows."""
    media = write_media(folder / "media", 4)
    for name, pattern in (("audio", "*.[wf]*"), ("image", "*.jpg")):
        for output, chosen in (("remote", options), ("local", {})):
            embed_media(media / pattern, folder / name / output, find_head(name), device="cpu", **chosen)
        remote, local = (read(folder / name / output) for output in ("remote", "local"))
        assert remote.drop(["embedding"]).equals(local.drop(["embedding"]))
        assert remote.num_rows == 4
        assert np.abs(relative(vectors(remote), vectors(local))).max() < 2e-5
        assert read(folder / name / "remote", "rejected").equals(read(folder / name / "local", "rejected"))


def results(output: Path) -> dict[str, Any]:
    """Return the rows, with vectors, and the rejected rows of the current snapshot, in order."""
    rejected = read(output, "rejected").to_pylist()
    return {
        "rows": read(output).to_pydict(),
        "rejected": sorted(rejected, key=lambda row: (row["shard"], int(row["row"]))),
    }


class WorkerEncoder(StubEncoder):
    """StubEncoder that appends each text to a file before it embeds it; the file's name contains host and process."""

    log: Path

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        host = os.readlink("/proc/self/ns/net")  # each network namespace stands for a host
        with (self.log / f"{host}-{os.getpid()}").open("a") as handle:
            handle.writelines(f"{text}\n" for text in texts)
        return super().encode_rows(texts)


class WorkerHead(StubHead):
    """StubHead over a WorkerEncoder, which writes below `log`."""

    def __init__(self, log: Path, delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.log = log
        log.mkdir(exist_ok=True)

    def encoder(self) -> WorkerEncoder:
        encoder = WorkerEncoder(self.info(), self.delay)
        encoder.log = self.log
        return encoder

    def hosts(self) -> int:
        """Return on how many hosts the model has worked."""
        return len({file.name.partition("-")[0] for file in self.log.iterdir()})

    def texts(self) -> list[str]:
        """Return all texts that reached the model so far."""
        return [text for file in self.log.iterdir() for text in file.read_text().splitlines()]


class WorkerSounds(StubSounds):
    """StubSounds that takes `delay` seconds for each sound, and notes it in a file below `log` for each process."""

    def __init__(self, log: Path, delay: float) -> None:
        super().__init__()
        self.log, self.delay = log, delay
        log.mkdir(exist_ok=True)

    def load(self, settings: Any, files: Any, device: str) -> StubMediaEncoder:
        encoder = _SlowSounds(self.describe(settings, files))
        encoder.log, encoder.delay = self.log, self.delay
        return encoder

    def embedded(self) -> int:
        """Return how many sounds reached the model so far."""
        return sum(file.stat().st_size for file in self.log.iterdir())


class _SlowSounds(StubMediaEncoder):
    log: Path
    delay: float

    def encode_rows(self, contents: Sequence[Any]) -> Encoding:
        for _ in contents:
            with (self.log / str(os.getpid())).open("a") as handle:
                handle.write(".")
            time.sleep(self.delay)
        return super().encode_rows(contents)


class ElsewhereHead(TextHead):
    """The text head with settings whose workers look for the vocabulary at a path that they do not have."""

    def settings(self, options: Mapping[str, Any]) -> TextSettings:
        return ElsewhereSettings(**vars(super().settings(options)))


@dataclass(frozen=True)
class ElsewhereSettings(TextSettings):
    """Settings that are pickled with another vocabulary."""

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "tokenizer_path": "/nowhere/vocabulary.gz"}


class PublishThenDie(PublishSnapshot):
    """PublishSnapshot whose worker dies when it has published, before the runner knows."""

    def process(self, element: tuple[None, Iterable[RunReport]]) -> Iterator[Manifest]:
        first = read_manifest(self.job.output, self.snapshot) is None
        manifests = list(super().process(element))
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from manifests


class KeepThenDie(KeepRows):
    """KeepRows whose worker dies when it has written its first copy, before the runner knows."""

    def process(self, group: list[CarriedFile], types: SettledTypes | None = None) -> Iterator[KeptRows]:
        kept = list(super().process(group, types))
        died = Path(self.directory).parents[2] / "died"  # beside the output
        if any(each.file and is_copy(each.file.name) for each in kept) and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from kept
