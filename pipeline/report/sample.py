"""A sample of a snapshot's rows, read from its part files, and what is close to what in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...model.head import Head
from ..errors import SnapshotError
from ..io.paths import join
from ..schemas import CONTENT_HASH, EMBEDDING
from ..snapshots.manifest import FileInfo
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import open_pages, open_part

SAMPLE_ROWS = 256

SAMPLE_GROUPS = 4  # row groups, and files, that are read for the sample

SHOWN_CHARACTERS = 1000  # of a label, more than the page shows


def read_sample(output: str, snapshot: str, head: Head, files: Sequence[FileInfo]) -> pa.Table:
    """Return up to SAMPLE_ROWS rows with the lowest content hashes: columns label, embedding.

    `label` has the beginnings of contents that are strings and are stored, and else the ids. Files are written bucket by
    bucket, so few row groups contain the lowest hashes; of files in another order (--no_dedupe) the sample is the lowest of
    those few.

    Raises:
        SnapshotError: One of the files that are read is missing or damaged.
    """
    directory, remedy = run_path(output, snapshot), f"audioclip validate {output} lists all faults"
    parts = sorted((file.lowest_hash, file.name) for file in files if file.lowest_hash is not None)
    groups = sorted(group for _, name in parts[:SAMPLE_GROUPS] for group in _row_groups(join(directory, name), remedy))
    content = head.content.name if head.content.type == "string" else "id"
    if not groups:
        return pa.table({"label": pa.array([], pa.string()), EMBEDDING: []})
    try:
        tables = [_read_row_group(path, number, content, remedy) for _, path, number in groups[:SAMPLE_GROUPS]]
        table = pa.concat_tables(tables).sort_by(CONTENT_HASH.name).slice(0, SAMPLE_ROWS)
    except pa.ArrowException:
        names = ", ".join(sorted({path for _, path, _ in groups[:SAMPLE_GROUPS]}))
        raise SnapshotError(f"one of {names} has other columns than the others: {remedy}") from None
    return table.select(["label", EMBEDDING])


def unit_vectors(rows: pa.Table) -> tuple[NDArray[np.float64], list[str]]:
    """Return the directions [n, dim] of a sample's rows and their labels.

    Rows whose vector has no direction (zero, infinite or NaN) are left out.
    """
    if not len(rows):
        return np.zeros((0, 1)), []
    vectors = np.stack(rows[EMBEDDING].to_numpy(zero_copy_only=False)).astype(np.float64)  # [rows, dim]
    good = np.isfinite(vectors).all(axis=1) & (np.abs(vectors).max(axis=1) > 0)  # [rows]
    labels = rows["label"].to_pylist()
    directions = vectors[good] / np.linalg.norm(vectors[good], axis=1, keepdims=True)
    return directions, [label for label, keep in zip(labels, good, strict=True) if keep]


def principal_plane(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the two principal components [n, 2] of [n, dim], with signs that do not depend on the machine."""
    centered = directions - directions.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(axis=1)].diagonal())[:, None]  # [2, dim]
    return np.asarray(centered @ axes.T)


def nearest_rows(directions: NDArray[np.float64], row: int, count: int) -> list[tuple[float, int]]:
    """Return the cosine and the index of the `count` rows of [n, dim] that are nearest to `row`, nearest first."""
    cosines = directions @ directions[row]  # [n]
    cosines[row] = -np.inf
    return [(float(cosines[other]), int(other)) for other in np.argsort(-cosines, kind="stable")[:count]]


def _row_groups(path: str, remedy: str) -> Iterator[tuple[str, str, int]]:
    """Yield the lowest content hash of each row group of a part file, the file's path and the row group's number."""
    with open_part(path, remedy) as handle:
        file = pq.ParquetFile(handle)
        column = file.schema_arrow.names.index(CONTENT_HASH.name)  # columns before it are flat
        for number in range(file.num_row_groups):
            statistics = file.metadata.row_group(number).column(column).statistics
            yield statistics.min.hex() if statistics and statistics.has_min_max else "", path, number


def _read_row_group(path: str, number: int, content: str, remedy: str) -> pa.Table:
    """Return the SAMPLE_ROWS rows of a row group with the lowest hashes; of rows in that order the others are not read."""
    with open_part(path, remedy) as handle:
        file = open_pages(handle)
        hashes = file.read_row_group(number, columns=[CONTENT_HASH.name], use_threads=False)[CONTENT_HASH.name]
        places = np.sort(pc.sort_indices(hashes).to_numpy()[:SAMPLE_ROWS]).astype(np.int64)
        shown = content if content in file.schema_arrow.names else "id"
        columns = [shown, EMBEDDING]
        batches, start = list[pa.RecordBatch](), 0
        for batch in file.iter_batches(SAMPLE_ROWS, row_groups=[number], columns=columns, use_threads=False):
            inside = places[(places >= start) & (places < start + batch.num_rows)] - start
            batches.append(batch.take(pa.array(inside)))
            start += batch.num_rows
            if start > places[-1]:
                break
        rows = pa.Table.from_batches(batches)
    labels = pc.utf8_slice_codeunits(rows[shown], 0, SHOWN_CHARACTERS)
    return pa.table({"label": labels, CONTENT_HASH.name: hashes.take(places), EMBEDDING: rows[EMBEDDING]})
