"""The charts of report.html: each function returns one SVG element that shows its values on hover.

Matplotlib draws them, and is imported here alone and only inside functions: a job does not need it until its page is
written. The SVG is then fitted into the page: it scales with its section, takes its colors and fonts from the page's CSS,
and has neither a fixed size nor an id that could occur twice.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..metrics import SECONDS, Pace
from ..terminal import plural, printable
from ..writers.statistics import NORM_BINS, norm_of

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

MODEL_TOKENS = 77  # tokens of a text that the model reads, start and end included
MAX_TOKENS = 128
NORM_BARS = 60  # at most, in the chart of norms

# CSS variables of the page that stand for a color. Matplotlib knows no CSS, so it draws with one made-up color each.
COLORS = ("ink", "soft", "line", "hover", "embedded", "reused", "read", "limit", *(f"rejected-{n}" for n in range(6)))


def _drawn(color: str) -> str:
    """Return the color with which matplotlib draws for the CSS variable `color`."""
    return f"#0000{COLORS.index(color) + 1:02x}"


_UNITS_PER_INCH = 72
_WIDTH = 340  # of most charts, in units that a phone shows as about one pixel each
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "audioclip-beam",  # ids are the same in each run
    "font.size": 12.0,
    "axes.edgecolor": _drawn("line"),
    "axes.linewidth": 1.0,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _drawn("line"),
    "grid.linewidth": 1.0,
    "xtick.color": _drawn("soft"),
    "ytick.color": _drawn("soft"),
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.major.pad": 7.0,
    "path.simplify": False,
}


def rejected_color(number: int) -> str:
    """Return the name of the color of the rejection reason with this number."""
    return f"rejected-{number % 6}"


def rows_by_outcome(pieces: Sequence[tuple[str, int, str]]) -> Markup:
    """Draw one bar in `pieces` of name, rows and color, without text: the page stretches it to its section."""
    with _chart("outcomes", _WIDTH, 28) as chart:
        axes = chart.axes(left=0, bottom=0, right=0, top=0)
        axes.set_axis_off()
        start = 0
        for name, rows, color in pieces:
            (bar,) = axes.barh([0], [rows], left=start, height=1, color=_drawn(color), linewidth=0)
            chart.add_title(bar, f"{printable(name)}: {plural(rows, 'row')}")
            start += rows
        axes.set(xlim=(0, max(start, 1)), ylim=(-0.5, 0.5))
        return chart.svg("Rows by outcome", stretch=True)


def tokens_per_text(token_counts: Mapping[int, int]) -> Markup:
    """Draw the rows by their number of tokens, with the model's limit."""
    last = max(82, *token_counts, 0) + 1
    rows = np.array([token_counts.get(tokens, 0) for tokens in range(last)])
    edges = np.arange(last + 1) - 0.5
    with _chart("tokens", _WIDTH, 200) as chart:
        axes = chart.axes(left=44, bottom=28, right=4, top=20)
        for part, color in ((slice(0, MODEL_TOKENS + 1), "embedded"), (slice(MODEL_TOKENS + 1, last), "limit")):
            axes.stairs(rows[part], edges[part.start : part.stop + 1], fill=True, color=_drawn(color), linewidth=0)
        limit = MODEL_TOKENS + 0.5
        axes.axvline(limit, ymax=1.04, color=_drawn("limit"), linestyle=(0, (4, 3)), linewidth=1.2, clip_on=False)
        axes.text(
            limit, 1.05, f"limit: {MODEL_TOKENS} tokens", transform=axes.get_xaxis_transform(), ha="right",
            color=_drawn("limit"),
        )  # fmt: skip
        _rows_axis(axes, rows)
        axes.set_xlim(-0.5, last - 0.5)
        axes.set_xticks(range(0, last, 20))
        filled = np.flatnonzero(rows)
        names = [f"{tokens} or more tokens" if tokens == MAX_TOKENS else f"{tokens} tokens" for tokens in filled]
        titles = [f"{name}: {plural(rows[tokens], 'row')}" for name, tokens in zip(names, filled, strict=True)]
        chart.add_hover(axes, edges[filled], edges[filled + 1], titles)
        return chart.svg("Rows by number of tokens; the model reads 77")


