"""How the rows of a bucket are cut: into slices that memory holds, and these into batches of texts that begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..content import hash_words
from ..readers.arrow_values import row_bytes
from .buckets import read_rows
from .spill import PieceCodec, combine_batches, shrink_dictionaries

SLICE_BYTES = 128 << 20  # of a bucket's rows in memory at a time
ENDINGS = 1 << 16  # of text hashes, by which a larger bucket is cut
BATCH_ROWS = 131_072  # in an emitted batch
SORTED_CHARACTERS = 256  # of each text, by which a bucket's texts are sorted: the model reads about as many


def slices_of(pieces: Iterable[bytes], codec: PieceCodec) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a bucket in slices of about SLICE_BYTES, cut by hash.

    The rows are read once if they fit into one slice; if not, twice to see that and how to cut, and once more for each
    slice, or for all slices of a text that fills several. Only a text that takes over half a slice can be in more than
    one, and with it the few whose hashes have the same ending.
    """
    batches, size = list[pa.RecordBatch](), 0
    for batch in read_rows(pieces, codec):
        size += batch.nbytes
        batches.append(batch)
        if size > SLICE_BYTES:
            batches.clear()
            break
    if size <= SLICE_BYTES:
        if batches:
            yield _take_all(batches)
        return
    for endings in _parts(pieces, codec):
        batches, size = [], 0
        for batch in read_rows(pieces, codec):
            rows = shrink_dictionaries(batch.filter(pa.array(endings[_endings_of(batch)])))
            if rows.num_rows:
                batches.append(rows)
                size += rows.nbytes
            if size > SLICE_BYTES:
                yield _take_all(batches)
                size = 0
        if batches:
            yield _take_all(batches)


def _parts(pieces: Iterable[bytes], codec: PieceCodec) -> Iterator[NDArray[np.bool_]]:
    """Yield which endings of hashes are in each part of a bucket, bool [ENDINGS]; every ending that occurs is in one.

    A part is of one ending or takes about half of SLICE_BYTES: what rows take is estimated.
    """
    sizes = np.zeros(ENDINGS)
    for batch in read_rows(pieces, codec):
        sizes += np.bincount(_endings_of(batch), row_bytes(batch), ENDINGS)
    most = SLICE_BYTES / 2
    alone = sizes > most
    part = np.cumsum(np.where(alone, 0, sizes)) // most
    part[alone] = part.max() + 1 + np.arange(np.count_nonzero(alone))
    for number in np.unique(part[sizes > 0]):
        yield part == number


def _take_all(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return all batches as one, and empty the list: their memory is needed for what is made of them."""
    whole = combine_batches(batches)
    batches.clear()
    return whole


def _endings_of(batch: pa.RecordBatch) -> NDArray[np.uint32]:
    """Return the last bits of each text hash as numbers below ENDINGS, uint32 [n]: the first ones are a bucket's."""
    return hash_words(batch.column("text_hash"))[:, 3] % ENDINGS


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
