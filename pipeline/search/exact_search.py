"""`audioclip search`: exact search for the rows of the current snapshot nearest to texts or vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import SnapshotError
from ..inference.find_model import find_model
from ..snapshots.manifest import check_file_list, check_manifest
from ..snapshots.snapshot import REMEDY, Snapshot, iter_rows, open_snapshot
from ..terminal import count_cells, printable
from .queries import Query, QueryError, is_file, list_queries, read_queries
from .top_k import Hit, TopK

ID_CELLS, TEXT_CELLS, SCORE_CELLS = 40, 200, 10


@dataclass(frozen=True)
class SearchResult:
    """The hits of each query, best first. The score of a hit is its cosine times `scale`, which is 1 except for logits."""

    snapshot: Snapshot
    by: str
    scale: float
    queries: list[Query]
    hits: list[list[Hit]]
    notes: list[str]

    def as_json(self) -> dict[str, object]:
        """Return the result as an object for programs, with whole texts and ids."""
        return {
            "snapshot": self.snapshot.path,
            "weights": self.snapshot.manifest["weights"],
            "by": self.by,
            "notes": self.notes,
            "queries": [
                {
                    "query": query.name,
                    "hits": [
                        {"rank": rank, "score": hit.cosine * self.scale, "id": hit.id, "text": hit.text}
                        for rank, hit in enumerate(hits, 1)
                    ],
                }
                for query, hits in zip(self.queries, self.hits, strict=True)
            ],
        }

    def as_table(self, width: int | None = None) -> Iterator[str]:
        """Yield lines for a terminal of `width` cells, or for a pipe, with control characters escaped."""
        for number, (query, hits) in enumerate(zip(self.queries, self.hits, strict=True)):
            if number:
                yield ""
            yield printable(query.name, width)
            ids = [printable(hit.id, ID_CELLS) for hit in hits]
            column = max(map(count_cells, ids), default=0)
            left = TEXT_CELLS if width is None else max(10, width - column - SCORE_CELLS - 9)
            for rank, (hit, shown) in enumerate(zip(hits, ids, strict=True), 1):
                text = "" if hit.text is None else printable(hit.text, left)
                padding = " " * (column - count_cells(shown))
                yield f"{rank:>5}{hit.cosine * self.scale:>{SCORE_CELLS}.6f}  {shown}{padding}  {text}".rstrip()


def search(
    output: str,
    queries: Sequence[str],
    *,
    top: int = 10,
    by: str = "cosine",
    **files: str | None,
) -> SearchResult:
    """Return the `top` nearest rows to each query in the current snapshot of `output`.

    Args:
        output: The directory of the snapshots.
        queries: Texts, which are embedded with the model and the prompt of the snapshot, or names of .npy files of float
            vectors [dim] or [n, dim].
        top: The number of rows.
        by: "cosine", or "audio_logits" or "image_logits" for vectors of AudioCLIP's audio or image encoder.
        files: Paths of the model's files, `checkpoint` and `tokenizer_path`; by default those that the run read.

    Raises:
        TypeError: `queries` is not a list of strings.
        ValueError: A query cannot be used (QueryError), or the model is not available (ModelNotFound).
        SnapshotError: The snapshot cannot be read.
    """
    queries = list_queries(queries)
    snapshot = open_snapshot(output)
    manifest = snapshot.manifest
    faults = check_manifest(manifest, snapshot.name) or check_file_list(manifest, snapshot.files)
    if faults:
        raise SnapshotError(f"the manifest in {snapshot.path} is not consistent ({faults[0]}): {REMEDY}")
    texts = [query for query in queries if not is_file(query)]
    if by != "cosine" and texts:
        raise QueryError(
            f"--by {by} compares texts with {by.partition('_')[0]} vectors from .npy files, and AudioCLIP has no trained "
            f"scale for two texts: search for texts with --by cosine, which gives the same order"
        )
    model = cache(lambda: find_model(manifest, files))  # vectors by cosine need no model
    scale = 1.0 if by == "cosine" else model().logit_scale(by.partition("_")[0])
    parsed = read_queries(queries, manifest["dim"], lambda: model().encoder())
    nearest = TopK(np.stack([query.vector for query in parsed]), top)
    for batch in iter_rows(snapshot, ("id", "text", "embedding")):
        nearest.add(batch)
    notes = [model().warning] if texts and model().warning else []
    return SearchResult(snapshot, by, scale, parsed, nearest.hits(), notes + _notes(snapshot, parsed, nearest))


def _notes(snapshot: Snapshot, queries: Sequence[Query], nearest: TopK) -> list[str]:
    notes = [f"{query.name:.80}: {query.note}" for query in queries if query.note]
    if snapshot.manifest["weights"] == "untrained":
        notes.append(
            "WARNING: the snapshot was embedded with random weights, for testing only: the order is meaningless"
        )
    if nearest.incomparable:
        notes.append(
            f"WARNING: {nearest.incomparable:,} of {nearest.rows:,} rows cannot be found, because their vectors are zero "
            f"or not finite: audioclip validate names them"
        )
    if not nearest.rows:
        notes.append("the snapshot has no rows")
    return notes
