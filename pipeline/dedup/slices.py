"""How the rows of a bucket are cut: into slices that memory holds, and these into batches of texts that begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..text_hash import hash_words
from .buckets import read_rows
from .spill import PieceCodec, combine_batches, shrink_dictionaries

SLICE_BYTES = 128 << 20  # of a bucket's rows in memory at a time
BATCH_ROWS = 131_072  # in an emitted batch
SORTED_CHARACTERS = 256  # of each text, by which a bucket's texts are sorted: the model reads about as many


def slices_of(pieces: Iterable[bytes], codec: PieceCodec) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a bucket in slices of about SLICE_BYTES, cut by hash.

    The rows are read once if they fit into one slice; if not, once more for each slice. Only a text that fills a slice
    alone is in more than one.
    """
    batches, size = list[pa.RecordBatch](), 0
    for batch in read_rows(pieces, codec):
        size += batch.nbytes
        batches.append(batch)
        if size > SLICE_BYTES:
            batches.clear()
    if size <= SLICE_BYTES:
        if batches:
            yield _take_all(batches)
        return
    parts = 1 << (2 * size // SLICE_BYTES).bit_length()
    for part in range(parts):
        batches, size = [], 0
        for batch in read_rows(pieces, codec):
            rows = shrink_dictionaries(batch.filter(pa.array(_low_bits(batch.column("text_hash")) % parts == part)))
            if rows.num_rows:
                batches.append(rows)
                size += rows.nbytes
            if size > SLICE_BYTES:
                yield _take_all(batches)
                size = 0
        if batches:
            yield _take_all(batches)


def _take_all(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return all batches as one, and empty the list: their memory is needed for what is made of them."""
    whole = combine_batches(batches)
    batches.clear()
    return whole


def _low_bits(text_hash: pa.FixedSizeBinaryArray) -> NDArray[np.uint32]:
    """Return the last 32 bits of each hash, uint32 [n]: the first ones are the same in a bucket."""
    return hash_words(text_hash)[:, 3]


def batches_of(batch: pa.RecordBatch, texts: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches of texts that begin alike: at most `texts` different ones and BATCH_ROWS rows each.

    The model computes a beginning that texts of a batch share only once: of 16,384 texts of a sorted bucket it computes
    5 % fewer tokens than of as many in the order of their hashes (benchmarks/README.md). Within a batch rows are in the
    order of hashes: row groups then have narrow ranges of hashes, and are found by them.
    """
    order = _text_order(batch)
    hashes = batch.column("text_hash").take(order)
    for start, end in _cut_at_texts(hashes, texts):
        by_hash = pc.sort_indices(hashes.slice(start, end - start))
        yield shrink_dictionaries(batch.take(order.slice(start, end - start).take(by_hash)))


def _text_order(batch: pa.RecordBatch) -> pa.Array:
    """Return the places of the rows in the order of their texts, whatever the case; equal texts follow each other."""
    beginnings = pc.utf8_lower(pc.utf8_slice_codeunits(batch.column("text"), 0, SORTED_CHARACTERS))
    keys = {"text": beginnings, "text_hash": batch.column("text_hash")}
    return pc.sort_indices(pa.RecordBatch.from_pydict(keys), [(name, "ascending") for name in keys])


def _cut_at_texts(hashes: pa.FixedSizeBinaryArray, texts: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of parts of at most `texts` texts and BATCH_ROWS rows; equal hashes follow each other.

    A part may go on with the last text of the part before it.
    """
    if not len(hashes):
        return
    numbers = hashes.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))[::texts].tolist()
    for start, end in zip(starts, [*starts[1:], len(hashes)], strict=True):
        for first in range(start, end, BATCH_ROWS):
            yield first, min(first + BATCH_ROWS, end)
