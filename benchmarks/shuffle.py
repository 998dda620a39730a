"""Bytes and CPU time per row of each step of a remote run, for corpora of 1 million, 100 million and 1 billion rows.

    python benchmarks/shuffle.py [--rows 2500000] [--rounds 3]

The texts are WordNet's glosses, numbered if they repeat; the model takes no time. A large corpus is simulated on a
sample: rows are split into as many buckets as that corpus has, from SPLIT_BYTES of rows at a time, and a bucket of its size
is assembled from as many pieces as it would get. It prints STEPS of scaling.py: bytes and microseconds of CPU time per row,
one figure for each corpus, medians of the rounds.

read          jsonl with an id to row batches; bytes read
hash          add_content_hash
split         SplitIntoBuckets; bytes shuffled
overhead      of those bytes, the ones that the same rows in pieces of 4 MB save
new           ReuseVectors on a bucket of which nothing is known: decode, slices, sort
spread        new rows encoded and decoded once more, for SpreadBatches; bytes shuffled
tokenize      ClipTokenizer, warm
embed         embed_batch without the model
write         WriteFiles, float32 vectors of 1,024 numbers; bytes written
write_bf16    the same for a bfloat16 model, whose float32 numbers end with zeros
refer         ReferToRowGroups, for the footers of the earlier files
known         ReuseVectors on a bucket of which everything is known: decode, sort, row-group lookups; bytes read
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))
import instant
from corpora import write_shards

from audioclip_beam.model import ClipTokenizer
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.pipeline.content import add_content_hash, hash_words
from audioclip_beam.pipeline.dedup.buckets import BUCKETED, SplitIntoBuckets, bucket_bits, read_rows
from audioclip_beam.pipeline.dedup.reuse import ReferToRowGroups, ReuseVectors
from audioclip_beam.pipeline.dedup.spill import PieceCodec, combine_batches
from audioclip_beam.pipeline.embedded_batch import EmbeddedBatch, RecordBatchCoder
from audioclip_beam.pipeline.inference.embed_batch import embed_batch
from audioclip_beam.pipeline.inference.shared_encoder import ModelDescription
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.schemas import CONTENT_HASH, part_schema
from audioclip_beam.pipeline.writers.write_files import WriteFiles
from tests.support.shards import ROW, read_shard

CORPORA = (1_000_000, 100_000_000, 1_000_000_000)
BATCH_TEXTS, FILE_ROWS = 16_384, 32_768  # the defaults of --batch_size and --max_file_rows
VOCABULARY = Path(__file__).parents[1] / ".cache" / "bpe_simple_vocab_16e6.txt.gz"
CODEC = PieceCodec(pa.schema([*ROW, CONTENT_HASH]))
KEPT = pa.schema([])


@dataclass(frozen=True)
class Geometry:
    """Buckets of a corpus: the bits that name one, its rows, and the pieces that it is made of."""

    bits: int
    bucket_rows: int
    pieces: int


def geometry(rows: int, split_rows: int) -> Geometry:
    """Return the geometry of a corpus of `rows` rows that are split into buckets `split_rows` rows at a time."""
    bits = bucket_bits(rows, local=False)
    return Geometry(bits, rows >> bits, -(-rows // split_rows))


class Costs:
    """Bytes and seconds of CPU time by step."""

    def __init__(self) -> None:
        self.bytes: defaultdict[str, float] = defaultdict(float)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add the CPU time of what runs inside, of all threads."""
        began = time.process_time()
        yield
        self.seconds[step] += time.process_time() - began

    def per_row(self, rows: int) -> dict[str, tuple[float, float]]:
        """Return (bytes, microseconds) per row of each step."""
        return {step: (self.bytes[step] / rows, seconds * 1e6 / rows) for step, seconds in self.seconds.items()}


