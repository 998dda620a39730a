"""Content hashes: blake2b-128 of each content, by which equal contents meet."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .schemas import CONTENT_HASH


def content_hash(contents: pa.Array) -> pa.FixedSizeBinaryArray:
    """Return the hash of each content, strings as UTF-8."""
    digest = hashlib.blake2b
    values = contents.to_pylist()
    if pa.types.is_string(contents.type):
        hashes = b"".join([digest(value.encode(), digest_size=16).digest() for value in values])
    else:
        hashes = b"".join([digest(value, digest_size=16).digest() for value in values])
    return pa.FixedSizeBinaryArray.from_buffers(CONTENT_HASH.type, len(values), [None, pa.py_buffer(hashes)])


def add_content_hash(batch: pa.RecordBatch, content: str) -> pa.RecordBatch:
    """Return the row batch with the hashes of its column `content` as last column."""
    hashes = content_hash(batch.column(content))
    return pa.RecordBatch.from_arrays([*batch.columns, hashes], schema=batch.schema.append(CONTENT_HASH))


def hash_words(hashes: pa.FixedSizeBinaryArray) -> NDArray[np.uint32]:
    """Return each content hash as four numbers of 32 bits, [n, 4], that sort as the hashes do."""
    words = np.frombuffer(hashes.buffers()[1], ">u4").reshape(-1, 4)
    return words[hashes.offset : hashes.offset + len(hashes)]
