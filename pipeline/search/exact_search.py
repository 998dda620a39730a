"""`audioclip search`: exact search for the rows of the current snapshot nearest to texts, sounds, pictures or vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from ..errors import SnapshotError
from ..inference.find_model import SnapshotModel
from ..snapshots.manifest import check_file_list, check_manifest
from ..snapshots.snapshot import REMEDY, Snapshot, iter_rows, open_snapshot
from ..terminal import count_cells, printable
from ..writers.result_directory import check_new_directory, new_directory, write_rows, write_summary
from .queries import Query, QueryError, kind_of, list_queries, read_queries
from .spaces import find_query_model
from .top_k import COLUMNS, Hit, TopK

BY = ("cosine", "dot", "logits")
ID_CELLS, PLACE_CELLS, SCORE_CELLS = 40, 200, 10
SUMMARY = "_search.json"  # readers of a directory of Parquet files skip what begins with _

_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        ("text", pa.string()),
        ("file", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("duration", pa.float64()),
    ]
)


@dataclass(frozen=True)
class SearchResult:
    """The hits of each query, best first."""

    snapshot: Snapshot
    by: str
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
                {"query": query.name, "hits": [_hit_as_json(rank, hit) for rank, hit in enumerate(hits, 1)]}
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
            left = PLACE_CELLS if width is None else max(10, width - column - SCORE_CELLS - 9)
            for rank, (hit, shown) in enumerate(zip(hits, ids, strict=True), 1):
                padding = " " * (column - count_cells(shown))
                place = printable(hit.place, left)
                yield f"{rank:>5}{hit.score:>{SCORE_CELLS}.6f}  {shown}{padding}  {place}".rstrip()

    def as_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the hits of each query as rows."""
        for query, hits in zip(self.queries, self.hits, strict=True):
            rows = [{"query": query.name, "rank": rank, **hit._asdict()} for rank, hit in enumerate(hits, 1)]
            yield pa.RecordBatch.from_pylist(rows, _SCHEMA)


def _hit_as_json(rank: int, hit: Hit) -> dict[str, object]:
    found = {"rank": rank, **hit._asdict()}
    media = ("file", "start", "end", "duration")
    hidden = media if hit.file is None else ("text", *(name for name in media if found[name] is None))
    return {name: value for name, value in found.items() if name not in ("row", *hidden)}


def open_consistent(output: str) -> Snapshot:
    """Return the current snapshot of `output`. Raise SnapshotError if its manifest or its list of files has a fault."""
    snapshot = open_snapshot(output)
    faults = check_manifest(snapshot.manifest, snapshot.name) or check_file_list(snapshot.manifest, snapshot.files)
    if faults:
        raise SnapshotError(f"the manifest in {snapshot.path} is not consistent ({faults[0]}): {REMEDY}")
    return snapshot


def search(
    output: str,
    queries: Sequence[str],
    *,
    top: int = 10,
    by: str = "cosine",
    text: bool = False,
    query_head: str | None = None,
    target: str | None = None,
    **files: str | None,
) -> SearchResult:
    """Return the `top` nearest rows to each query in the current snapshot of `output`.

    Args:
        output: The directory of the snapshots.
        queries: Texts; names of sound files or pictures, a part of a sound as file.wav#t=START,END; or names of .npy files
            of float vectors [dim] or [n, dim]. What the snapshot's head embeds is embedded as its run did.
        top: The number of rows.
        by: "cosine"; "dot", the product of the vectors as they are; or "logits", the cosine times the scale that AudioCLIP
            trained for the two heads.
        text: Whether every query is a text, whatever its suffix.
        query_head: The head of the vectors in .npy files, for logits.
        target: A new or empty directory, which gets the hits as Parquet.
        files: Paths of the models' files, `checkpoint` and `tokenizer_path`; by default those that the run read.

    Raises:
        TypeError: `queries` is not a list of strings.
        ValueError: A query cannot be used (QueryError), its model is of another training (OtherSpaceError) or not
            available (ModelNotFound), or `target` is not new.
        SnapshotError: The snapshot cannot be read.
    """
    if by not in BY:
        raise QueryError(f"by={by!r:.80}: choose one of {', '.join(BY)}")
    queries = list_queries(queries)
    if target is not None:
        target = check_new_directory(target, output)
    snapshot = open_consistent(output)
    manifest = snapshot.manifest
    models: dict[str, SnapshotModel] = {}

    def model(head: str) -> SnapshotModel:
        if head not in models:
            models[head] = find_query_model(manifest, head, files)
        return models[head]

    if by == "logits":
        _check_pairs([kind_of(query, text=text) for query in queries], manifest["head"], query_head)
    parsed = read_queries(queries, manifest["dim"], model, text=text)
    warnings = [found.warning for found in models.values() if found.warning]

    @cache
    def scale(head: str) -> float:
        if head:
            return models[head].logit_scale(manifest["head"])
        return model(manifest["head"]).logit_scale(str(query_head))

    scales = [1.0] * len(parsed)
    if by != "cosine":
        scales = [query.length if by == "dot" else scale(query.head) for query in parsed]
    nearest = TopK(np.stack([query.vector for query in parsed]), top, by_length=by == "dot")
    for batch in iter_rows(snapshot, (*COLUMNS, "embedding")):
        nearest.add(batch)
    hits = [
        [hit._replace(score=hit.score * factor) for hit in found]
        for factor, found in zip(scales, nearest.hits(), strict=True)
    ]
    result = SearchResult(snapshot, by, parsed, hits, warnings + _notes(snapshot, parsed, nearest))
    if target is not None:
        with new_directory(target) as directory:
            names = [*write_rows(directory, "hits", _SCHEMA, result.as_batches())]
            write_summary(directory, SUMMARY, {"snapshot": snapshot.name, "by": by, "files": names})
    return result


def _check_pairs(kinds: Sequence[str], head: str, query_head: str | None) -> None:
    """Raise QueryError if AudioCLIP has no scale for queries of these kinds and a snapshot of a head."""
    if ".npy" in kinds and query_head is None:
        raise QueryError("--by logits needs the head of the vectors in .npy files: name it with --query_head")
    if head in [query_head if kind == ".npy" else kind for kind in kinds]:
        raise QueryError(
            f"AudioCLIP has no trained scale for two vectors of the {head} head: search with --by cosine, which gives the "
            f"same order"
        )


def _notes(snapshot: Snapshot, queries: Sequence[Query], nearest: TopK) -> list[str]:
    notes = [f"{query.name:.80}: {query.note}" for query in queries if query.note]
    return notes + weights_notes(snapshot) + rows_notes(nearest.rows, nearest.incomparable)


def rows_notes(rows: int, incomparable: int) -> list[str]:
    """Return what a user must know of so many rows, of which some have a vector that is zero or not finite."""
    if not rows:
        return ["the snapshot has no rows"]
    if not incomparable:
        return []
    return [
        f"WARNING: {incomparable:,} of {rows:,} rows cannot be compared, because their vectors are zero or not finite: "
        f"audioclip validate names them"
    ]


def weights_notes(snapshot: Snapshot) -> list[str]:
    """Return what a user must know of a snapshot with random weights."""
    if snapshot.manifest["weights"] != "untrained":
        return []
    return ["WARNING: the snapshot was embedded with random weights, for testing only: the order is meaningless"]
