"""Text hashes: blake2b-128 of each text as it enters the tokenizer."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .schemas import TEXT_HASH


def add_text_hash(batch: pa.RecordBatch, prompt: str) -> pa.RecordBatch:
    """Return the row batch with a last column `text_hash`: blake2b-128 of each text inserted into the prompt."""
    texts = batch.column("text").to_pylist()
    if prompt != "{}":
        texts = [prompt.format(text) for text in texts]
    digest = hashlib.blake2b
    hashes = b"".join([digest(text.encode(), digest_size=16).digest() for text in texts])
    column = pa.FixedSizeBinaryArray.from_buffers(TEXT_HASH.type, len(texts), [None, pa.py_buffer(hashes)])
    return pa.RecordBatch.from_arrays([*batch.columns, column], schema=batch.schema.append(TEXT_HASH))


def hash_words(text_hash: pa.FixedSizeBinaryArray) -> NDArray[np.uint32]:
    """Return each hash as four numbers of 32 bits, [n, 4], that sort as the hashes do."""
    words = np.frombuffer(text_hash.buffers()[1], ">u4").reshape(-1, 4)
    return words[text_hash.offset : text_hash.offset + len(text_hash)]
