"""report.html: one page about a snapshot, in one file that needs neither a network nor a script."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from ...model.fingerprint import describe_changes
from ...model.head import Head, Work
from ...model.heads import find_head
from ..errors import SnapshotError
from ..io.filesystem import write_atomically
from ..io.paths import join
from ..layout import REPORT
from ..snapshots.commit import read_manifest
from ..snapshots.manifest import FileInfo, Manifest
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import open_snapshot
from ..terminal import printable
from ..writers.statistics import FileStats
from . import plots
from .sample import principal_plane, read_sample, unit_vectors
from .sample_rows import PROBES, sample_rows, shorten

if TYPE_CHECKING:
    from jinja2 import Template

VALUE_CELLS, VALUE_BYTES = 1000, 4000  # of an option, a note and the like

MAP_ROWS = 256  # of the sample, in the map

_CountName = Literal["read", "embedded", "reused", "rejected", "truncated"]
_FIGURES: tuple[_CountName, ...] = ("read", "embedded", "reused", "rejected", "truncated")
_COMPARED: tuple[_CountName, ...] = ("read", "embedded", "reused", "rejected")

# What a page may load, by what it shows of contents, besides its own style.
_POLICIES = {"": "", "picture": "; img-src data:", "player": "; media-src file:"}


class _Outcome(NamedTuple):
    name: str
    color: str
    rows: str
    share: str


def render(
    manifest: Manifest, files: Sequence[FileInfo], stats: FileStats, rows: pa.Table, previous: Manifest | None
) -> str:
    """Return the page about a snapshot.

    Args:
        manifest: Its manifest.
        files: Its files.
        stats: Its histograms.
        rows: A sample, as `read_sample` returns it.
        previous: The manifest of the previous snapshot, if there is one and it still exists.
    """
    pieces = _outcomes(manifest)
    counted = sum(amount for _, amount, _ in pieces)
    head = find_head(manifest["head"])
    sample = unit_vectors(rows)
    labels = [shorten(label) for label in sample.rows["label"].to_pylist()]
    mapped = len(labels[:MAP_ROWS])
    charts: dict[str, plots.Chart | None] = {
        "outcomes": plots.rows_by_outcome(pieces) if pieces else None,
        "sizes": plots.size_histogram(
            stats.sizes, head.size_unit, manifest["limit"], head.max_size, continuous=_is_continuous(head)
        )
        if stats.sizes
        else None,
        "norms": plots.vector_norms(stats.norm_bins) if stats.norm_bins else None,
        "stages": plots.seconds_by_stage(manifest["seconds"]),
        "pace": plots.rows_per_second(manifest["pace"]) if "pace" in manifest else None,
        "map": plots.sample_map(principal_plane(sample.vectors[:mapped]), labels[:mapped])
        if mapped >= PROBES
        else None,
    }
    return _template().render(
        snapshot=manifest["snapshot"],
        tool_version=manifest["tool_version"],
        created=manifest["created"],
        policy=f"default-src 'none'; style-src 'unsafe-inline'{_POLICIES[head.preview]}",
        untrained=manifest["weights"] == "untrained",
        figures=_figures(manifest),
        amounts=_amounts(manifest, head),
        outcomes=[_Outcome(name, color, f"{amount:,}", _percent(amount / counted)) for name, amount, color in pieces],
        pace_legend=_pace_legend(manifest),
        unit=head.size_unit,
        item=head.item,
        max_size=f"{head.max_size:,}" if head.max_size in stats.sizes else "",
        provenance=_provenance(manifest, files),
        charts=charts,
        mapped=mapped,
        sample_rows=f"{len(labels):,}",
        vectors=f"{manifest['totals']['vectors']:,}",
        rows=sample_rows(manifest, sample, labels),
        **_changes(manifest, previous),
    )


def write_report(output: str, manifest: Manifest, files: Sequence[FileInfo]) -> str:
    """Write the page of a run whose files are finished, and return its name. Raise whatever goes wrong."""
    stats = FileStats()
    for histogram, found in ((stats.sizes, manifest["sizes"]), (stats.norm_bins, manifest["norm_bins"])):
        histogram.update({int(number): rows for number, rows in found.items()})
    rows = read_sample(output, manifest["snapshot"], find_head(manifest["head"]), files)
    previous = None
    with suppress(SnapshotError):  # a damaged manifest of another snapshot
        previous = read_manifest(output, manifest["previous"]) if manifest["previous"] else None
    data = render(manifest, files, stats, rows, previous).encode()
    write_atomically(join(run_path(output, manifest["snapshot"]), REPORT), data, "text/html")
    return REPORT


def ensure_report(output: str, *, remake: bool = False) -> str:
    """Return the path of the current snapshot's page, written if it is missing or `remake` is set."""
    snapshot = open_snapshot(output)
    path: str = join(snapshot.path, REPORT)
    if remake or not FileSystems.exists(path):
        write_report(output, snapshot.manifest, snapshot.files)
    return path


