"""report.html: one page over a snapshot that opens offline, in light and dark."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from numpy.typing import NDArray

from ..io.filesystem import is_local, upload
from ..metrics import SECONDS
from ..snapshots.commit import read_manifest
from ..snapshots.manifest import Manifest
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import iter_rows, open_snapshot
from ..terminal import printable
from ..writers.statistics import MAX_TOKENS, FileStats, norm_of
from .sample import sample

NAME = "report.html"

TEXT_CELLS = 120

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>
:root {{ --ink: #1d2430; --soft: #667085; --page: #f6f7f9; --card: #ffffff; --line: #e4e7ec;
  --warn: #b54708; --mark: #fef0c7 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e9ef; --soft: #98a2b3; --page: #12151b; --card: #1b2029; --line: #2d3440;
    --warn: #fdb022; --mark: #4e3a12 }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0; padding: 32px 20px; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }}
main {{ max-width: 1120px; margin: auto; display: grid; gap: 16px; grid-template-columns: repeat(12, 1fr) }}
header, section {{ grid-column: span 12; min-width: 0 }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px }}
@media (min-width: 900px) {{ section.half {{ grid-column: span 6 }} }}
h1 {{ font-size: 22px; margin: 0 }} h2 {{ font-size: 15px; margin: 0 0 8px }} p {{ margin: 4px 0; color: var(--soft) }}
.untrained {{ background: var(--mark); color: var(--warn); padding: 8px 14px; border-radius: 8px; font-weight: 600 }}
.figures {{ display: flex; flex-wrap: wrap; gap: 8px 36px }} .figures b {{ display: block; font-size: 22px }}
.figures span {{ color: var(--soft) }}
table {{ border-collapse: collapse; width: 100%; table-layout: fixed }}
td, th {{ text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; font-weight: 400 }}
th {{ color: var(--soft); width: 34% }} td.n {{ width: 70px; font-variant-numeric: tabular-nums; color: var(--soft) }}
</style><script>{script}</script></head><body><main>
{body}
</main><script>
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint() {{
  const of = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {{
    const change = {{"font.color": of("--ink"), "hoverlabel.bgcolor": of("--card"), "hoverlabel.font.color": of("--ink")}};
    for (const axis of ["xaxis", "yaxis", "yaxis2"]) {{
      change[axis + ".gridcolor"] = of("--line"); change[axis + ".linecolor"] = of("--line");
    }}
    Plotly.relayout(plot, change);
  }}
}}
paint(); dark.addEventListener("change", paint);
</script></body></html>
"""


def render(manifest: Manifest, stats: FileStats, rows: pa.Table, before: Manifest | None) -> str:
    """The page: `stats` hold the histograms, `rows` its sample, `before` the snapshot before this."""
    from plotly.offline import get_plotlyjs

    parts = [
        _header(manifest),
        _section("Rows", _figures(manifest) + _plot(_bar(manifest), 170)),
        _section("Tokens a text", _plot(_tokens(stats, manifest), 300), half=True),
        _section("Length of the vectors", _plot(_norms(stats), 300), half=True),
        *_pace(manifest),
        _section("Where the time went, seconds of all workers", _plot(_stages(manifest), 220), half=True),
        _section("Since the snapshot before", _since(manifest, before), half=True),
        *_map_and_neighbours(rows),
        _section("Where it comes from", _provenance(manifest)),
    ]
    # A script of the page may not be ended by what stands in it; plotly's own text holds no such end.
    return _PAGE.format(
        title=_safe(f"audioclip-text {manifest['snapshot']}"), script=get_plotlyjs(), body="\n".join(parts)
    )