class BfloatEncoder(instant.InstantEncoder):
    """An encoder whose numbers have the precision of bfloat16."""

    def encode_rows(self, texts: list[str]) -> instant.Encoding:
        """Return vectors [n, 1024] of n texts."""
        encoding = super().encode_rows(texts)
        vectors = (encoding.vectors.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return replace(encoding, vectors=vectors)


def read_sample(folder: Path, costs: Costs) -> list[pa.RecordBatch]:
    """Return the hashed row batches of the shards in `folder`."""
    shards = find_shards([f"{folder}/*.jsonl"], None, None)
    costs.bytes["read"] = sum(shard.bytes for shard in shards)
    fields = Fields(id="id")
    with costs.measure("read"):
        batches = [rows for shard in shards for rows, _ in read_shard(shard, fields, KEPT) if rows.num_rows]
    with costs.measure("hash"):
        return [add_content_hash(batch, "text") for batch in batches]


def tokenize(batches: list[pa.RecordBatch], tokenizer: ClipTokenizer) -> dict[str, tuple[float, float]]:
    """Return the cost of tokenizing the first texts of `batches`, after a warm-up with the same texts."""
    texts = [text for batch in batches[:4] for text in batch.column("text").to_pylist()]
    costs = Costs()
    for text in texts:
        tokenizer.encode(text)
    with costs.measure("tokenize"):
        for text in texts:
            tokenizer.encode(text)
    return costs.per_row(len(texts))


def split(batches: list[pa.RecordBatch], bits: int) -> list[BUCKETED]:
    """Return the pieces of the first split, which has SPLIT_BYTES of rows or all of them."""
    do = SplitIntoBuckets(CODEC, "content_hash", bits, None)
    do.start_bundle()
    for batch in batches:
        if pieces := list(do.process(batch)):
            return pieces
    return [windowed.value for windowed in do.finish_bundle()]


def measure_split(batches: list[pa.RecordBatch], bits: int) -> tuple[Costs, int]:
    """Return the costs of one split, and its rows."""
    costs = Costs()
    with costs.measure("split"):
        pieces = split(batches, bits)
    costs.bytes["split"] = sum(len(piece) for _, piece in pieces)
    ordered = list(read_rows((piece for _, piece in pieces), CODEC))
    costs.bytes["overhead"] = costs.bytes["split"] - sum(len(piece) for _, piece in split(ordered, 0))
    costs.seconds["overhead"] = 0.0
    return costs, sum(batch.num_rows for batch in ordered)


def assemble_bucket(batches: list[pa.RecordBatch], shape: Geometry) -> tuple[list[bytes], int]:
    """Return the pieces of a bucket made of rows of the whole sample, and its rows."""
    sample = combine_batches(batches)
    rows = min(shape.bucket_rows, sample.num_rows)
    chosen = sample.take(np.sort(np.random.default_rng(0).permutation(sample.num_rows)[:rows]))
    words: NDArray[np.uint32] = hash_words(chosen.column("content_hash")) >> np.array([shape.bits, 0, 0, 0], np.uint32)
    hashes = pa.py_buffer(words.astype(">u4").tobytes())  # all in bucket 0
    column = pa.FixedSizeBinaryArray.from_buffers(CONTENT_HASH.type, rows, [None, hashes])
    bucket = pa.RecordBatch.from_arrays([*chosen.columns[:-1], column], schema=chosen.schema)
    ends = np.linspace(0, rows, min(shape.pieces, rows) + 1).astype(int).tolist()
    parts = [bucket.slice(start, end - start) for start, end in pairwise(ends)]
    return [piece for part in parts for _, piece in split([part], 0)], rows


def described() -> ModelDescription:
    """Return the description of the model without cost."""
    head = instant.InstantHead(instant.DIM)
    return ModelDescription(head, TextSettings("untrained"), head.info().storing("float32"), ())


def embed(costs: Costs, batches: list[pa.RecordBatch]) -> Iterator[EmbeddedBatch]:
    """Yield `batches` with vectors."""
    model = described()
    encoder = instant.InstantEncoder(model.info)
    for batch in batches:
        with costs.measure("embed"):
            embedded = embed_batch(batch, model, encoder)
        yield embedded


def in_bfloat16(batches: list[pa.RecordBatch]) -> Iterator[EmbeddedBatch]:
    """Yield `batches` with vectors whose numbers have the precision of bfloat16."""
    model = described()
    encoder = BfloatEncoder(model.info)
    yield from (embed_batch(batch, model, encoder) for batch in batches)


def write(costs: Costs, step: str, embedded: Iterator[EmbeddedBatch], folder: str, dtype: str = "float32") -> None:
    """Write embedded batches, computed in `dtype`, into part files in `folder`."""
    schema = part_schema(TEXT, instant.DIM, KEPT).with_metadata({"fingerprint": "f", "dtype": dtype})
    files = WriteFiles(folder, TEXT, schema, FILE_ROWS, bits=1)
    files.setup()
    files.start_bundle()
    for batch in embedded:
        with costs.measure(step):
            list(files.process(batch))
    with costs.measure(step):
        list(files.finish_bundle())
    costs.bytes[step] = sum(file.stat().st_size for file in Path(folder).iterdir())


def measure_bucket(pieces: list[bytes], bits: int) -> Costs:
    """Return the costs of a bucket, first with nothing known, then with everything."""
    costs, coder = Costs(), RecordBatchCoder()
    reuse = ReuseVectors(CODEC, TEXT, BATCH_TEXTS)
    with costs.measure("new"):
        new = [output.value for output in reuse.process((0, pieces))]
    with costs.measure("spread"):
        encoded = [coder.encode(batch) for batch in new]
        new = [coder.decode(data) for data in encoded]
    costs.bytes["spread"] = sum(map(len, encoded))
    with tempfile.TemporaryDirectory() as folder:
        write(costs, "write_bf16", in_bfloat16(new), folder, "bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        write(costs, "write", embed(costs, new), folder)
        refer = ReferToRowGroups("f", bits, "", FileIO())
        with costs.measure("refer"):
            references = [
                piece for file in os.listdir(folder) for _, piece in refer.process(os.path.join(folder, file))
            ]
        reused = 0
        with costs.measure("known"):
            for output in reuse.process((0, [*pieces, *references])):
                reused += output.rows.num_rows if isinstance(output, EmbeddedBatch) else 0
            reuse.teardown()
        costs.bytes["known"] = costs.bytes["write"]
    if reused != sum(batch.num_rows for batch in new):
        raise SystemExit("a known row was not found among the earlier vectors")
    return costs


def measure_all(folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return (bytes, microseconds) per row of each step, for each of CORPORA; `folder` has the sample's shards."""
    instant.noise()
    tokenizer = ClipTokenizer(VOCABULARY)
    figures: defaultdict[str, list[list[tuple[float, float]]]] = defaultdict(lambda: [[] for _ in CORPORA])
    for _ in range(rounds):
        read = Costs()
        batches = read_sample(folder, read)
        sample_rows = sum(batch.num_rows for batch in batches)
        by_texts = read.per_row(sample_rows) | tokenize(batches, tokenizer)
        for number, corpus in enumerate(CORPORA):
            kept = min(corpus, sample_rows)
            some = pa.Table.from_batches(batches).slice(0, kept).to_batches()
            shuffled, split_rows = measure_split(some, bucket_bits(corpus, local=False))
            shape = geometry(corpus, split_rows)
            pieces, rows = assemble_bucket(batches, shape)
            costs = by_texts | shuffled.per_row(split_rows)
            costs |= measure_bucket(pieces, shape.bits).per_row(rows)
            for step, cost in costs.items():
                figures[step][number].append(cost)
            print(f"# {corpus:,} rows: {shape}, {split_rows:,} rows per split", file=sys.stderr, flush=True)
    return {step: [_median(costs) for costs in by_corpus] for step, by_corpus in figures.items()}


def _median(costs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(bytes_ for bytes_, _ in costs), statistics.median(cpu for _, cpu in costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_500_000, help="rows of the sample: more than one split has")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), arguments.rows)
        for step, costs in measure_all(Path(folder), arguments.rounds).items():
            size, cpu = (", ".join(f"{number:.2f}" for number in numbers) for numbers in zip(*costs, strict=True))
            print(f'    "{step}": Step(bytes=({size}), cpu=({cpu})),')


if __name__ == "__main__":
    main()
