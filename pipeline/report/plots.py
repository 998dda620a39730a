"""The charts of report.html as plain data: where their shapes, lines and labels are. The page's template draws them.

Lengths are in units of which a phone shows each as about one pixel. Colors are names of the page's CSS variables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...model.messages import plural
from ..metrics import SECONDS, Pace
from ..writers.statistics import NORM_BINS, norm_of

NORM_BARS = 60  # at most, in the chart of norms
SIZE_BARS = 140  # the same, in that of sizes

_WIDTH = 340  # of most charts
_LEAST_PIECE = 1.5  # of an outcome, so that a single row among millions can be seen and pointed at
_MAP_MARGIN = 16


@dataclass(frozen=True)
class Shape:
    """A filled shape; `path` is SVG's path data."""

    path: str
    color: str


@dataclass(frozen=True)
class Label:
    """A label whose middle is at the height `y`, and its `anchor` (start, middle or end) at `x`."""

    words: str
    x: float
    y: float
    anchor: str = "middle"
    color: str = "soft"


@dataclass(frozen=True)
class Area:
    """A rectangle that shows lines on hover."""

    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Dot:
    """A dot that shows its label on hover."""

    x: float
    y: float
    words: str


@dataclass
class Chart:
    """A chart.

    Attributes:
        name: What screen readers call it.
        width: In SVG's units.
        height: The same.
        stretch: Whether its sides scale apart.
        grid: Lines, as SVG's path data.
        limit: The line of a limit, likewise.
        shapes: What is drawn.
        labels: What is written.
    """

    name: str
    width: float
    height: float
    stretch: bool = False
    grid: str = ""
    limit: str = ""
    shapes: list[Shape] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)


def rejected_color(number: int) -> str:
    """Return the name of the color of the rejection reason with this number."""
    return f"rejected-{number % 6}"


def rows_by_outcome(pieces: Sequence[tuple[str, int, str]]) -> Chart:
    """Return one bar in `pieces` of name, rows and color, without labels: the page stretches it to its section."""
    chart = Chart("Rows by outcome", _WIDTH, 28, stretch=True)
    scale = (chart.width - _LEAST_PIECE * len(pieces)) / max(sum(rows for _, rows, _ in pieces), 1)
    x = 0.0
    for name, rows, color in pieces:
        width = _LEAST_PIECE + rows * scale
        chart.shapes.append(Shape(_bar(x, 0, width, chart.height), color))
        chart.areas.append(Area(x, 0, width, chart.height, (f"{name}: {plural(rows, 'row')}",)))
        x += width
    return chart