def write_report(output: str, manifest: Manifest, stats: FileStats) -> str:
    """Make the page of a run whose files are finished and give its name; raises whatever goes wrong with it."""
    directory = run_path(output, manifest["snapshot"])
    previous = manifest["previous"]
    before = read_manifest(output, previous) if previous else None
    data = render(manifest, stats, sample(directory, manifest["files"]), before).encode()
    path = FileSystems.join(directory, NAME)
    if is_local(directory):
        temporary = Path(f"{path}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
    else:
        upload(io.BytesIO(data), path, "text/html")
    return NAME


def report(output: str, *, remake: bool = False) -> str:
    """Path of the current snapshot's page, made from its part files where it is missing or is to be made again."""
    snapshot = open_snapshot(output)
    path: str = FileSystems.join(snapshot.path, NAME)
    if remake or not FileSystems.exists(path):
        stats = FileStats()
        for batch in iter_rows(snapshot, ("n_tokens", "embedding")):
            stats.add_vectors(batch)
        write_report(output, snapshot.manifest, stats)
    return path


def _safe(text: object, cells: int | None = None) -> str:
    """Text from anywhere, fit for the page: no control characters, no tags."""
    return html.escape(printable(str(text), cells))


def _section(title: str, body: str, *, half: bool = False) -> str:
    return f"<section{' class=half' if half else ''}><h2>{title}</h2>{body}</section>"


def _number(manifest: Manifest, name: str) -> int:
    value: object = manifest["counts"].get(name, 0)
    return value if isinstance(value, int) else 0


def _header(manifest: Manifest) -> str:
    note = (
        '<p class="untrained">The weights are untrained: these vectors try the machinery out and carry no meaning.</p>'
    )
    return (
        f"<header><h1>{_safe(manifest['snapshot'])}</h1><p>audioclip-text {_safe(manifest['tool_version'])}, "
        f"{_safe(manifest['created'])}</p>{note if manifest['weights'] == 'untrained' else ''}</header>"
    )


def _figures(manifest: Manifest) -> str:
    total = float(manifest["seconds"].get("total", 0))
    shown = [(f"{_number(manifest, name):,}", name) for name in ("read", "embedded", "reused", "rejected", "truncated")]
    shown += [(f"{_number(manifest, 'read') / total:,.0f}" if total else "-", "rows/s"), (f"{total:,.1f} s", "in all")]
    return (
        '<div class="figures">'
        + "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in shown)
        + "</div>"
    )


def _since(manifest: Manifest, before: Manifest | None) -> str:
    if before is None:
        return "<p>This is the first one.</p>"
    rows = [("snapshot", _safe(before["snapshot"]), _safe(manifest["snapshot"]))]
    for name in ("read", "embedded", "reused", "rejected", "model_texts"):
        rows.append((name, f"{_number(before, name):,}", f"{_number(manifest, name):,}"))
    changed = [
        part for part, value in manifest["fingerprint_parts"].items() if before["fingerprint_parts"].get(part) != value
    ]
    said = (
        f"<p>The fingerprint changed: {_safe(', '.join(changed))}.</p>"
        if changed
        else "<p>The fingerprint is the same.</p>"
    )
    return said + "<table>" + "".join(f"<tr><th>{a}</th><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows) + "</table>"


def _provenance(manifest: Manifest) -> str:
    rows = [
        ("checkpoint", f"{manifest['checkpoint']['name']} ({manifest['weights']})"),
        ("its sha256", manifest["checkpoint"]["sha256"]),
        ("fingerprint", manifest["fingerprint"]),
        *((f"fingerprint: {name}", value) for name, value in manifest["fingerprint_parts"].items()),
        *((f"--{name}", value) for name, value in manifest["options"].items()),
        ("files", f"{len(manifest['files']):,}, {sum(file['bytes'] for file in manifest['files']):,} bytes"),
        *(("note", note) for note in manifest["notes"]),
    ]
    return "<table>" + "".join(f"<tr><th>{_safe(a)}</th><td>{_safe(b)}</td></tr>" for a, b in rows) + "</table>"


NEIGHBOURS, OF = 5, 6

BLUE, GREEN, ORANGE = "#4c8dd6", "#4aa976", "#d98841"

REDS = ("#c8504f", "#a94a8c", "#8a6bc1", "#b5893a", "#7a7f87", "#5c9aa0", "#9b5a3c", "#6d7fae", "#b0648f", "#777777")


def _plot(figure: object, height: int) -> str:
    layout = {
        "height": height, "margin": {"l": 50, "r": 10, "t": 10, "b": 40}, "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)", "font": {"family": "system-ui, sans-serif", "size": 13}, "bargap": 0.08,
    }  # fmt: skip
    figure.update_layout(**layout)  # type: ignore[attr-defined]
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False}))  # type: ignore[attr-defined]


def _bar(manifest: Manifest) -> object:
    import plotly.graph_objects as go

    reasons = manifest["counts"].get("rejected_by_reason")
    pieces = [("embedded", _number(manifest, "embedded"), BLUE), ("reused", _number(manifest, "reused"), GREEN)]
    pieces += [
        (f"rejected: {reason}", int(rows), REDS[n % len(REDS)])
        for n, (reason, rows) in enumerate(sorted(reasons.items() if isinstance(reasons, dict) else []))
    ]
    bars = [
        go.Bar(y=[""], x=[rows], name=_safe(name), orientation="h", marker_color=color, hovertemplate="%{x:,} rows")
        for name, rows, color in pieces
        if rows
    ]
    return go.Figure(bars, {"barmode": "stack", "legend": {"orientation": "h", "traceorder": "normal", "y": -0.5}})


def _tokens(stats: FileStats, manifest: Manifest) -> object:
    import plotly.graph_objects as go

    values, rows = _histogram(stats.token_counts)
    figure = go.Figure(
        [go.Bar(x=values, y=rows, marker_color=BLUE, hovertemplate="%{x} tokens: %{y:,} rows<extra></extra>")]
    )
    figure.add_vline(
        x=77.5,
        line_dash="dash",
        line_color=ORANGE,
        annotation_text="the model reads 77 ",
        annotation_position="top left",
    )
    last = max(82, int(values.max(initial=0)) + 1)
    figure.update_xaxes(range=[0, last], title=f"start and end included; {MAX_TOKENS} and more in one bar")
    return figure.update_yaxes(title="rows")


