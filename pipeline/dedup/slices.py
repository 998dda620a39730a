"""How the rows of a bucket are cut: into slices that memory holds, and these into batches for the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..content import hash_words
from ..readers.arrow_values import row_bytes
from ..schemas import CONTENT_HASH
from .buckets import read_rows
from .spill import PieceCodec, combine_batches, shrink_dictionaries

SLICE_BYTES = 128 << 20  # of a bucket's rows in memory at a time
ENDINGS = 1 << 16  # numbers made of content hashes, by which a larger bucket is cut
BATCH_ROWS = 131_072  # in an emitted batch
SORTED_CHARACTERS = 256  # of each string, by which a bucket's rows are sorted: the model reads about as many


def slices_of(pieces: Iterable[bytes], codec: PieceCodec) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a bucket in slices of about SLICE_BYTES, cut by hash.

    Rows that fit into one slice are read once. Others are read twice to find out how to cut them, then once for each
    slice. Only a content that takes over half a slice can be in more than one, and with it the few whose hashes have the
    same ending; these slices share one reading.
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
    """Return bits of each content hash as numbers below ENDINGS, uint32 [n].

    They are not the first ones, which are a bucket's, nor the last ones, which count the windows of a recording.
    """
    return hash_words(batch.column(CONTENT_HASH.name))[:, 1] % ENDINGS


def batches_of(batch: pa.RecordBatch, items: int, sort_by: str | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches of at most `items` different contents and BATCH_ROWS rows each.

    Contents that are neighbours by the column `sort_by` share a batch: a head may compute once what such contents have in
    common (benchmarks/README.md has what that saves). Within a batch rows are in the order of hashes: row groups then have
    narrow ranges of hashes, and are found by them.
    """
    order = _order(batch, sort_by)
    hashes = batch.column(CONTENT_HASH.name).take(order)
    for start, end in _cut(hashes, items):
        by_hash = pc.sort_indices(hashes.slice(start, end - start))
        yield shrink_dictionaries(batch.take(order.slice(start, end - start).take(by_hash)))


def _order(batch: pa.RecordBatch, sort_by: str | None) -> pa.Array:
    """Return the places of the rows in the order of a column, of strings by their beginnings, whatever the case.

    Equal contents follow each other.
    """
    keys = {CONTENT_HASH.name: batch.column(CONTENT_HASH.name)}
    if sort_by is not None:
        column = batch.column(sort_by)
        if pa.types.is_string(column.type):
            column = pc.utf8_lower(pc.utf8_slice_codeunits(column, 0, SORTED_CHARACTERS))
        keys = {sort_by: column, **keys}
    return pc.sort_indices(pa.RecordBatch.from_pydict(keys), [(name, "ascending") for name in keys])


def _cut(hashes: pa.FixedSizeBinaryArray, items: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of parts of at most `items` contents and BATCH_ROWS rows; equal hashes follow each other.

    A part may go on with the last content of the part before it.
    """
    if not len(hashes):
        return
    numbers = hashes.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))[::items].tolist()
    for start, end in zip(starts, [*starts[1:], len(hashes)], strict=True):
        for first in range(start, end, BATCH_ROWS):
            yield first, min(first + BATCH_ROWS, end)