def vector_norms(norm_bins: Mapping[int, int]) -> Markup:
    """Draw the rows by the norm of their vector; `norm_bins` is that of FileStats."""
    first, last = min(norm_bins, default=0), max(norm_bins, default=0)
    step = -(-(last - first + 1) // NORM_BARS)
    bars = np.zeros((last - first) // step + 1, np.int64)
    for number, count in norm_bins.items():
        bars[(number - first) // step] += count
    edges: NDArray[np.float64] = np.arange(len(bars) + 1, dtype=np.float64) * step + (first - 0.5)
    margin = max(0.0, (12 - (edges[-1] - edges[0])) / 2) + step
    low, high = edges[0] - margin, edges[-1] + margin
    with _chart("norms", _WIDTH, 200) as chart:
        axes = chart.axes(left=44, bottom=28, right=4, top=20)
        axes.stairs(bars, edges, fill=True, color=_drawn("reused"), linewidth=0)
        _rows_axis(axes, bars)
        axes.set_xlim(low, high)
        ticks = _norm_ticks(*norm_of(np.array([low, high])))
        axes.set_xticks(_bin_of(ticks), [f"{tick:g}" for tick in ticks])
        filled, norms = np.flatnonzero(bars), norm_of(edges)
        titles = [f"norm {norms[n]:.4g} to {norms[n + 1]:.4g}: {plural(bars[n], 'row')}" for n in filled]
        chart.add_hover(axes, edges[filled], edges[filled + 1], titles)
        return chart.svg("Rows by the norm of their vector")


def rows_per_second(pace: Pace) -> Markup:
    """Draw the rows read per second over the run and, below, the rows finished, by outcome."""
    width = pace["seconds"]
    rates = {outcome: np.array(rows) / width for outcome, rows in pace["rows"].items()}
    spans = len(rates["read"])
    edges = width * np.arange(spans + 1)
    outcomes = [name for name in ("embedded", "reused", "rejected") if rates[name].any()]
    with _chart("pace", _WIDTH, 250) as chart:
        upper = chart.axes(left=44, bottom=178, right=8, top=22)
        lower = chart.axes(left=44, bottom=28, right=8, top=112)
        upper.stairs(rates["read"], edges, fill=True, color=_drawn("read"), linewidth=0)
        base = np.zeros(spans)
        for name in outcomes:
            color = rejected_color(0) if name == "rejected" else name
            lower.stairs(base + rates[name], edges, baseline=base.copy(), fill=True, color=_drawn(color), linewidth=0)
            base += rates[name]
        for axes, name, values, ticks in ((upper, "read", rates["read"], 2), (lower, "written", base, 3)):
            _rows_axis(axes, values, f"rows {name} per second", ticks)
            axes.set_xlim(0, edges[-1])
        upper.set_xticks([])
        lower.xaxis.set_major_locator(_nice_ticks(5))
        lower.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        titles = [
            "\n".join(
                [
                    f"second {edges[span]:,} to {edges[span + 1]:,}",
                    *(f"{name}: {_number(rates[name][span])} rows per second" for name in ("read", *outcomes)),
                ]
            )
            for span in range(spans)
        ]
        for axes in (upper, lower):
            chart.add_hover(axes, edges[:-1], edges[1:], titles)
        return chart.svg("Rows per second over the run")


def seconds_by_stage(seconds: Mapping[str, float]) -> Markup:
    """Draw the seconds of each stage, summed over all workers."""
    names = [name.removesuffix("_seconds") for name in SECONDS]
    values = [float(seconds.get(name, 0)) for name in SECONDS]
    longest = max(*values, 1e-9)
    with _chart("stages", _WIDTH, 200) as chart:
        axes = chart.axes(left=66, bottom=6, right=70, top=6)
        axes.spines["bottom"].set_visible(False)
        bars = axes.barh(range(len(names)), values, height=0.6, color=_drawn("embedded"), linewidth=0)
        axes.set(xlim=(0, longest), ylim=(len(names) - 0.5, -0.5), xticks=[])
        axes.set_yticks(range(len(names)), names)
        for place, (bar, name, value) in enumerate(zip(bars, names, values, strict=True)):
            chart.add_title(bar, f"{name}: {value:,.2f} s")
            axes.annotate(
                f"{_number(value)} s", (value, place), xytext=(6, 0), textcoords="offset points", va="center_baseline",
                color=_drawn("ink"),
            )  # fmt: skip
        return chart.svg("Seconds by stage")


def sample_map(places: NDArray[np.float64], texts: Sequence[str]) -> Markup:
    """Draw a point at each of `places` [n, 2], which shows its text on hover."""
    with _chart("map", 480, 365) as chart:
        axes = chart.axes(left=8, bottom=8, right=8, top=8)
        axes.set_axis_off()
        points = axes.scatter(places[:, 0], places[:, 1], s=9**2, color=_drawn("embedded"), linewidths=0)
        chart.add_title(points, *map(printable, texts))
        return chart.svg(f"Map of {len(texts)} texts")


@contextmanager
def _chart(name: str, width: int, height: int) -> Iterator[_Chart]:
    """Give a new chart; while it is drawn, matplotlib has its own defaults, whatever a matplotlibrc of the user says."""
    # Matplotlib warns on import if it cannot write its cache of fonts. The page is the same, so users need not know.
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            yield _Chart(name, width, height)
    finally:
        logger.setLevel(level)


class _Chart:
    """A figure of `width` by `height` units, and what its artists show on hover."""

    def __init__(self, name: str, width: int, height: int) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._name, self._width, self._height = name, width, height
        self._figure = Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), dpi=_UNITS_PER_INCH)
        self._figure.patch.set_visible(False)
        FigureCanvasSVG(self._figure)
        self._titles: dict[str, tuple[str, ...]] = {}

    def axes(self, *, left: float, bottom: float, right: float, top: float) -> Axes:
        """Add axes that leave these margins, in units."""
        width, height = self._width - left - right, self._height - bottom - top
        axes = self._figure.add_axes(
            (left / self._width, bottom / self._height, width / self._width, height / self._height)
        )
        axes.patch.set_visible(False)
        return axes

    def add_title(self, artist: Artist, *titles: str) -> None:
        """Show a title on hover for each shape of the artist."""
        gid = f"title-{len(self._titles)}"
        artist.set_gid(gid)
        self._titles[gid] = titles

    def add_hover(self, axes: Axes, left: NDArray[Any], right: NDArray[Any], titles: Sequence[str]) -> None:
        """Show a title on hover anywhere above each bar from `left` [n] to `right` [n], however low the bar is."""
        from matplotlib.collections import PolyCollection

        corners = [[(a, 0), (a, 1), (b, 1), (b, 0)] for a, b in zip(left.tolist(), right.tolist(), strict=True)]
        columns = PolyCollection(
            corners, transform=axes.get_xaxis_transform(), facecolors=_drawn("hover"), linewidths=0, zorder=3
        )
        axes.add_collection(columns, autolim=False)
        self.add_title(columns, *titles)

    def svg(self, label: str, *, stretch: bool = False) -> Markup:
        """Return the SVG element, which screen readers call `label`; `stretch` lets its sides scale apart."""
        from markupsafe import Markup

        file = io.BytesIO()
        self._figure.savefig(file, format="svg", metadata={"Date": None})
        root = _fit_into_page(ElementTree.fromstring(file.getvalue()), self._name, self._titles)
        attributes = {"class": "chart", "role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"]}
        root.attrib = attributes | ({"preserveAspectRatio": "none"} if stretch else {})
        # ElementTree escapes texts and attributes.
        return Markup(ElementTree.tostring(root, encoding="unicode"))


