"""docs/scaling.md says what benchmarks/scaling.py works out, and that works out what its page says."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
assert SPEC
assert SPEC.loader
scaling = importlib.util.module_from_spec(SPEC)
sys.modules["scaling"] = scaling
SPEC.loader.exec_module(scaling)
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_page_shows_the_tables_that_the_formulas_give() -> None:
    """A figure that changes in one place only is found."""
    assert scaling.tables() in PAGE
    assert f"{scaling.flop_per_node() / 1e6:.1f} million" in PAGE
    assert f"{scaling.flop_per_text() / 1e9:.2f} billion" in PAGE
    for name, said in scaling.figures().items():
        assert said in " ".join(PAGE.split()), name


def test_flop_a_node_are_those_of_the_text_head() -> None:
    """Two a weight of the transformer's matrices, counted in the state dict."""
    from audioclip_text.model.text_head import untrained_state

    state = untrained_state()
    weights = sum(
        tensor.numel() for name, tensor in state.items() if name.startswith("transformer") and tensor.dim() == 2
    )
    assert scaling.flop_per_node() == 2 * weights


def test_a_worker_is_as_fast_as_its_slowest_part() -> None:
    """A card, cores or network of nearly nothing is what limits, and twice the workers take half the hours."""
    worker = scaling.CARDS[1]
    for part, limit in (("peak", "card"), ("cores", "CPU"), ("network", "network")):
        slow = replace(worker, **{part: 1e-3})
        rate, what = scaling.rate(slow)
        assert what == limit
        assert rate < scaling.rate(worker)[0]
    assert scaling.hours(1e9, worker, 2) == pytest.approx(scaling.hours(1e9, worker, 1) / 2)
    assert scaling.dollars(1e9, worker, 2) == pytest.approx(scaling.dollars(1e9, worker, 1))
