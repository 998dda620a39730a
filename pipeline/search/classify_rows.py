"""`audioclip classify`: for each sound or picture of the current snapshot the most probable of a list of labels."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..snapshots.snapshot import BATCH_ROWS, Snapshot, iter_rows
from ..terminal import printable
from ..writers.result_directory import check_new_directory, new_directory, write_rows, write_summary
from .exact_search import open_consistent, rows_notes, weights_notes
from .labels import LabelVectors, check_prompts, embed_labels, read_labels
from .queries import TEXT, QueryError
from .spaces import find_query_model
from .top_k import DECIMALS, usable_vectors

PRINTED_ROWS = 20
BLOCK_NUMBERS = 1 << 16  # logits at a time: 512 KiB
SUMMARY = "_classes.json"  # readers of a directory of Parquet files skip what begins with _

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("probability", pa.float64(), nullable=False),
    ]
)


class Classes(NamedTuple):
    """What `classify` found.

    Attributes:
        lines: The first rows, or none if files were written.
        files: The files that were written.
        labels: How many labels of rows they have.
        notes: What users must know.
    """

    lines: list[str]
    files: list[str]
    labels: int
    notes: list[str]


@dataclass
class Labelled:
    """Counts of label_rows: rows that were read, those without a usable vector, and labels of the others."""

    rows: int = 0
    incomparable: int = 0
    labels: int = 0


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
    check_prompts(prompts)
    if target is not None:
        target = check_new_directory(target, output)
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
    notes = [note for note in (model.warning, known.note, *weights_notes(snapshot)) if note]
    labelled = Labelled()
    batches = label_rows(snapshot, known, scale, top, min_probability, labelled=labelled)
    if target is None:
        with closing(batches):
            found = (row for batch in batches for row in batch.to_pylist())
            lines = [_as_line(*row) for row in islice(_rows_of(found), PRINTED_ROWS + 1)]
        if len(lines) > PRINTED_ROWS:
            notes.append(f"the first {PRINTED_ROWS} rows are printed; --output DIR writes all of them")
        elif not lines and labelled.rows > labelled.incomparable:
            notes.append(f"no row has a label with a probability of at least {min_probability:g}")
        return Classes(lines[:PRINTED_ROWS], [], 0, notes + rows_notes(labelled.rows, labelled.incomparable))
    with new_directory(target) as directory:
        names = [*write_rows(directory, "classes", _SCHEMA, batches)]
        summary = {"snapshot": snapshot.name, "labels": len(known.labels), "prompts": list(prompts), "files": names}
        write_summary(directory, SUMMARY, summary)
    return Classes([], names, labelled.labels, notes + rows_notes(labelled.rows, labelled.incomparable))


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


def label_rows(
    snapshot: Snapshot, known: LabelVectors, scale: float, top: int, min_probability: float, *, labelled: Labelled
) -> Generator[pa.RecordBatch, None, None]:
    """Yield id, rank, label and probability of the most probable labels of each row; of equal ones the first comes first.

    A row whose vector is zero, infinite or NaN has none. `labelled` counts what was done.
    """
    directions, labels = np.ascontiguousarray(known.vectors.T), pa.array(known.labels, pa.string())
    directions *= scale
    top, count = min(top, len(known.labels)), len(known.labels)
    logits = np.empty((BATCH_ROWS, count))
    step = max(1, BLOCK_NUMBERS // count)
    for batch in iter_rows(snapshot, ("id", "embedding")):
        usable = usable_vectors(batch)
        units = usable.numbers.astype(np.float64)
        units /= np.sqrt(np.einsum("nd,nd->n", units, units))[:, None]
        np.matmul(units, directions, out=logits[: len(units)])
        places, chances = np.empty((len(units), top), np.int64), np.empty((len(units), top))
        for start in range(0, len(units), step):
            block = logits[start : min(start + step, len(units))]  # stays in the processor's cache
            places[start : start + step] = chosen = _highest(block, top, scale * 10.0**-DECIMALS)
            best = np.take_along_axis(block, chosen, axis=1)
            highest = block.max(axis=1, keepdims=True)
            block -= highest
            sums = np.exp(block, out=block).sum(axis=1, keepdims=True)
            chances[start : start + step] = np.exp(best - highest) / sums
        rows, ranks = np.nonzero(chances >= min_probability)
        labelled.rows += batch.num_rows
        labelled.incomparable += batch.num_rows - len(units)
        labelled.labels += len(rows)
        yield pa.RecordBatch.from_arrays(
            [
                batch.column("id").take(pa.array(usable.rows[rows])),
                pa.array((ranks + 1).astype(np.int32)),
                labels.take(pa.array(places[rows, ranks])),
                pa.array(chances[rows, ranks]),
            ],
            schema=_SCHEMA,
        )


def _highest(logits: NDArray[np.float64], top: int, unit: float) -> NDArray[np.int64]:
    """Return the places of the `top` highest logits of each row, int [n, top]; of equal ones the first comes first.

    Those that are equal when they are rounded to multiples of `unit` count as equal: a product of matrices rounds equal
    ones differently.
    """
    floors = logits.max(axis=1) if top == 1 else np.partition(logits, -top, axis=1)[:, -top]
    rows, places = np.divmod(np.flatnonzero(logits >= (floors - 2 * unit)[:, None]), logits.shape[1])
    order = np.lexsort((places, -np.round(logits[rows, places] / unit), rows))
    starts = np.searchsorted(rows, np.arange(len(logits)))
    first = (np.arange(len(rows)) - starts[rows]) < top  # rows are sorted, before and after
    return places[order][first].reshape(-1, top)