def _fit_into_page(root: ElementTree.Element, name: str, titles: Mapping[str, tuple[str, ...]]) -> ElementTree.Element:
    """Change an SVG document of matplotlib into an element for an HTML page, with `titles` by id."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text = element.text and element.text.strip()
        element.tail = None
        element.attrib.pop("clip-path", None)  # all is drawn inside its axes
        element.attrib = {key.rpartition("}")[2]: _page_value(key, value) for key, value in element.attrib.items()}
    for child in [child for child in root if child.tag in ("metadata", "defs")]:
        root.remove(child)  # who made it, and a style sheet that would apply to the whole page
    for gid, texts in titles.items():
        _add_titles(root, gid, texts)
    used = re.findall(r'"#([^"]+)"', ElementTree.tostring(root, encoding="unicode"))
    ids = {old: f"{name}-{number}" for number, old in enumerate(dict.fromkeys(used))}
    for element in root.iter():
        if "id" in element.attrib:
            old = element.attrib.pop("id")
            element.attrib.update({"id": ids[old]} if old in ids else {})
        if "href" in element.attrib:
            element.set("href", "#" + ids[element.attrib["href"][1:]])
    return _without_empty_groups(root)


def _add_titles(root: ElementTree.Element, gid: str, texts: tuple[str, ...]) -> None:
    group = next(element for element in root.iter() if element.get("id") == gid)
    shapes = list(group.iter("use")) or list(group.iter("path"))
    for shape, text in zip(shapes, texts, strict=True):
        title = ElementTree.Element("title")
        title.text = text
        shape.insert(0, title)
        shape.set("class", "value")


def _page_value(key: str, value: str) -> str:
    """Return an attribute's value with CSS variables for colors, the page's font, and no more digits than are seen."""
    value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    if key == "style":
        value = re.sub(r"#0000([0-9a-f]{2})", lambda color: f"var(--{COLORS[int(color[1], 16) - 1]})", value)
        return "; ".join(part for part in value.split("; ") if not part.startswith("font"))
    return " ".join(value.split())


def _without_empty_groups(element: ElementTree.Element) -> ElementTree.Element:
    """Return the element with the children of groups that have no attributes in place of those groups."""
    children: list[ElementTree.Element] = []
    for child in element:
        _without_empty_groups(child)
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = children
    return element


def _rows_axis(axes: Axes, values: NDArray[Any], name: str = "rows", ticks: int = 4) -> None:
    """Give `axes` a vertical axis from 0 for `values`, with grid lines and its name above."""
    axes.set_ylim(0, (float(values.max(initial=0)) or 1) * 1.02)
    axes.yaxis.set_major_locator(_nice_ticks(ticks, whole=values.dtype.kind == "i"))
    axes.yaxis.set_major_formatter(lambda value, _: _number(value))
    axes.grid(axis="y")
    axes.annotate(
        name, (0, 1), xycoords="axes fraction", xytext=(-38, 8), textcoords="offset points", color=_drawn("soft")
    )


def _nice_ticks(most: int, *, whole: bool = False) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, steps=[1, 2, 5, 10], integer=whole)


def _norm_ticks(low: float, high: float) -> NDArray[np.float64]:
    """Return norms for the ticks between `low` and `high`: round numbers, or powers of ten over a wide range."""
    if high > 8 * low:
        powers = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
        return np.asarray(10.0 ** powers[:: max(1, len(powers) // 4)])
    ticks = np.asarray(_nice_ticks(5).tick_values(low, high), np.float64)
    return ticks[(ticks > low) & (ticks < high)]


def _bin_of(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the places of norms on an axis of bins: the inverse of `norm_of`."""
    return np.asarray(np.log2(norms) * NORM_BINS)


def _number(value: float) -> str:
    """Return a number in a few characters: 0.25, 7.5, 980, 12.5k, 3M."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
