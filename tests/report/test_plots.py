"""Each chart is one SVG element that fits into a page and says its values on hover."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.metrics import SECONDS, Pace
from audioclip_beam.pipeline.report import plots

PACE: Pace = {
    "seconds": 2,
    "rows": {"read": [900, 100, 0], "embedded": [0, 500, 400], "reused": [90, 0, 0], "rejected": [0, 10, 0]},
}
CHARTS: dict[str, Callable[[], str]] = {
    "rows_by_outcome": lambda: plots.rows_by_outcome(
        [("embedded", 90, "embedded"), ("rejected: <b>", 10, "rejected-0")]
    ),
    "tokens_per_text": lambda: plots.tokens_per_text({2: 1, 12: 3456, 77: 5, 128: 6}),
    "vector_norms": lambda: plots.vector_norms({0: 1000, 7: 1}),
    "rows_per_second": lambda: plots.rows_per_second(PACE),
    "seconds_by_stage": lambda: plots.seconds_by_stage({"read_seconds": 1.5, "model_seconds": 1234.5}),
    "sample_map": lambda: plots.sample_map(
        np.array([[0, 1], [1, 0], [1, 1]]), ["a", "</title><script>&", "\x1b\u202e"]
    ),
}


def titles(svg: str) -> list[str]:
    return [str(title.text) for title in ElementTree.fromstring(svg).iter("title")]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_scales_with_the_page_and_takes_its_colors(name: str) -> None:
    """It has a view box and no size, a name for screen readers, and colors and fonts from the page's CSS alone."""
    svg = CHARTS[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.attrib.keys() - {"preserveAspectRatio"} == {"class", "role", "aria-label", "viewBox"}
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert "var(--" in svg
    assert not re.search(r"#[0-9a-f]{6}|font|<style|<metadata|<script|clip-path|xmlns", svg)


def test_a_chart_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a user's own settings of matplotlib are; and those are left as they were."""
    before = {name: draw() for name, draw in CHARTS.items()}
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 40.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert {name: draw() for name, draw in CHARTS.items()} == before
    assert matplotlib.rcParams["font.size"] == 40


def test_ids_do_not_collide_in_a_page() -> None:
    """An id occurs once over all charts, and each reference leads to one."""
    page = "".join(draw() for draw in CHARTS.values())
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'"#([^"]+)"', page)) == set(ids)


def test_values_are_shown_on_hover() -> None:
    """Each bar, span and point has its title; what data contains is text there, and moves no writing."""
    assert titles(CHARTS["rows_by_outcome"]()) == ["embedded: 90 rows", "rejected: <b>: 10 rows"]
    assert titles(CHARTS["tokens_per_text"]()) == [
        "2 tokens: 1 row",
        "12 tokens: 3,456 rows",
        "77 tokens: 5 rows",
        "128 or more tokens: 6 rows",
    ]
    assert titles(CHARTS["vector_norms"]()) == ["norm 0.9946 to 1.005: 1,000 rows", "norm 1.073 to 1.085: 1 row"]
    spans = titles(CHARTS["rows_per_second"]())
    assert spans[:3] == spans[3:]
    assert spans[1].splitlines() == [
        "second 2 to 4",
        "read: 50 rows per second",
        "embedded: 250 rows per second",
        "reused: 0 rows per second",
        "rejected: 5 rows per second",
    ]
    assert titles(CHARTS["seconds_by_stage"]()) == [
        "read: 1.50 s",
        "prepare: 0.00 s",
        "model: 1,234.50 s",
        "write: 0.00 s",
    ]
    assert titles(CHARTS["sample_map"]()) == ["a", "</title><script>&", "\\x1b\\u202e"]
    assert "<script>" not in CHARTS["sample_map"]()


def test_the_limit_of_the_model_is_marked() -> None:
    """Also if no text comes near it."""
    assert "limit: 77 tokens" in plots.tokens_per_text({3: 1})


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.integers(-9000, 9000), st.integers(1, 10**9), min_size=1, max_size=40))
def test_norms_of_any_spread_lose_no_row(norm_bins: dict[int, int]) -> None:
    """From one bin to norms that differ by the whole range of float32: few bars, and each row in one."""
    shown = [title.rpartition(": ")[2].split()[0].replace(",", "") for title in titles(plots.vector_norms(norm_bins))]
    assert len(shown) <= plots.NORM_BARS
    assert sum(map(int, shown)) == sum(norm_bins.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (99.94, "99.9"), (1234.4, "1,234"), (12_345, "12.35k"), (2e6, "2M"), (3e9, "3G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    """So that they fit beside an axis or a bar of a narrow chart."""
    chart = plots.seconds_by_stage(dict.fromkeys(SECONDS, value))
    assert chart.count(f">{text} s<") == len(SECONDS)
