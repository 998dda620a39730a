"""`audioclip classify`: for each sound or picture of the current snapshot the most probable of a list of labels."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..snapshots.snapshot import Snapshot, iter_rows
from ..terminal import printable
from ..writers.result_directory import check_new_directory, new_directory, write_rows, write_summary
from .exact_search import open_consistent, weights_notes
from .labels import LabelVectors, embed_labels, read_labels
from .queries import TEXT, QueryError
from .spaces import find_query_model
from .top_k import DECIMALS, usable_vectors

PRINTED_ROWS = 20
SUMMARY = "classes.json"

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("probability", pa.float64(), nullable=False),
    ]
)


class Classes(NamedTuple):
    """What `classify` found: the first rows as lines, or the files that it wrote, and what users must know."""

    lines: list[str]
    files: list[str]
    notes: list[str]


def classify(
    output: str,
    labels: str,
    *,
    prompts: Sequence[str] = ("{}",),
    top: int = 1,
    min_probability: float = 0.0,
    target: str | None = None,
    **files: str | None,
) -> Classes:
    """Label the rows of the current snapshot of `output`: softmax over the labels of AudioCLIP's logits.

    Args:
        output: The directory of the snapshots, of pictures or sounds.
        labels: A file of labels, as read_labels takes it.
        prompts: Templates for the texts of labels.
        top: The most labels of a row.
        min_probability: Labels that are less probable are left out.
        target: A new or empty directory, which gets the labels as Parquet; else the first rows are returned.
        files: Paths of the model's files, `checkpoint` and `tokenizer_path`.

    Raises:
        ValueError: The snapshot is of texts, a label cannot be used, the model is of another training or not available, or
            `target` is not new.
        SnapshotError: The snapshot cannot be read.
    """
    if target is not None:
        check_new_directory(target, output)
    snapshot = open_consistent(output)
    head = snapshot.manifest["head"]
    if head == TEXT:
        raise QueryError(
            f"{snapshot.path} is of texts, and AudioCLIP labels pictures and sounds: name a snapshot of these"
        )
    texts = read_labels(labels)
    model = find_query_model(snapshot.manifest, TEXT, files)
    scale = model.logit_scale(head)
    known = embed_labels(texts, prompts, model.encoder())
    if known.vectors.shape[1] != snapshot.manifest["dim"]:
        raise QueryError(
            f"the text head gives vectors of {known.vectors.shape[1]} numbers, and those of the snapshot have "
            f"{snapshot.manifest['dim']}: give the checkpoint of the snapshot's training with --checkpoint"
        )
    notes = ([model.warning] if model.warning else []) + weights_notes(snapshot)
    batches = _labelled(snapshot, known, scale, top, min_probability)
    if target is None:
        with closing(batches):
            found = (row for batch in batches for row in batch.to_pylist())
            shown = islice(_rows_of(found), PRINTED_ROWS)
            return Classes([_as_line(row_id, labelled) for row_id, labelled in shown], [], notes)
    with new_directory(target) as directory:
        names = [*write_rows(directory, "classes", _SCHEMA, batches)]
        summary = {"snapshot": snapshot.name, "labels": len(known.labels), "prompts": list(prompts), "files": names}
        write_summary(directory, SUMMARY, summary)
    return Classes([], names, notes)


def _rows_of(found: Iterator[dict[str, object]]) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Yield each row's id with its labels, which follow each other and begin with rank 1."""
    row = list[dict[str, object]]()
    for labelled in found:
        if labelled["rank"] == 1 and row:
            yield str(row[0]["id"]), row
            row = []
        row.append(labelled)
    if row:
        yield str(row[0]["id"]), row


def _as_line(row_id: str, labelled: list[dict[str, object]]) -> str:
    words = ", ".join(f"{each['label']} {each['probability']:.3f}" for each in labelled)
    return f"{printable(row_id, 60)}  {printable(words)}"


def _labelled(
    snapshot: Snapshot, known: LabelVectors, scale: float, top: int, min_probability: float
) -> Generator[pa.RecordBatch, None, None]:
    """Yield id, rank, label and probability of the most probable labels of each row; of equal ones the first comes first.

    A row whose vector is zero, infinite or NaN has none.
    """
    directions, labels = np.ascontiguousarray(known.vectors.T), pa.array(known.labels, pa.string())
    top = min(top, len(known.labels))
    for batch in iter_rows(snapshot, ("id", "embedding")):
        usable = usable_vectors(batch)
        units = usable.numbers.astype(np.float64)
        units /= np.sqrt((units * units).sum(axis=1))[:, None]
        cosines = np.round(units @ directions, DECIMALS)  # [n, labels]; rounded, equal labels are equal in any batch
        order = _highest(cosines, top)
        best = np.take_along_axis(cosines, order, axis=1)
        cosines -= best[:, :1]
        cosines *= scale
        sums = np.exp(cosines, out=cosines).sum(axis=1)
        chances = np.exp((best - best[:, :1]) * scale) / sums[:, None]  # [n, top]
        rows, ranks = np.nonzero(chances >= min_probability)
        yield pa.RecordBatch.from_arrays(
            [
                batch.column("id").take(pa.array(usable.rows[rows])),
                pa.array((ranks + 1).astype(np.int32)),
                labels.take(pa.array(order[rows, ranks])),
                pa.array(chances[rows, ranks]),
            ],
            schema=_SCHEMA,
        )


def _highest(scores: NDArray[np.float64], top: int) -> NDArray[np.int64]:
    """Return the places of the `top` highest scores of each row, int [n, top]; of equal ones the first comes first."""
    places = np.empty((len(scores), top), np.int64)
    if top == 1:
        places[:, 0] = scores.argmax(axis=1)
        return places
    floors = np.partition(scores, -top, axis=1)[:, -top]
    for row, (each, floor) in enumerate(zip(scores, floors, strict=True)):
        chosen = np.flatnonzero(each >= floor)
        places[row] = chosen[np.argsort(-each[chosen], kind="stable")[:top]]
    return places
