"""What each chart shows: its labels, its values on hover, and shapes whose sizes are in proportion to the values."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from audioclip_beam.pipeline.metrics import SECONDS, Pace
from audioclip_beam.pipeline.report import plots
from audioclip_beam.pipeline.report.plots import Chart, Shape

PACE: Pace = {
    "seconds": 2,
    "rows": {"read": [900, 100, 0], "embedded": [0, 500, 400], "reused": [90, 0, 0], "rejected": [0, 10, 0]},
}


def titles(chart: Chart) -> list[str]:
    return ["\n".join(area.lines) for area in chart.areas] + [dot.words for dot in chart.dots]


def labels(chart: Chart) -> list[str]:
    return [label.words for label in chart.labels]


def columns(shape: Shape) -> list[tuple[float, float]]:
    """Return top and base of the columns of a shape, whose path goes along their tops and back along their bases."""
    levels = [float(level) for level in re.findall(r"V([\d.]+)", shape.path)]
    half = len(levels) // 2
    return list(zip(levels[:half], reversed(levels[half:]), strict=True))


def heights(shape: Shape) -> list[float]:
    return [base - top for top, base in columns(shape)]


def assert_inside(chart: Chart) -> None:
    """Nothing that is shown or can be pointed at is outside of the chart."""
    for area in chart.areas:
        assert area.width > 0
        assert -0.01 <= area.x <= area.x + area.width <= chart.width + 0.01
        assert -0.01 <= area.y <= area.y + area.height <= chart.height + 0.01
    for place in (*chart.labels, *chart.dots):
        assert 0 <= place.x <= chart.width
        assert 0 <= place.y <= chart.height
    for shape in chart.shapes:
        for axis, number in re.findall(r"([HV])(-?[\d.]+)", shape.path):
            assert -0.01 <= float(number) <= (chart.width if axis == "H" else chart.height) + 0.01


def test_rows_by_outcome() -> None:
    """The pieces fill the bar in proportion to their rows, and one row among millions can still be pointed at."""
    chart = plots.rows_by_outcome(
        [("embedded", 6_000_000, "embedded"), ("reused", 3_000_000, "reused"), ("rejected: <b>", 1, "rejected-0")]
    )
    assert titles(chart) == ["embedded: 6,000,000 rows", "reused: 3,000,000 rows", "rejected: <b>: 1 row"]
    assert [shape.color for shape in chart.shapes] == ["embedded", "reused", "rejected-0"]
    embedded, reused, rejected = (area.width for area in chart.areas)
    assert embedded / reused == pytest.approx(2, rel=0.01)
    assert rejected > 1
    assert embedded + reused + rejected == pytest.approx(chart.width)
    assert_inside(chart)


def test_size_histogram() -> None:
    """Sizes above the model's limit have the limit's color; the largest ones share a column."""
    chart = plots.size_histogram({2: 1, 12: 3456, 77: 5, 128: 1728}, "tokens", 77, 128)
    assert titles(chart) == [
        "2 tokens: 1 row",
        "12 tokens: 3,456 rows",
        "77 tokens: 5 rows",
        "128 or more tokens: 1,728 rows",
    ]
    within, beyond = chart.shapes
    assert (within.color, beyond.color) == ("embedded", "limit")
    assert heights(within)[12] == pytest.approx(2 * heights(beyond)[128], rel=0.01)
    assert heights(within)[77] > heights(within)[128] == 0
    assert heights(beyond)[128] > heights(beyond)[77] == 0
    assert {"0", "1,000", "2,000", "3,000", "rows", "20", "120"} <= set(labels(chart))
    assert_inside(chart)


def test_sizes_of_a_wide_range_share_columns() -> None:
    """So the page stays small; those that are measured are from one size to another."""
    counts = {100: 1, 4032: 7, 4079: 2, 8192: 5}
    chart = plots.size_histogram(counts, "pixels", None, 8192)
    assert titles(chart) == [
        "100 to 199 pixels: 1 row",
        "4,000 to 4,099 pixels: 9 rows",
        "8,100 or more pixels: 5 rows",
    ]
    assert len(columns(chart.shapes[0])) == 82
    assert {"0", "2,000", "8,000"} <= set(labels(chart))
    assert_inside(chart)
    chart = plots.size_histogram({0: 3, 12: 1, 600: 2}, "seconds", None, 600, continuous=True)
    assert titles(chart) == ["0 to 5 seconds: 3 rows", "10 to 15 seconds: 1 row", "600 or more seconds: 2 rows"]
    assert titles(plots.size_histogram({0: 3}, "seconds", None, 600, continuous=True)) == ["0 to 1 seconds: 3 rows"]
    assert_inside(chart)


def test_the_limit_of_the_model_is_marked() -> None:
    """Also if no text comes near it; a head without a limit has no mark."""
    chart = plots.size_histogram({3: 1}, "tokens", 77, 128)
    assert "limit: 77 tokens" in labels(chart)
    assert chart.limit
    assert chart.name == "Rows by number of tokens; the model reads 77"
    chart = plots.size_histogram({0: 1, 3: 2}, "pages", None, 9)
    assert labels(chart) == ["0", "1", "2", "rows", "0", "1", "2", "3"]
    assert titles(chart) == ["0 pages: 1 row", "3 pages: 2 rows"]
    assert not chart.limit
    assert chart.name == "Rows by number of pages"
    assert_inside(plots.size_histogram({0: 1}, "pages", None, 9))


def test_the_mark_of_a_low_limit_stays_inside() -> None:
    """It begins at the limit instead of ending there."""
    chart = plots.size_histogram({300: 1}, "pages", 3, 400)
    assert next(label.anchor for label in chart.labels if label.words == "limit: 3 pages") == "start"
    assert_inside(chart)


def test_vector_norms() -> None:
    """A column says from which norm to which."""
    chart = plots.vector_norms({0: 1000, 7: 1})
    assert titles(chart) == ["norm 0.9946 to 1.005: 1,000 rows", "norm 1.073 to 1.085: 1 row"]
    assert labels(chart)[-3:] == ["1", "1.05", "1.1"]
    assert_inside(chart)


@given(st.dictionaries(st.integers(-9000, 9000), st.integers(1, 10**9), min_size=1, max_size=40))
def test_norms_of_any_spread_lose_no_row(norm_bins: dict[int, int]) -> None:
    """From one bin to norms that differ by the whole range of float32: few bars, each row in one, and some labels."""
    chart = plots.vector_norms(norm_bins)
    shown = [title.rpartition(": ")[2].split()[0].replace(",", "") for title in titles(chart)]
    assert len(shown) <= plots.NORM_BARS
    assert sum(map(int, shown)) == sum(norm_bins.values())
    assert 2 <= sum(label.y > 180 for label in chart.labels) <= 8
    assert_inside(chart)


def test_rows_per_second() -> None:
    """Rows that were written are in layers upon each other; both parts show the same on hover."""
    chart = plots.rows_per_second(PACE)
    spans = titles(chart)
    assert spans[:3] == spans[3:]
    assert spans[1].splitlines() == [
        "second 2 to 4",
        "read: 50 rows per second",
        "embedded: 250 rows per second",
        "reused: 0 rows per second",
        "rejected: 5 rows per second",
    ]
    assert [shape.color for shape in chart.shapes] == ["read", "embedded", "reused", "rejected-0"]
    read, embedded, reused, rejected = map(heights, chart.shapes)
    assert read[0] == pytest.approx(9 * read[1], rel=0.01)
    assert embedded[1] == pytest.approx(1.25 * embedded[2], rel=0.01)
    assert reused[0] == pytest.approx(embedded[1] * 45 / 250, rel=0.01)
    assert rejected[1] == pytest.approx(embedded[1] * 5 / 250, rel=0.01)
    _, bottom, _, top = map(columns, chart.shapes)
    assert top[1][1] == bottom[1][0]
    assert labels(chart)[-4:] == ["0", "2", "4", "6"]
    assert_inside(chart)


def test_a_run_without_rows() -> None:
    """Its charts are empty."""
    pace: Pace = {"seconds": 1, "rows": {name: [0] for name in PACE["rows"]}}
    chart = plots.rows_per_second(pace)
    assert chart.shapes == []
    assert titles(chart) == ["second 0 to 1\nread: 0 rows per second"] * 2
    assert_inside(chart)


def test_seconds_by_stage() -> None:
    """Each stage has its name and its seconds, and all of its line can be pointed at."""
    chart = plots.seconds_by_stage({"read_seconds": 1.5, "model_seconds": 1234.5})
    assert titles(chart) == ["read: 1.50 s", "prepare: 0.00 s", "model: 1,234.50 s", "write: 0.00 s"]
    assert labels(chart) == ["read", "1.5 s", "prepare", "0 s", "model", "1,234 s", "write", "0 s"]
    assert {area.width for area in chart.areas} == {chart.width}
    assert_inside(chart)


def test_sample_map() -> None:
    """Dots are spread over the chart, higher values above; equal values are in the middle."""
    chart = plots.sample_map(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), ["a", "</title><script>&", "c"])
    a, b, c = chart.dots
    assert titles(chart) == ["a", "</title><script>&", "c"]
    assert a.x < c.x == chart.width / 2 < b.x
    assert a.y < c.y == chart.height / 2 < b.y
    (dot,) = plots.sample_map(np.array([[3.0, 3.0]]), ["a"]).dots
    assert (dot.x, dot.y) == (chart.width / 2, chart.height / 2)
    assert_inside(chart)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e9), st.integers(1, 10), st.booleans())
def test_ticks_are_round_numbers(low: float, length: float, most: int, whole: bool) -> None:
    """Within the axis, at most one more than there may be steps, and whole if only whole numbers make sense."""
    high = low + length
    assume(length > 1e-6 * abs(low))
    ticks = plots.nice_ticks(low, high, most, whole=whole)
    assert len(ticks) <= most + 1
    assert len(ticks) >= (0 if whole else most // 3)
    assert all(low - 1e-6 * length <= tick <= high + 1e-6 * length for tick in ticks)
    steps = np.diff(ticks)
    if len(steps):
        assert steps == pytest.approx(steps[0], rel=1e-3)
        factor = steps[0] / 10 ** np.floor(np.log10(steps[0] * 1.0001))
        assert min(abs(factor - round_number) for round_number in (1, 2, 5)) < 1e-2
    if whole:
        assert all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (99.94, "99.9"), (1234.4, "1,234"), (12_345, "12.35k"), (2e6, "2M"), (3e9, "3G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    """So that they fit beside an axis or a bar of a narrow chart."""
    assert labels(plots.seconds_by_stage(dict.fromkeys(SECONDS, value))).count(f"{text} s") == len(SECONDS)
