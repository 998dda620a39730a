"""Earlier vectors are found by the statistics of row groups, whatever the order in which buckets were written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.pvalue import TaggedOutput

from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.content import add_content_hash
from audioclip_beam.pipeline.dedup import slices
from audioclip_beam.pipeline.dedup.buckets import SplitIntoBuckets, bucket_of, row_group_piece, row_groups_in
from audioclip_beam.pipeline.dedup.reuse import ReferToRowGroups, ReuseVectors
from audioclip_beam.pipeline.dedup.spill import PieceCodec
from audioclip_beam.pipeline.embedded_batch import EmbeddedBatch
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.schemas import CONTENT_HASH
from audioclip_beam.pipeline.writers.write_files import WriteFiles
from tests.support.shards import ROW
from tests.support.snapshots import batch_of

BITS, DIM = 5, 4
SCHEMA = pa.schema([*ROW, CONTENT_HASH])
CODEC = PieceCodec(SCHEMA)


def rows_of(texts: list[str], shards: list[str] | None = None) -> pa.RecordBatch:
    columns = {
        "shard": pa.array(shards or ["a"] * len(texts)).dictionary_encode(),
        "row": range(len(texts)),
        "id": [f"id {n}" for n in range(len(texts))],
        "text": texts,
    }
    return add_content_hash(pa.RecordBatch.from_pydict(columns, schema=ROW), "text")


def vector(text: str) -> list[float]:
    return [float(byte) for byte in hashlib.sha256(text.encode()).digest()[:DIM]]


def write(folder: Path, texts: list[str], order: list[int], fingerprint: str = "f") -> list[str]:
    """Part files with the rows of `texts`, bucket by bucket in `order`, as a run writes them; their paths."""
    folder.mkdir()
    embedded = batch_of([f"id {n}" for n in range(len(texts))], texts, np.array([vector(t) for t in texts], np.float32))
    writer = WriteFiles(
        str(folder), TEXT, embedded.schema.with_metadata({"fingerprint": fingerprint}), 5_000, bits=BITS
    )
    writer.setup()
    writer.start_bundle()
    buckets = bucket_of(embedded.column("content_hash"), BITS)
    for bucket in order:
        rows = embedded.filter(pa.array(buckets == bucket))
        list(writer.process(EmbeddedBatch(rows.sort_by("content_hash"))))
    list(writer.finish_bundle())
    return sorted(map(str, folder.glob("part-*.parquet")))


def references(paths: list[str], fingerprint: str = "f") -> list[tuple[int, str, int]]:
    refer = ReferToRowGroups(fingerprint, BITS, "", FileIO())
    found = [(bucket, piece) for path in paths for bucket, piece in refer.process(path)]
    return [(bucket, *place) for bucket, piece in found for place in row_groups_in([piece])]


TEXTS = [f"text number {n}" for n in range(20_000)]


def test_a_row_group_belongs_to_one_bucket_in_any_order(tmp_path: Path) -> None:
    """Buckets arrive in no order that a runner promises; the row groups that are read stay within 10 %."""
    ascending = references(write(tmp_path / "ascending", TEXTS, list(range(2**BITS))))
    permuted = references(write(tmp_path / "permuted", TEXTS, np.random.default_rng(1).permutation(2**BITS).tolist()))
    assert len(ascending) == len(set(ascending)) >= 2**BITS
    assert len(permuted) <= 1.1 * len(ascending)
    per_group = Counter((path, number) for _, path, number in permuted)
    assert set(per_group.values()) == {1}


def test_files_of_another_fingerprint_or_damaged_are_not_referred_to(tmp_path: Path) -> None:
    """Their texts are embedded again."""
    paths = write(tmp_path / "a", TEXTS[:500], list(range(2**BITS)), fingerprint="other")
    assert references(paths) == []
    broken = tmp_path / "part-broken.parquet"
    broken.write_bytes(Path(paths[0]).read_bytes()[:100])
    assert references([str(broken)]) == []
    (path,) = write(tmp_path / "b", TEXTS[:500], [0])
    for name in (b"content_has\xff", b"content_hasj"):  # in the footer, after the rows
        broken.write_bytes(Path(path).read_bytes().replace(b"content_hash", name))
        assert references([str(broken)]) == []


def test_row_groups_in_no_order_are_referred_to_by_the_hashes_they_have(tmp_path: Path) -> None:
    """--no_dedupe writes rows as they come: such a row group is referred to by the buckets that it has rows in."""
    embedded = batch_of(["a", "b"], TEXTS[:2], np.ones((2, DIM), np.float32))
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table(embedded).replace_schema_metadata({"fingerprint": "f"}), path)
    assert {bucket for bucket, _, _ in references([str(path)])} == set(
        bucket_of(embedded.column("content_hash"), BITS).tolist()
    )


def outputs(
    texts: list[str],
    paths: list[str] = [],  # noqa: B006
    batch_texts: int = 1000,
    shards: list[str] | None = None,
) -> Iterator[EmbeddedBatch | TaggedOutput]:
    """What ReuseVectors yields for `texts`, all buckets together."""
    split = SplitIntoBuckets(CODEC, "content_hash", 1, None)
    split.start_bundle()
    pieces = [*split.process(rows_of(texts, shards)), *(windowed.value for windowed in split.finish_bundle())]
    refer = ReferToRowGroups("f", 1, "", FileIO())
    pieces += [piece for path in paths for piece in refer.process(path)]
    do = ReuseVectors(CODEC, TEXT, batch_texts)
    for bucket in (0, 1):
        yield from do.process((bucket, [piece for number, piece in pieces if number == bucket]))
    do.teardown()


def process(
    texts: list[str],
    paths: list[str] = [],  # noqa: B006
    batch_texts: int = 1000,
    shards: list[str] | None = None,
) -> tuple[list[pa.RecordBatch], ...]:
    """The known and the new batches of `texts`."""
    known, new = [], []
    for output in outputs(texts, paths, batch_texts, shards):
        if isinstance(output, EmbeddedBatch):
            assert output.outcome == "reused"
            known.append(output.rows)
        else:
            new.append(output.value)
    return known, new


def test_known_texts_get_their_vectors_and_new_ones_are_new(tmp_path: Path) -> None:
    """Every row leaves once; a known one with the vector that its text had."""
    paths = write(tmp_path / "a", TEXTS[:3000], list(range(2**BITS)))
    known, new = process(TEXTS[1000:5000], paths)
    rows = [row for batch in known for row in batch.to_pylist()]
    assert {row["text"] for row in rows} == set(TEXTS[1000:3000])
    assert all(row["embedding"] == vector(row["text"]) for row in rows)
    assert sorted(text for batch in new for text in batch.column("text").to_pylist()) == sorted(TEXTS[3000:5000])


def test_a_known_text_of_many_rows_takes_the_memory_of_one_batch(tmp_path: Path) -> None:
    """Rows that share a vector have it once each in a batch, and only one batch exists at a time."""
    embedded = batch_of(["a"], ["the same"], np.ones((1, 512), np.float32))
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table(embedded).replace_schema_metadata({"fingerprint": "f"}), path)
    before, most, vectors = pa.total_allocated_bytes(), 0, 0
    for batch in outputs(["the same"] * 40_000, [str(path)]):
        most = max(most, pa.total_allocated_bytes() - before)
        vectors += batch.rows.column("embedding").nbytes
    assert vectors == 40_000 * 512 * 4
    assert most < vectors / 2


@pytest.mark.parametrize("slice_bytes", [20_000, 1 << 30])
def test_a_bucket_larger_than_memory_allows_is_processed_in_slices(
    monkeypatch: pytest.MonkeyPatch, slice_bytes: int
) -> None:
    """No row is lost; rows of a text leave in one batch or in consecutive ones, also for a text of half of all rows."""
    monkeypatch.setattr(slices, "SLICE_BYTES", slice_bytes)
    texts = [text for n in range(2000) for text in (f"text {n % 400}", "the same")]
    known, new = process(texts, batch_texts=50)
    assert not known
    assert Counter(text for batch in new for text in batch.column("text").to_pylist()) == Counter(texts)
    assert all(len(set(batch.column("text").to_pylist())) <= 50 for batch in new)
    batches_of: dict[str, list[int]] = {}
    for place, batch in enumerate(new):
        for text in set(batch.column("text").to_pylist()):
            batches_of.setdefault(text, []).append(place)
    assert all(len(places) == 1 for text, places in batches_of.items() if text != "the same")


class ReadPieces(list[bytes]):
    """Pieces that count how often they are read."""

    reads = 0

    def __iter__(self) -> Iterator[bytes]:
        self.reads += 1
        return super().__iter__()


@pytest.mark.parametrize("times", [4, 40])
def test_a_text_that_fills_many_slices_is_read_as_often_as_one_that_fills_few(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Reads grow with the other texts alone; these are in one slice each, and no slice is larger than it may be."""
    others = [f"text {n}" for n in range(1000)]
    batches = [rows_of(["the same"] * 1000), rows_of(others)]
    monkeypatch.setattr(slices, "SLICE_BYTES", 2 * batches[0].nbytes)
    pieces = ReadPieces(
        b"r" + CODEC.encode(batch) for batch in [*batches, batches[0], batches[1], *batches[:1] * times]
    )
    found = [*slices.slices_of(pieces, CODEC)]
    assert pieces.reads <= 7
    assert all(rows.nbytes <= 3.1 * batches[0].nbytes for rows in found)
    texts = [rows.column("text").to_pylist() for rows in found]
    assert Counter(text for some in texts for text in some) == {"the same": 1000 * (times + 2)} | dict.fromkeys(
        others, 2
    )
    assert Counter(text for some in texts for text in set(some) - {"the same"}) == dict.fromkeys(others, 1)


