"""Reading and writing go on while the device computes: it waits for them here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pytest

from audioclip_beam.model.head import Encoding
from audioclip_beam.model.text.head import CANARY_TEXTS
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.readers.batch_builder import BatchBuilder
from audioclip_beam.pipeline.readers.compression import BLOCK_ROWS
from audioclip_beam.pipeline.readers.reader import RecordReader
from audioclip_beam.pipeline.readers.shard import Batches
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.writers.parquet_file import ParquetFileWriter
from tests.support.corpus import read, write_jsonl
from tests.support.stub import StubEncoder, StubHead

ROWS = 15_000
SECONDS = 60  # until a test fails


class WatchedHead(StubHead):
    """A StubHead that calls `during` with the number of each call of the device, while it computes."""

    during: Callable[[int], None]

    def encoder(self) -> StubEncoder:
        head = type(self)

        class Watched(StubEncoder):
            def encode_rows(self, texts: Sequence[str]) -> Encoding:
                if list(texts) == list(CANARY_TEXTS):
                    return StubEncoder(self.info).encode_rows(texts)
                head.during(len(self.calls) + 1)
                return super().encode_rows(texts)

        return Watched(self.info())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{n}", "text": f"text {n}"} for n in range(ROWS)])
    return tmp_path


def embed(corpus: Path, during: Callable[[int], None], **options: object) -> None:
    """Run in this process, and check that no row is lost."""
    WatchedHead.during = staticmethod(during)
    given = EmbedOptions([], input=[str(corpus / "in.jsonl")], output=str(corpus / "out"), id_field="id", **options)
    embedding = EmbedCorpus(given, WatchedHead(weights=str(corpus)))  # an encoder of its own
    run(embedding, given)
    embedding.close()
    assert sorted(read(corpus / "out")["id"].to_pylist()) == sorted(f"r{n}" for n in range(ROWS))


def test_a_batch_is_written_while_the_next_one_is_embedded(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the first batch waits for the second call of the device, and that call for the end of writing."""
    second_call, written, add = threading.Event(), threading.Event(), ParquetFileWriter.add
    seen: list[bool] = []

    def watched(self: ParquetFileWriter, batch: pa.RecordBatch) -> None:
        seen.append(second_call.wait(SECONDS))
        add(self, batch)
        written.set()

    def during(call: int) -> None:
        if call == 2:
            second_call.set()
            seen.append(written.wait(SECONDS))

    monkeypatch.setattr(ParquetFileWriter, "add", watched)
    embed(corpus, during, batch_size=4096)
    assert len(seen) > 2
    assert all(seen)


def test_rows_are_read_while_others_are_embedded(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of the device waits until a fourth block has been read; with a shuffle all are read before it."""
    more, plain, seen = threading.Event(), RecordReader.read, list[bool]()

    def watched(reader: RecordReader, handle: IO[bytes], builder: BatchBuilder) -> Batches:
        rows = 0
        for batches in plain(reader, handle, builder):
            rows += batches[0].num_rows
            # A block is emitted when the next one does not fit into it, and Beam passes it on when it gets another one:
            # without reading ahead three blocks would have been read by now.
            if rows > 3 * BLOCK_ROWS:
                more.set()
            yield batches

    def during(call: int) -> None:
        if call == 1:
            seen.append(more.wait(SECONDS))

    monkeypatch.setattr(RecordReader, "read", watched)
    embed(corpus, during, no_dedupe=True)
    assert seen == [True]