@functools.cache
def _template() -> Template:
    """Return the compiled template of the page."""
    # Imported here, so that a job starts without it.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_finalize, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(resources.files(__package__).joinpath("template.html.j2").read_text("utf-8"))


def _finalize(value: object) -> object:
    """Return what a template expression inserts: lengths with the digits that are seen, strings without control characters.

    What a macro of the template returns is already that.
    """
    if isinstance(value, float):
        return f"{value:.5g}"
    from markupsafe import Markup

    return value if isinstance(value, Markup) else printable(str(value))


def _figures(manifest: Manifest) -> list[tuple[str, str]]:
    counts, totals, total = manifest["counts"], manifest["totals"], float(manifest["seconds"].get("total", 0))
    carried = totals["read"] - counts["read"]
    return [
        ("rows in the snapshot", f"{totals['read']:,}"),
        *([("carried over unread", f"{carried:,}")] if carried else []),
        *((name, f"{counts[name]:,}") for name in _FIGURES),
        ("rows per second", f"{counts['read'] / total:,.0f}" if total else "-"),
        ("seconds in total", f"{total:,.1f}"),
    ]


def _outcomes(manifest: Manifest) -> list[tuple[str, int, str]]:
    """Return name, rows and color of each outcome that a row had."""
    counts = manifest["counts"]
    reasons = sorted(counts["rejected_by_reason"].items())
    pieces = [
        ("embedded", counts["embedded"], "embedded"),
        ("reused", counts["reused"], "reused"),
        *((f"rejected: {reason}", rows, plots.rejected_color(n)) for n, (reason, rows) in enumerate(reasons)),
    ]
    return [piece for piece in pieces if piece[1]]


def _percent(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.4g} %" if percent in (0, 100) else f"{percent:.1f} %"


def _pace_legend(manifest: Manifest) -> list[tuple[str, str]]:
    rows: Mapping[str, list[int]] = manifest["pace"]["rows"] if "pace" in manifest else {}
    colors = {"read": "read", "embedded": "embedded", "reused": "reused", "rejected": plots.rejected_color(0)}
    return [(color, name) for name, color in colors.items() if any(rows.get(name, ()))]


def _changes(manifest: Manifest, previous: Manifest | None) -> dict[str, object]:
    if previous is None:
        removed = f"The previous snapshot, {manifest['previous']}, no longer exists or cannot be read."
        return {"changes": [], "no_previous": removed if manifest["previous"] else "This is the first snapshot."}
    items = f"{find_head(manifest['head']).items} embedded by the model"
    before, now = (
        {
            "rows": one["totals"]["read"],
            **{name: one["counts"][name] for name in _COMPARED},
            items: one["counts"]["model"]["items"],
        }
        for one in (previous, manifest)
    )
    changed = describe_changes(manifest["fingerprint_parts"], previous["fingerprint_parts"])
    return {
        "previous": previous["snapshot"],
        "fingerprint_change": f"The fingerprint changed: {changed}." if changed else "The fingerprint is the same.",
        "changes": [(name, f"{before[name]:,}", f"{now[name]:,}") for name in now],
    }


def _provenance(manifest: Manifest, files: Sequence[FileInfo]) -> list[tuple[str, str]]:
    rows: list[tuple[str, object]] = [
        ("checkpoint", f"{manifest['checkpoint']['name']} ({manifest['weights']})"),
        ("checkpoint sha256", manifest["checkpoint"]["sha256"]),
        ("fingerprint", manifest["fingerprint"]),
        *((f"fingerprint: {name}", value) for name, value in manifest["fingerprint_parts"].items()),
        *((f"--{name}", value) for name, value in manifest["options"].items()),
        ("files", f"{len(files):,}, {sum(file.bytes for file in files):,} bytes"),
        *(("note", note) for note in manifest["notes"]),
    ]
    return [(name, shorten(_spelled(value), VALUE_CELLS, VALUE_BYTES)) for name, value in rows]


def _spelled(value: object) -> str:
    """Return an option's value as a reader of the page expects it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "(none)"
    return "(not set)" if value is None else str(value) or "(empty)"


def _is_continuous(head: Head) -> bool:
    """Return whether sizes are measured, and not counted."""
    types = {column.name: column.type for column in (*head.content_columns, *head.model_columns)}
    return types[head.size_column].startswith("float")


def _amounts(manifest: Manifest, head: Head) -> list[str]:
    """Return how much content the snapshot has, and what the model did of it in this run, in the words of the head."""
    work = Work.of(manifest["counts"]["model"], manifest["seconds"])
    amounts = []
    if contents := head.describe_extent(manifest["totals"]["contents"]):
        amounts.append(f"In the snapshot: {contents}.")
    if work.items:
        amounts.append(f"The model's work in this run: {head.describe_work(work)}.")
    return amounts
