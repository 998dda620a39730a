"""Library: the snapshots of a page, and queries over all of them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...model.heads import HEADS
from ..inference.find_model import SnapshotModel
from ..search.exact_search import rows_notes, weights_notes
from ..search.pairs import compare_spaces
from ..search.queries import TEXT, Query, QueryError, direction, embed_media, kind_of, read_queries
from ..search.spaces import OtherSpaceError, find_query_model
from ..search.top_k import Hit
from ..terminal import printable
from .contents import Contents
from .snapshot_rows import SnapshotRows

if TYPE_CHECKING:
    from ...model.head import Encoder

NAME_CELLS, TEXT_CELLS, VALUE_CELLS = 300, 2000, 300  # that the page gets of ids and paths, texts, and kept values


@dataclass(frozen=True)
class _SharedModel(SnapshotModel):
    """A model whose encoder stays in memory for the next query, in `encoders`, also if others are loaded meanwhile."""

    encoders: dict[Any, Encoder] = field(default_factory=dict, repr=False, compare=False)

    def encoder(self) -> Encoder:
        """Return the encoder, loaded at the first call."""
        key = self.head, self.settings
        if key not in self.encoders:
            self.encoders[key] = super().encoder()
        return self.encoders[key]


class Library:
    """Snapshots as they were when they were read, and queries over all of them, one query at a time.

    Args:
        snapshots: Their rows.
        files: Paths of the models' files, by the name of a flag; by default those of each snapshot. A model is loaded when a
            query needs it.
    """

    def __init__(self, snapshots: Sequence[SnapshotRows], files: Mapping[str, str | None]) -> None:
        self.snapshots, self.files = list(snapshots), files
        self.contents = [Contents.of(rows.snapshot) for rows in snapshots]
        self._models: dict[tuple[int, str], SnapshotModel | OtherSpaceError] = {}
        self._encoders: dict[Any, Encoder] = {}
        self._lock = threading.Lock()

    def describe(self) -> list[dict[str, Any]]:
        """Return what the page shows of each snapshot."""
        return [
            {
                "name": printable(rows.snapshot.output, NAME_CELLS),
                "snapshot": rows.snapshot.name,
                "head": rows.snapshot.head.name,
                "items": rows.snapshot.head.items,
                "rows": len(rows),
                "notes": weights_notes(rows.snapshot) + (rows_notes(len(rows), rows.unusable) if len(rows) else []),
            }
            for rows in self.snapshots
        ]

    def first_rows(self, top: int) -> list[dict[str, Any]]:
        """Return the first rows of each snapshot, without a score."""
        return [
            {"hits": [self._as_json(rows, number, None) for number in range(min(top, len(rows)))], "notes": []}
            for rows in self.snapshots
        ]

    def near_text(self, text: str, top: int) -> list[dict[str, Any]]:
        """Return the rows nearest to a text, of each snapshot, as _answer does."""
        return self._near_content(
            TEXT, top, lambda dim, model: read_queries([text], dim, lambda head: model, text=True)[0]
        )

    def near_media(self, name: str, data: bytes, top: int) -> list[dict[str, Any]]:
        """Return the rows nearest to a sound or picture, of each snapshot; its name has a suffix that says which it is.

        Raises QueryError if its suffix is another one.
        """
        head, shown = kind_of(name), printable(name, NAME_CELLS)
        if head == TEXT or head not in HEADS:
            raise QueryError(f"{shown} is neither a sound nor a picture by its suffix: give a file of one of these")
        return self._near_content(head, top, lambda dim, model: embed_media(shown, data, dim, model))

    def near_row(self, snapshot: int, row: int, top: int) -> list[dict[str, Any]]:
        """Return the rows nearest to a row's stored vector, of each snapshot. Raise IndexError if there is no such row."""
        source = self.snapshots[snapshot]
        vector = direction(source.vector(row), f"row {row}")[0]

        def query(number: int, rows: SnapshotRows) -> tuple[NDArray[np.float64], list[str]]:
            first, second = source.snapshot, rows.snapshot
            if number == snapshot:
                return vector, []
            warning = compare_spaces(first.output, first.manifest, second.output, second.manifest)
            return vector, [warning] if warning else []

        return self._answer(query, top)

    def row_as_json(self, snapshot: int, row: int) -> dict[str, Any]:
        """Return what the page shows of a row. Raise IndexError if there is no such row."""
        return self._as_json(self.snapshots[snapshot], row, None)

    def _near_content(self, head: str, top: int, embed: Callable[[int, SnapshotModel], Query]) -> list[dict[str, Any]]:
        """Return the answer to a query that `embed` embeds by the model of `head`, once for all equal models."""
        embedded: dict[Any, Query] = {}

        def query(number: int, rows: SnapshotRows) -> tuple[NDArray[np.float64], list[str]]:
            model, dim = self._model(number, head), rows.snapshot.manifest["dim"]
            key = model.head, model.settings, dim
            if key not in embedded:
                embedded[key] = embed(dim, model)
            found = embedded[key]
            return found.vector, [note for note in (model.warning, found.note) if note]

        return self._answer(query, top)

    def _answer(
        self, query: Callable[[int, SnapshotRows], tuple[NDArray[np.float64], list[str]]], top: int
    ) -> list[dict[str, Any]]:
        """Return for each snapshot its hits and notes, or the error that it gives for the query.

        Args:
            query: Returns the vector for the snapshot with that number, float64 [dim] of length 1, and notes.
            top: The number of rows.
        """
        answers = list[dict[str, Any]]()
        with self._lock:
            for number, rows in enumerate(self.snapshots):
                try:
                    vector, notes = query(number, rows)
                except (ValueError, OSError, RuntimeError) as error:
                    answers.append({"error": str(error), "hits": [], "notes": []})
                    continue
                hits = [self._as_json(rows, hit.row, hit) for hit in rows.nearest(vector, top)]
                answers.append({"hits": hits, "notes": notes})
        return answers

    def _model(self, number: int, head: str) -> SnapshotModel:
        """Return the model of a head for queries over a snapshot; it is looked for once."""
        key = number, head
        if key not in self._models:
            try:
                found = find_query_model(self.snapshots[number].snapshot.manifest, head, self.files)
                self._models[key] = _SharedModel(found.head, found.settings, found.warning, self._encoders)
            except OtherSpaceError as error:
                self._models[key] = error
        model = self._models[key]
        if isinstance(model, OtherSpaceError):
            raise model
        return model

    def _as_json(self, rows: SnapshotRows, number: int, hit: Hit | None) -> dict[str, Any]:
        row = rows.row(number)
        found: dict[str, Any] = {
            "row": number,
            "score": hit.score if hit else None,
            "id": printable(row["id"], NAME_CELLS),
        }
        content = row.get(rows.snapshot.head.content.name)
        if isinstance(content, dict):
            found["file"] = printable(str(content["uri"]), NAME_CELLS)
            found |= _numbers(row, ("start", "end", "duration")) | _numbers(row, ("width", "height"))
        elif content is not None:
            found["text"] = printable(str(content), TEXT_CELLS)
        found["kept"] = [
            (printable(name, NAME_CELLS), printable(value, VALUE_CELLS)) for name, value in rows.kept_values(number)
        ]
        return found


def _numbers(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return columns of a row, or none of them if one is not a number that JSON has."""
    values = {name: row.get(name) for name in names}
    found = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return found if len(found) == len(values) else {}