@pytest.mark.parametrize("slice_bytes", [100_000, 1 << 30])
def test_rows_of_many_shards_are_sliced_by_what_they_take(monkeypatch: pytest.MonkeyPatch, slice_bytes: int) -> None:
    """Each text leaves in one batch, although every row is of a shard of its own; a batch names only its own shards."""
    monkeypatch.setattr(slices, "SLICE_BYTES", slice_bytes)
    texts = [f"text {n % 500}" for n in range(2000)]
    _, new = process(texts, batch_texts=50, shards=[f"{n:0200d}.txt" for n in range(2000)])
    assert Counter(text for batch in new for text in batch.column("text").to_pylist()) == Counter(texts)
    assert Counter(text for batch in new for text in set(batch.column("text").to_pylist())) == Counter(set(texts))
    for batch in new:
        assert batch.column("shard").dictionary.to_pylist() == batch.column("shard").to_pylist()


def test_a_reference_names_a_path_of_any_characters() -> None:
    """Paths are not cut, split or re-encoded."""
    pieces = [row_group_piece("gs://b/ö 猫/\udcff/part-1.parquet", 7), row_group_piece("a", 0), row_group_piece("a", 0)]
    assert row_groups_in(pieces) == [("a", 0), ("gs://b/ö 猫/\udcff/part-1.parquet", 7)]
