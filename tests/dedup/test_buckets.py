"""Rows on their way to their buckets: none is lost, pieces are bounded, and the work grows with the rows alone."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.content import add_content_hash, hash_words
from audioclip_beam.pipeline.dedup import buckets
from audioclip_beam.pipeline.dedup.buckets import SplitIntoBuckets, bucket_bits, bucket_of, read_rows
from audioclip_beam.pipeline.dedup.spill import PieceCodec, combine_batches
from audioclip_beam.pipeline.schemas import CONTENT_HASH
from tests.support.shards import ROW

SCHEMA = pa.schema([*ROW, pa.field("tags", pa.list_(pa.string())), CONTENT_HASH])
CODEC = PieceCodec(SCHEMA)


def hashed(texts: list[str], shard: str = "a.txt") -> pa.RecordBatch:
    """A hashed row batch of `texts`, with a kept field."""
    columns = {
        "shard": pa.array([shard] * len(texts)).dictionary_encode(),
        "row": range(len(texts)),
        "id": [f"{shard}#{n}" for n in range(len(texts))],
        "text": texts,
        "tags": [[text[:1]] if text else None for text in texts],
    }
    return add_content_hash(pa.RecordBatch.from_pydict(columns, schema=pa.schema(list(SCHEMA)[:-1])), "text")


def split(batches: list[pa.RecordBatch], bits: int, spill: str | None = None) -> list[tuple[int, bytes]]:
    """All pieces of one bundle."""
    do = SplitIntoBuckets(CODEC, "content_hash", bits, spill)
    do.start_bundle()
    pieces = [piece for batch in batches for piece in do.process(batch)]
    return [*pieces, *(windowed.value for windowed in do.finish_bundle())]


def test_hashes_of_a_slice() -> None:
    """A slice of an Arrow array has the buffer of the whole array."""
    hashes = hashed([f"text {n}" for n in range(9)]).column("content_hash")
    np.testing.assert_array_equal(hash_words(hashes.slice(3, 4)), hash_words(hashes)[3:7])


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.text(max_size=20), min_size=1, max_size=20), min_size=1, max_size=6), st.integers(1, 8))
def test_every_row_is_in_one_piece_of_its_bucket(texts: list[list[str]], bits: int) -> None:
    """What goes in comes out, row by row, whatever the cuts."""
    batches = [
        hashed([text.encode(errors="replace").decode() for text in some], f"{n}") for n, some in enumerate(texts)
    ]
    found: list[dict[str, object]] = []
    for bucket, piece in split(batches, bits):
        for rows in read_rows([piece], CODEC):
            assert rows.schema.equals(SCHEMA)
            assert (bucket_of(rows.column("content_hash"), bits) == bucket).all()
            found += rows.to_pylist()
    given_rows = [row for batch in batches for row in batch.to_pylist()]
    assert sorted(map(str, found)) == sorted(map(str, given_rows))


def test_spilled_rows_are_read_by_reference(tmp_path: Path) -> None:
    """On one machine only references are shuffled, and they are short."""
    batch = hashed([f"text {n} {'x' * 500}" for n in range(200)])
    pieces = split([batch], 2, str(tmp_path))
    assert all(len(piece) < 300 for _, piece in pieces)
    assert sum(rows.num_rows for rows in read_rows((piece for _, piece in pieces), CODEC)) == 200


@pytest.mark.parametrize("spill", [False, True], ids=["shuffled", "spilled"])
@pytest.mark.parametrize("split_bytes", [0, 1 << 20], ids=["split at once", "kept"])
def test_a_bundle_that_failed_leaves_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spill: bool, split_bytes: int
) -> None:
    """A runner may use the same object again: the rows of the failed bundle come again."""
    for name in ("SPLIT_BYTES", "LOCAL_SPLIT_BYTES"):
        monkeypatch.setattr(buckets, name, split_bytes)
    do = SplitIntoBuckets(CODEC, "content_hash", 1, str(tmp_path) if spill else None)
    do.start_bundle()
    list(do.process(hashed(["lost", "too"])))
    do.start_bundle()
    pieces = [*do.process(hashed(["kept"])), *(windowed.value for windowed in do.finish_bundle())]
    rows = [row for batch in read_rows((piece for _, piece in pieces), CODEC) for row in batch.to_pylist()]
    assert [row["text"] for row in rows] == ["kept"]


def test_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts make pieces of fewer rows; a row that is longer than a piece is a piece."""
    monkeypatch.setattr(buckets, "PIECE_BYTES", 10_000)
    pieces = split([hashed(["x" * 900 + str(n) for n in range(100)] + ["y" * 50_000])], 1)
    sizes = [rows.nbytes for _, piece in pieces for rows in read_rows([piece], CODEC)]
    assert len([size for size in sizes if size > 10_000]) == 1


def test_pieces_of_many_small_shards_are_as_large_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of all shards are larger than a piece: a piece has only those of its rows, and not only one row."""
    monkeypatch.setattr(buckets, "PIECE_BYTES", 10_000)
    pieces = split([hashed([f"text {n}"], f"{n:0100d}.txt") for n in range(500)], 1)
    sizes = [rows.nbytes for _, piece in pieces for rows in read_rows([piece], CODEC)]
    assert max(sizes) <= 10_000
    assert len(pieces) <= 2 * sum(sizes) / 10_000 + 2


@pytest.mark.slow
def test_long_texts_are_split_before_they_exceed_what_arrow_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are kept by bytes; a bucket that is too large for Arrow is an error, never a lost row."""
    monkeypatch.setattr(buckets, "SPLIT_BYTES", 1000)
    do = SplitIntoBuckets(CODEC, "content_hash", 1, None)
    do.start_bundle()
    batch = hashed(["x" * 200] * 4)
    pieces = [piece for _ in range(5) for piece in do.process(batch)]
    assert sum(rows.num_rows for _, piece in pieces for rows in read_rows([piece], CODEC)) >= 16
    huge = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, 3 << 29], np.int32)), pa.py_buffer(np.zeros(3 << 29, np.uint8))
    )
    whole = pa.RecordBatch.from_arrays([huge], names=["text"])
    with pytest.raises(RuntimeError, match="more than 2 GiB: allow only"):
        combine_batches([whole, whole])


@pytest.mark.slow
def test_many_small_batches_cost_what_their_rows_cost() -> None:
    """Four times the batches take at most six times the time: nothing is counted again with each of them."""

    def seconds(batches: int) -> float:
        one = hashed(["a text"])
        began = time.process_time()
        split([one] * batches, 4)
        return time.process_time() - began

    seconds(100)
    few, many = (min(seconds(batches) for _ in range(2)) for batches in (1_000, 4_000))
    assert many < 6 * max(few, 0.02)


def test_how_many_buckets() -> None:
    """About 131,072 rows each, and at least 64 on a remote runner, so that each worker gets some."""
    assert bucket_bits(5_000, local=True) == 1
    assert bucket_bits(5_000, local=False) == 6
    assert 10**9 / 2 ** bucket_bits(10**9, local=False) == pytest.approx(131_072, rel=0.5)


def test_shuffled_bytes_of_a_row_at_a_billion_rows() -> None:
    """With the pieces of a billion rows (about 300 rows each), splitting adds under 20 bytes to each row."""
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 5000, 8))) for _ in range(20_000)]
    batch = hashed(texts)
    whole = len(CODEC.encode(batch))
    pieces = split([batch], 6)  # 312 rows each
    shuffled = sum(len(piece) + 4 for _, piece in pieces)
    assert (shuffled - whole) / len(texts) < 20
    assert max(Counter(bucket for bucket, _ in pieces).values()) == 1