def size_histogram(
    counts: Mapping[int, int], unit: str, limit: int | None, cap: int, *, continuous: bool = False
) -> Chart:
    """Return the rows by the size of what was embedded.

    Args:
        counts: Rows by size, a whole number of `unit`.
        unit: What sizes count, in the plural.
        limit: The size up to which the model reads all; None if it has no limit.
        cap: The size under which larger ones are counted, too.
        continuous: Whether a size is rounded down, and not a count.
    """
    last = max([0 if limit is None else limit + 5, *counts])
    step = 1 if last < SIZE_BARS else int(nice_ticks(0, last, SIZE_BARS - 1, whole=True)[1])
    rows = [0] * (last // step + 1)
    for size, number in counts.items():
        rows[size // step] += number
    firsts = [step * place for place in range(len(rows))]
    within = [number if limit is None or first <= limit else 0 for first, number in zip(firsts, rows, strict=True)]
    beyond = [number - part for number, part in zip(rows, within, strict=True)]
    chart = Chart(f"Rows by number of {unit}", _WIDTH, 200)
    shift = 0.0 if continuous or step > 1 else 0.5  # a column of one whole number is around its tick
    columns = _Columns(chart, 20, 172, [step * place - shift for place in range(len(rows) + 1)])
    titles = [
        (f"{_size_range(first, step, cap, continuous=continuous)} {unit}: {plural(number, 'row')}",) if number else ()
        for first, number in zip(firsts, rows, strict=True)
    ]
    columns.draw({"embedded": within, "limit": beyond}, titles, whole=True)
    columns.label((tick, f"{tick:,g}") for tick in nice_ticks(columns.first, columns.last, 7, whole=True))
    if limit is not None:
        x = columns.x(limit + 0.5)
        chart.name += f"; the model reads {limit}"
        chart.limit = f"M{x:.5g} 14V172"
        chart.labels.append(Label(f"limit: {limit} {unit}", x, 8, "end" if 2 * x > _WIDTH else "start", "limit"))
    return chart


def _size_range(first: int, step: int, cap: int, *, continuous: bool) -> str:
    """Return the sizes of a column that begins with `first`, in words."""
    if first + step > cap:
        return f"{first:,} or more"
    if continuous:
        return f"{first:,} to {first + step:,}"
    return f"{first:,}" if step == 1 else f"{first:,} to {first + step - 1:,}"


def vector_norms(norm_bins: Mapping[int, int]) -> Chart:
    """Return the rows by the norm of their vector; `norm_bins` is that of FileStats."""
    first, last = min(norm_bins, default=0), max(norm_bins, default=0)
    step = -(-(last - first + 1) // NORM_BARS)
    rows = [0] * ((last - first) // step + 1)
    for number, count in norm_bins.items():
        rows[(number - first) // step] += count
    edges = [first - 0.5 + step * number for number in range(len(rows) + 1)]
    norms = norm_of(np.array(edges)).tolist()
    titles = [
        (f"norm {low:.4g} to {high:.4g}: {plural(number, 'row')}",) if number else ()
        for (low, high), number in zip(pairwise(norms), rows, strict=True)
    ]
    chart = Chart("Rows by the norm of their vector", _WIDTH, 200)
    margin = max(0.0, (12 - (edges[-1] - edges[0])) / 2) + step
    columns = _Columns(chart, 20, 172, edges, margin)
    columns.draw({"reused": rows}, titles, whole=True)
    ticks = _norm_ticks(*norm_of(np.array([columns.first, columns.last])).tolist())
    columns.label((math.log2(tick) * NORM_BINS, f"{tick:g}") for tick in ticks)  # the inverse of norm_of
    return chart


def rows_per_second(pace: Pace) -> Chart:
    """Return the rows read per second over the run and, below, the rows finished, by outcome."""
    width = pace["seconds"]
    rates = {outcome: [number / width for number in rows] for outcome, rows in pace["rows"].items()}
    edges = [width * span for span in range(len(rates["read"]) + 1)]
    outcomes = [name for name in ("embedded", "reused", "rejected") if any(rates[name])]
    titles = [
        (
            f"second {first:,} to {last:,}",
            *(f"{name}: {_number(rates[name][span])} rows per second" for name in ("read", *outcomes)),
        )
        for span, (first, last) in enumerate(pairwise(edges))
    ]
    chart = Chart("Rows per second over the run", _WIDTH, 250)
    _Columns(chart, 22, 72, edges).draw({"read": rates["read"]}, titles, "rows read per second", ticks=2)
    lower = _Columns(chart, 112, 222, edges)
    layers = {rejected_color(0) if name == "rejected" else name: rates[name] for name in outcomes}
    lower.draw(layers, titles, "rows written per second", ticks=3)
    lower.label((tick, f"{tick:,g}") for tick in nice_ticks(0, edges[-1], 5, whole=True))
    return chart


def seconds_by_stage(seconds: Mapping[str, float]) -> Chart:
    """Return the seconds of each stage, summed over all workers."""
    chart = Chart("Seconds by stage", _WIDTH, 200)
    longest = max([1e-9, *(seconds.get(key, 0) for key in SECONDS)])
    for place, key in enumerate(SECONDS):
        name, value, y = key.removesuffix("_seconds"), seconds.get(key, 0), 29.5 + 47 * place
        length = 204 * value / longest
        chart.shapes.append(Shape(_bar(66, y - 14, length, 28), "embedded"))
        chart.labels.append(Label(name, 62, y, "end"))
        chart.labels.append(Label(f"{_number(value)} s", 72 + length, y, "start", "ink"))
        chart.areas.append(Area(0, y - 23.5, chart.width, 47, (f"{name}: {value:,.2f} s",)))
    return chart


def sample_map(places: NDArray[np.float64], labels: Sequence[str]) -> Chart:
    """Return a dot at each of `places` [n, 2], which shows its label on hover."""
    chart = Chart(f"Map of {plural(len(labels), 'row')}", 480, 365)
    low = places.min(axis=0)
    spread = places.max(axis=0) - low
    shares = np.divide(places - low, spread, out=np.full(places.shape, 0.5), where=spread > 0)
    room = np.array([chart.width, chart.height]) - 2 * _MAP_MARGIN
    for (x, y), label in zip((_MAP_MARGIN + shares * room).tolist(), labels, strict=True):
        chart.dots.append(Dot(x, chart.height - y, label))
    return chart


class _Columns:
    """A part of a chart with columns.

    Args:
        chart: The chart.
        top: The height at which the part begins.
        bottom: The height at which it ends.
        edges: The values [n + 1] between each two of which there is a column.
        margin: How much of the axis is empty on both sides.
    """

    def __init__(self, chart: Chart, top: float, bottom: float, edges: Sequence[float], margin: float = 0) -> None:
        self._chart, self._top, self._bottom, self._edges = chart, top, bottom, edges
        self._left, self._right = 44, chart.width - 6
        self.first, self.last = edges[0] - margin, edges[-1] + margin

    def x(self, value: float) -> float:
        """Return the place of a value on the horizontal axis."""
        return self._left + (value - self.first) / (self.last - self.first) * (self._right - self._left)

    def draw(
        self,
        layers: Mapping[str, Sequence[float]],
        titles: Sequence[tuple[str, ...]],
        name: str = "rows",
        *,
        ticks: int = 5,
        whole: bool = False,
    ) -> None:
        """Draw layers of columns upon each other, by color, and a vertical axis from 0 with a grid and its name.

        Each column shows its title, if it is not empty, on hover anywhere above it, however low it is.
        """
        sums = [sum(values) for values in zip(*layers.values(), strict=True)] or [0]
        most = (max(sums) or 1) * 1.02

        def y(value: float) -> float:
            return self._bottom - value / most * (self._bottom - self._top)

        xs = [self.x(edge) for edge in self._edges]
        base: Sequence[float] = [0] * len(titles)
        for color, values in layers.items():
            tops = [low + value for low, value in zip(base, values, strict=True)]
            if any(values):
                self._chart.shapes.append(Shape(_stairs(xs, [*map(y, base)], [*map(y, tops)]), color))
            base = tops
        for tick in nice_ticks(0, most, ticks, whole=whole):
            self._chart.grid += f"M{self._left} {y(tick):.5g}H{self._right}"
            self._chart.labels.append(Label(_number(tick), self._left - 4, y(tick), "end"))
        self._chart.labels.append(Label(name, 6, self._top - 12, "start"))
        for (left, right), title in zip(pairwise(xs), titles, strict=True):
            if title:
                self._chart.areas.append(Area(left, self._top, right - left, self._bottom - self._top, title))

    def label(self, ticks: Iterable[tuple[float, str]]) -> None:
        """Write a label below the horizontal axis at each value."""
        self._chart.labels.extend(Label(words, self.x(value), self._bottom + 13) for value, words in ticks)


def nice_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten from `low` to `high`, with at most `most` steps.

    Args:
        low: the first value of the axis.
        high: the last value of the axis, above `low`.
        most: the largest number of steps.
        whole: whether only whole numbers make sense.
    """
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next((size * factor for factor in (1, 2, 5) if size * factor * most >= high - low), size * 10)
    step = max(step, 1.0) if whole else step
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _norm_ticks(low: float, high: float) -> list[float]:
    """Return norms for the ticks between `low` and `high`: round numbers, or powers of ten over a wide range."""
    if high <= 8 * low:
        return nice_ticks(low, high, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high <= 100 * low else (1,)
    ticks = [factor * 10.0**power for power in powers[:: max(1, len(powers) // 4)] for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _bar(x: float, y: float, width: float, height: float) -> str:
    """Return the path of a rectangle."""
    return f"M{x:.5g} {y:.5g}h{width:.5g}v{height:.5g}h{-width:.5g}z"


def _stairs(xs: Sequence[float], bases: Sequence[float], tops: Sequence[float]) -> str:
    """Return the path around n columns.

    Args:
        xs: Their sides [n + 1].
        bases: Their lower ends [n].
        tops: Their upper ends [n].
    """
    forth = [f"V{top:.5g}H{x:.5g}" for top, x in zip(tops, xs[1:], strict=True)]
    back = [f"V{base:.5g}H{x:.5g}" for base, x in zip(bases[::-1], xs[-2::-1], strict=True)]
    return "".join([f"M{xs[0]:.5g} {bases[0]:.5g}", *forth, *back, "z"])


def _number(value: float) -> str:
    """Return a number in a few characters: 0.25, 7.5, 980, 12.5k, 3M."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
