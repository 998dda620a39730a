"""The rows of a sample that report.html shows: their contents, their kept fields and the rows nearest to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa

from ...model.heads import find_head
from ..snapshots.manifest import Manifest
from ..terminal import printable
from .previews import Preview, make_previews
from .sample import KEPT, Directions, nearest_rows

PROBES, NEIGHBORS = 6, 5  # rows that are shown, and how many of their nearest rows

LABEL_CELLS, LABEL_BYTES = 100, 300  # of a row's label


class Row(NamedTuple):
    """A row of the sample.

    Attributes:
        label: What it is called.
        preview: What is shown of its content.
        size: In words.
        details: Names and values: its file, its kept fields.
        nearest: Cosine, label and preview of the rows that are nearest to it.
    """

    label: str
    preview: Preview
    size: str
    details: list[tuple[str, str]]
    nearest: list[tuple[str, str, Preview]]


def sample_rows(manifest: Manifest, sample: Directions, labels: Sequence[str]) -> list[Row]:
    """Return PROBES rows of a sample: those with the least and the greatest size, and others; each with its nearest rows."""
    if not labels:
        return []
    head = find_head(manifest["head"])
    fields = cast(Sequence[str], manifest["options"].get(head.field_flag.removeprefix("--")) or ())
    sizes = sample.rows["size"].to_numpy()
    extremes = {int(sizes.argmin()): "the least of the sample", int(sizes.argmax()): "the greatest of the sample"}
    if sizes.min() == sizes.max():
        extremes = {}
    others = [place for place in range(len(labels)) if place not in extremes]
    left = PROBES - len(extremes)
    others = others[:: max(1, len(others) // left)][:left]
    probes = [*others, *extremes]
    near = [nearest_rows(sample.vectors, probe, NEIGHBORS) for probe in probes]
    places = list(dict.fromkeys([*probes, *(other for found in near for _, other in found)]))
    values = sample.rows.take(pa.array(places)).to_pylist()
    shown = dict(zip(places, zip(values, make_previews(head, values, fields), strict=True), strict=True))
    rows = []
    for probe, found in zip(probes, near, strict=True):
        row, preview = shown[probe]
        extreme = f", {extremes[probe]}" if probe in extremes else ""
        nearest = [(f"{cosine:.3f}", labels[other], shown[other][1]) for cosine, other in found]
        size = f"{row['size']:,.6g} {head.size_unit}{extreme}"
        rows.append(Row(labels[probe], preview, size, _details(row), nearest))
    return rows


def _details(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the file of a row of the sample, and its kept fields."""
    kept = {name.removeprefix(KEPT): value for name, value in row.items() if name.startswith(KEPT)}
    details = [(name, shorten(value)) for name, value in kept.items() if value is not None]
    if "file" in row:
        uri = printable(row["file"]["uri"])[::-1]  # of a long path the end is what tells files apart
        details.insert(0, ("file", shorten(uri)[::-1]))
    return [(shorten(name), value) for name, value in details]


def shorten(value: object, cells: int = LABEL_CELLS, size: int = LABEL_BYTES) -> str:
    """Return a value without control characters.

    Args:
        value: The value.
        cells: The most terminal cells that it may take.
        size: The most bytes of UTF-8.
    """
    shown = printable(str(value), cells)
    # Characters without a width can follow each other in any number, so cells alone do not bound the page.
    return shown if len(shown.encode()) <= size else shown.encode()[: size - 3].decode(errors="ignore") + "…"
