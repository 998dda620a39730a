"""Rows on their way to their buckets: none gets lost, however long its text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from audioclip_text.pipeline.dedup import buckets
from audioclip_text.pipeline.dedup.spill import combine_batches


def test_long_texts_are_split_before_they_pass_what_arrow_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes and not by rows alone; what belongs together and is too large is an error, never a row less."""
    monkeypatch.setattr(buckets, "SPLIT_BYTES", 1000)
    split = buckets.Split("text_hash", 1, None)
    split.start_bundle()
    rows = pa.RecordBatch.from_pydict(
        {"text_hash": pa.array([bytes([64 * n]) * 16 for n in range(4)], pa.binary(16)), "text": ["x" * 200] * 4}
    )
    pieces = [piece for _ in range(5) for _, piece in split.process(rows)]
    assert sum(piece.num_rows for piece in pieces) == 16
    huge = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, 3 << 29], np.int32)), pa.py_buffer(np.zeros(3 << 29, np.uint8))
    )
    batch = pa.RecordBatch.from_arrays([huge], names=["text"])
    with pytest.raises(RuntimeError, match="more than 2 GiB of text"):
        combine_batches([batch, batch])
