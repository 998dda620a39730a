"""TopK gives the hits of a plain full computation, in an order that depends on the rows alone."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.search.top_k import Hit, TopK
from tests.support.snapshots import batch_of


def unit(
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    wide = np.asarray(vectors, np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def plain(rows: list[tuple[str, str, list[float]]], query: list[float], top: int) -> list[tuple[str, str]]:
    """Every row scored exactly (math.fsum over the stored numbers), all sorted."""
    scored = []
    for name, text, vector in rows:
        length = math.sqrt(math.fsum(x * x for x in vector))
        if length:
            scored.append(
                (-round(math.fsum(x * y for x, y in zip(vector, query, strict=True)) / length, 12), name, text)
            )
    return [(name, text) for _, name, text in sorted(scored)[:top]]


VECTORS = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), min_size=3, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xy"), VECTORS), max_size=60),
    VECTORS.filter(any),
    st.integers(1, 8),
    st.integers(1, 7),
    st.sampled_from(["float32", "float16"]),
)
def test_hits_are_those_of_a_plain_computation(
    rows: list[tuple[str, str, list[float]]], query: list[float], top: int, size: int, stored: str
) -> None:
    """With few directions and few ids most rows tie; for every batch size the list is the sorted one."""
    direction = unit(np.array([query]))
    nearest = TopK(direction, top)
    for start in range(0, len(rows), size):
        names, texts, vectors = zip(*rows[start : start + size], strict=True)
        nearest.add(batch_of(list(names), list(texts), np.array(vectors, stored)))
    (hits,) = nearest.hits()
    assert [(hit.id, hit.text) for hit in hits] == plain(rows, direction[0].tolist(), top)
    assert nearest.rows == len(rows)
    assert nearest.incomparable == sum(not any(vector) for _, _, vector in rows)


def test_equal_vectors_have_equal_scores_in_any_batch() -> None:
    """One vector at any place of batches of any size has one score, equal in all bits, so the ids decide the order."""
    random = np.random.default_rng(1)
    vector, query = random.standard_normal((2, 1024))
    nearest = TopK(unit(query[None]), 500)
    number = 0
    for size in (1, 2, 3, 5, 8, 13, 100, 257):
        vectors = random.standard_normal((size, 1024)).astype(np.float32)
        vectors[:: max(1, size // 20)] = vector
        nearest.add(batch_of([f"{number + n:04}" for n in range(size)], ["t"] * size, vectors))
        number += size
    equal = [
        hit
        for hit in nearest.hits()[0]
        if np.isclose(hit.score, unit(vector[None])[0] @ unit(query[None])[0], atol=1e-6)
    ]
    assert len(equal) > 50
    assert len({hit.score for hit in equal}) == 1
    assert [hit.id for hit in equal] == sorted(hit.id for hit in equal)


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_many_queries_against_many_rows(stored: str) -> None:
    """300 queries over 3,000 random rows give the ids and scores of a full matrix in float64."""
    random = np.random.default_rng(2)
    vectors, queries = random.standard_normal((3000, 32)).astype(stored), unit(random.standard_normal((300, 32)))
    nearest = TopK(queries, 7)
    names = [f"{n:05}" for n in range(len(vectors))]
    for start in range(0, len(vectors), 700):
        batch = batch_of(names[start : start + 700], names[start : start + 700], vectors[start : start + 700])
        nearest.add(batch.slice(1))  # slices have offsets: they must not shift rows
        nearest.add(batch.slice(0, 1))
    scores = queries @ unit(vectors).T
    for hits, row in zip(nearest.hits(), scores, strict=True):
        best = np.argsort(-row, kind="stable")[:7]
        assert [hit.id for hit in hits] == [names[place] for place in best]
        np.testing.assert_allclose([hit.score for hit in hits], row[best], rtol=0, atol=1e-12)


def test_rows_without_a_usable_vector_are_counted() -> None:
    """NaN, infinity and zeros have no cosine; very large and very small vectors have one."""
    vectors = np.array([[np.nan, 1], [np.inf, 1], [0, 0], [3e38, 0], [1e-30, 0]], np.float32)
    nearest = TopK(np.array([[1.0, 0.0]]), 10)
    nearest.add(batch_of(list("abcde"), list("abcde"), vectors))
    assert nearest.hits() == [[Hit(1.0, "d", "d", row=3), Hit(1.0, "e", "e", row=4)]]
    assert nearest.incomparable == 3


def test_empty_batch_and_batch_without_texts() -> None:
    """An empty batch adds no hit; a snapshot written with --no_text has ids alone."""
    nearest = TopK(np.array([[1.0, 0.0]]), 1)
    batch = batch_of(["a"], ["t"], np.ones((1, 2), np.float32))
    nearest.add(batch.slice(0, 0))
    assert nearest.hits() == [[]]
    nearest.add(pa.RecordBatch.from_arrays([batch["id"], batch["embedding"]], names=["id", "embedding"]))
    assert nearest.hits()[0][0].text is None
