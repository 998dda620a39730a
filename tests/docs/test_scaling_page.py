"""docs/scaling.md: its figures are those that benchmarks/scaling.py computes."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest

from tests.support.pages import ROOT, read_page

SPEC = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
assert SPEC
assert SPEC.loader
scaling = importlib.util.module_from_spec(SPEC)
sys.modules["scaling"] = scaling
SPEC.loader.exec_module(scaling)
PAGE = read_page("docs/scaling.md")


def test_the_page_shows_the_tables_that_the_formulas_give() -> None:
    """Compare the page with the formulas: a figure that changes in one place only fails the test."""
    assert scaling.tables() in PAGE
    assert f"{scaling.flop_per_node() / 1e6:.1f} million" in PAGE
    assert f"{scaling.flop_per_text() / 1e9:.2f} billion" in PAGE
    for name, text in scaling.figures().items():
        assert text in " ".join(PAGE.split()), name


def test_flop_per_node_are_those_of_the_text_head() -> None:
    """Count two per weight of the transformer's matrices in the state dict."""
    from audioclip_text.model.text_head import untrained_state

    state = untrained_state()
    weights = sum(
        tensor.numel() for name, tensor in state.items() if name.startswith("transformer") and tensor.dim() == 2
    )
    assert scaling.flop_per_node() == 2 * weights


def test_a_worker_is_as_fast_as_its_slowest_part() -> None:
    """Slow the GPU, the cores or the network down: each becomes the limit. Twice the workers take half the hours."""
    worker = scaling.GPU_WORKERS[1]
    for part, limit in (("peak", "GPU"), ("cores", "CPU"), ("network", "network")):
        slow = replace(worker, **{part: 1e-3})
        rate, slowest = scaling.rate(slow)
        assert slowest == limit
        assert rate < scaling.rate(worker)[0]
    assert scaling.hours(1e9, worker, 2) == pytest.approx(scaling.hours(1e9, worker, 1) / 2)
    assert scaling.dollars(1e9, worker, 2) == pytest.approx(scaling.dollars(1e9, worker, 1))
