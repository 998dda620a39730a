"""The tower over prefix trees, compared with a plain padded tower."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.model import linear
from audioclip_beam.model.text.prefix_tree import NODE_STEP, SortedRows
from audioclip_beam.model.text.tower import TextTower
from tests.support import plain_tower as oracle

CPU = torch.device("cpu")
START, END = 48, 49  # of the small vocabulary
STATE = oracle.small_state()
TOWER = TextTower(STATE, device=CPU, dtype=torch.float32)

# A small set of tokens makes shared prefixes and duplicates; a stem with several endings makes long shared prefixes.
middles = st.lists(st.integers(0, 3), max_size=75)
families = st.tuples(middles, st.lists(middles, min_size=1, max_size=5)).map(
    lambda family: [(family[0] + ending)[:75] for ending in family[1]]
)
some_rows = st.lists(families, min_size=1, max_size=4).map(
    lambda families: [[START, *middle, END] for family in families for middle in family]
)


def arrange(rows: list[list[int]]) -> SortedRows:
    """Sort rows of token ids."""
    return SortedRows.of(np.array([token for row in rows for token in row]), np.array([len(row) for row in rows]))


def embed(tower: TextTower, rows: list[list[int]], nodes: int = 10_000) -> torch.Tensor:
    """Rows through the tower in micro-batches of at most `nodes` nodes, in the order given."""
    arranged = arrange(rows)
    out = [tower(arranged.tree(batch, CPU)) for batch in arranged.batches(nodes)]
    return torch.cat(out)[torch.from_numpy(arranged.inverse)]


@pytest.mark.slow
@given(rows=some_rows, nodes=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_tower(rows: list[list[int]], nodes: int) -> None:
    """Rows with shared prefixes and duplicates, in any micro-batches, get the plain padded tower's vectors, in order."""
    expected = oracle.plain_tower(STATE, rows, END)
    torch.testing.assert_close(embed(TOWER, rows, nodes), expected, rtol=0, atol=2e-5)


@pytest.mark.slow
@given(rows=some_rows, which=st.data())
@settings(max_examples=40, deadline=None)
def test_the_rest_of_the_batch_does_not_matter(rows: list[list[int]], which: st.DataObject) -> None:
    """A row alone gets the same vector as in a batch, within 1e-5."""
    index = which.draw(st.integers(0, len(rows) - 1))
    torch.testing.assert_close(embed(TOWER, [rows[index]])[0], embed(TOWER, rows)[index], rtol=0, atol=1e-5)


@given(rows=some_rows)
@settings(max_examples=60, deadline=None)
def test_one_node_for_every_distinct_prefix(rows: list[list[int]]) -> None:
    """A tree has exactly as many nodes as its rows have distinct prefixes."""
    arranged = arrange(rows)
    tree = arranged.tree(slice(0, len(arranged.lengths)), CPU)
    assert tree.nodes == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    assert tree.nodes <= len(tree.tokens) == len(tree.node_slots) < tree.nodes + NODE_STEP
    assert len(tree.tokens) % NODE_STEP == len(tree.ends) % NODE_STEP == 0, "oneDNN keeps code for each number of rows"


@given(rows=some_rows, nodes=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_micro_batches_keep_to_their_budget(rows: list[list[int]], nodes: int) -> None:
    """Every micro-batch of several rows fits the budget and has no place for one more row, and no row is lost."""
    arranged, start = arrange(rows), 0
    for batch in arranged.batches(nodes):
        assert batch.start == start
        assert batch.stop - start == 1 or arranged.tree(batch, CPU).nodes <= nodes
        assert (
            batch.stop == len(arranged.lengths) or len(arranged.tree(slice(start, batch.stop + 1), CPU).tokens) > nodes
        )
        start = batch.stop
    assert start == len({tuple(row) for row in rows})


def test_sorting_is_by_token_and_by_length() -> None:
    """Rows sort like lists of numbers; token 0 differs from a missing token."""
    rows = [[2, 0, 0], [2, 0], [1, 300], [1, 2], [1, 65_536], [2, 0]]
    arranged = arrange(rows)
    actual = [list(row[:length]) for row, length in zip(arranged.tokens, arranged.lengths, strict=True)]
    assert actual == [[1, 2], [1, 300], [1, 65_536], [2, 0], [2, 0, 0]]
    assert [actual[i] for i in arranged.inverse] == rows


@pytest.mark.parametrize(("width", "layers"), [(64, 1), (192, 3), (320, 1)])
def test_other_sizes(width: int, layers: int) -> None:
    """Width, number of layers and heads come from the state dict."""
    state = oracle.small_state(width=width, layers=layers, dim=40, context=20)
    tower = TextTower(state, device=CPU, dtype=torch.float32)
    rows = [[START, *range(n), END] for n in (0, 1, 5, 18)] + [[START, 3, 4, END]]
    assert (tower.dim, tower.width, tower.context_length) == (40, width, 20)
    torch.testing.assert_close(embed(tower, rows), oracle.plain_tower(state, rows, END), rtol=0, atol=2e-5)


def random_rows() -> list[list[int]]:
    numbers = np.random.default_rng(0)
    return [[START, *numbers.integers(0, 48, n).tolist(), END] for n in numbers.integers(0, 76, 40)]


def test_bfloat16_is_close() -> None:
    """In bfloat16 every vector has a cosine of at least 0.999 with the plain one in float32."""
    rows = random_rows()
    vectors = embed(TextTower(STATE, device=CPU, dtype=torch.bfloat16), rows)
    assert vectors.dtype == torch.float32
    assert torch.cosine_similarity(vectors, oracle.plain_tower(STATE, rows, END)).min() >= 0.999


def test_without_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch lacks the packed layers, plain ones give the same vectors."""
    monkeypatch.setattr(linear, "packed_works", lambda _: False)
    tower, rows = TextTower(STATE, device=CPU, dtype=torch.float32), random_rows()
    assert type(tower.blocks[0].c_fc) is linear.Linear
    torch.testing.assert_close(embed(tower, rows), embed(TOWER, rows), rtol=0, atol=1e-5)


@pytest.fixture
def uncached() -> Iterator[None]:
    """An empty cache of packed_works, before and after."""
    linear.packed_works.cache_clear()
    yield
    linear.packed_works.cache_clear()


@pytest.mark.usefixtures("uncached")
def test_packed_layers_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the private operators of torch, layers are plain."""
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not linear.packed_works(torch.float32)


@pytest.mark.usefixtures("uncached")
def test_packed_layers_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed layers with wrong results are not used."""
    monkeypatch.setattr(linear.PackedLinear, "silu", linear.PackedLinear.__call__)
    assert not linear.packed_works(torch.float32)