def _norms(stats: FileStats) -> object:
    import plotly.graph_objects as go

    bins, rows = _histogram(stats.norm_bins)
    bars = go.Bar(
        x=norm_of(bins),
        y=rows,
        width=norm_of(bins) * 0.01,
        marker_color=GREEN,
        hovertemplate="%{x:.3g}: %{y:,} rows<extra></extra>",
    )
    return go.Figure([bars]).update_xaxes(title="norm").update_yaxes(title="rows")


def _stages(manifest: Manifest) -> object:
    import plotly.graph_objects as go

    seconds = [float(manifest["seconds"].get(name, 0)) for name in SECONDS]
    names = [name.removesuffix("_seconds") for name in SECONDS]
    bars = go.Bar(
        y=names, x=seconds, orientation="h", marker_color=BLUE, hovertemplate="%{y}: %{x:.2f} s<extra></extra>"
    )
    return go.Figure([bars]).update_yaxes(autorange="reversed").update_xaxes(title="seconds")


def _pace(manifest: Manifest) -> list[str]:
    """Rows a second over the run; nothing for a snapshot whose manifest does not know."""
    import plotly.graph_objects as go

    if "pace" not in manifest:
        return []
    width, rows = manifest["pace"]["seconds"], manifest["pace"]["rows"]
    spans = len(rows["read"])
    middles = [width * (span + 0.5) for span in range(spans)]
    rates = {what: [amount / width for amount in amounts] for what, amounts in rows.items()}
    figure = go.Figure()
    for what, color in (("embedded", BLUE), ("reused", GREEN), ("rejected", REDS[0])):
        if any(rows[what]):
            figure.add_bar(x=middles, y=rates[what], name=what, marker_color=color, hovertemplate="%{y:,.1f} rows/s")
    line = {"color": ORANGE, "shape": "hvh"}
    figure.add_scatter(x=middles, y=rates["read"], name="read", line=line, yaxis="y2", hovertemplate="%{y:,.1f} rows/s")
    figure.update_xaxes(title="seconds since the run began", range=[0, spans * width])
    figure.update_yaxes(title="done", rangemode="tozero")
    other = {
        "title": "read",
        "overlaying": "y",
        "side": "right",
        "rangemode": "tozero",
        "showgrid": False,
        "tickmode": "auto",
        "nticks": 4,
    }
    figure.update_layout(barmode="stack", hovermode="x", legend={"orientation": "h", "y": 1.15}, yaxis2=other)
    return [_section("Rows a second over the run", _plot(figure, 280))]


def _map_and_neighbours(rows: pa.Table) -> list[str]:
    """A plane through the sample, and what lies near to some of it; nothing where there are too few rows."""
    import plotly.graph_objects as go

    if len(rows) < OF:
        return []
    vectors = np.stack(rows["embedding"].to_numpy(zero_copy_only=False)).astype(np.float64)
    finite = np.isfinite(vectors).all(axis=1) & (np.abs(vectors).max(axis=1) > 0)
    directions = vectors[finite] / np.linalg.norm(vectors[finite], axis=1, keepdims=True)
    texts = [row["text"] if row["text"] is not None else row["id"] for row in rows.select(["id", "text"]).to_pylist()]
    said = [_safe(text, TEXT_CELLS) for text, good in zip(texts, finite, strict=True) if good]
    if len(directions) < OF:
        return []
    places = _plane(directions)
    dots = go.Scatter(
        x=places[:, 0], y=places[:, 1], mode="markers", text=said, hovertemplate="%{text}<extra></extra>",
        marker={"size": 8, "opacity": 0.7, "color": BLUE},
    )  # fmt: skip
    plane = (
        go.Figure([dots])
        .update_xaxes(showticklabels=False, zeroline=False)
        .update_yaxes(showticklabels=False, zeroline=False)
    )
    near = "".join(_neighbours(directions, said, place) for place in range(0, len(said), max(1, len(said) // OF)))
    return [
        _section(f"A map of {len(said)} rows, by their first two principal components", _plot(plane, 460)),
        _section("Nearest rows of the sample, by cosine", f"<table>{near}</table>"),
    ]


def _plane(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 2]: the two principal components of [n, d], with a sign that does not depend on the machine."""
    centred = directions - directions.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(axis=1)].diagonal())[:, None]
    return np.asarray(centred @ axes.T)


def _neighbours(directions: NDArray[np.float64], said: list[str], place: int) -> str:
    cosines = directions @ directions[place]
    cosines[place] = -np.inf
    best = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
    near = "<br>".join(f"{cosines[other]:.3f} &nbsp;{said[other]}" for other in best)
    return f"<tr><th>{said[place]}</th><td>{near}</td></tr>"


def _histogram(counted: Mapping[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values and the rows of each, in the order of the values."""
    table = np.array(sorted(counted.items()), np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
