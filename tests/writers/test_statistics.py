"""Histograms and the pace of a run do not depend on how rows were cut into batches."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.metrics import MAX_SPANS, OUTCOMES, pace_by_span, rows_by_second
from audioclip_beam.pipeline.schemas import vector_type
from audioclip_beam.pipeline.writers.statistics import FileStats, norm_of


def batch(tokens: list[int], vectors: np.ndarray) -> pa.RecordBatch:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=vector_type(vectors.shape[1]))
    sizes = {"n_tokens": pa.array(tokens, pa.int16()), "truncated": [count > 77 for count in tokens]}
    hashes = pa.array([bytes(16)] * len(tokens), pa.binary(16))
    return pa.RecordBatch.from_pydict({"content_hash": hashes, **sizes, "embedding": column})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(2, 300), st.floats(1, 1000, width=32)), min_size=1, max_size=40), st.data())
def test_histograms_add_up_however_rows_are_cut(rows: list[tuple[int, float]], data: st.DataObject) -> None:
    """The sum over two parts equals the whole; each row is counted; bins are close to the norms."""
    vectors = np.array([[length, 0.0, 0.0] for _, length in rows], np.float32)
    tokens = [count for count, _ in rows]
    cut = data.draw(st.integers(0, len(rows)))
    total = FileStats()
    for part in (slice(None, cut), slice(cut, None)):
        if tokens[part]:
            stats = FileStats()
            stats.add_vectors(batch(tokens[part], vectors[part]), TEXT)
            total += stats
    whole = FileStats()
    whole.add_vectors(batch(tokens, vectors), TEXT)
    assert total == whole
    assert whole.truncated == sum(count > 77 for count in tokens)
    assert whole.sizes == Counter(min(count, TEXT.max_size) for count in tokens)
    bins = np.array(sorted(whole.norm_bins.elements()))
    np.testing.assert_allclose(norm_of(bins), np.sort(vectors[:, 0]), rtol=0.01)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 1000), st.floats(0, 500)), max_size=20),
    st.floats(-100, 100),
    st.floats(0, 10_000),
)
def test_the_pace_loses_no_row(finished: list[tuple[str, int, float]], offset: float, total: float) -> None:
    """Each row is in a span and there are few spans, whatever the clocks say and however long the run took."""
    stats = FileStats()
    for outcome, rows, seconds in finished:
        stats.add_seconds(outcome, rows_by_second(rows, seconds))
    pace = pace_by_span(stats.by_second, time.time() + offset, total)
    for outcome in OUTCOMES:
        assert sum(pace["rows"][outcome]) == sum(rows for kind, rows, _ in finished if kind == outcome)
        assert 1 <= len(pace["rows"][outcome]) <= MAX_SPANS
    assert pace["seconds"] * len(pace["rows"]["read"]) >= total


def test_rows_are_spread_over_their_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that took ten seconds is not a spike at its end."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    pace = pace_by_span({"embedded": rows_by_second(1000, 10.0)}, time.time() - 20, 25.0)
    assert pace["seconds"] == 1
    assert sum(pace["rows"]["embedded"]) == 1000
    assert [rows for rows in pace["rows"]["embedded"] if rows][1:-1] == [100] * 9
    assert not any(pace["rows"]["embedded"][:8])
