"""A sample of a snapshot's rows, read from its part files, and what is close to what in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...model.head import Head
from ..content import hash_words
from ..errors import SnapshotError
from ..io.paths import join
from ..schemas import CONTENT_HASH, EMBEDDING, ID, content_fields, kept_fields
from ..snapshots.manifest import FileInfo
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import open_pages, open_part

SAMPLE_ROWS = 4096

SAMPLE_GROUPS = 4  # row groups, and files, that are read for the sample

BATCH_ROWS = 256  # that are decoded at a time

SHOWN_CHARACTERS = 1000  # of a label or a kept value, more than the page shows

KEPT_FIELDS = 6  # that are read

# What the names of these columns begin with in a sample: kept fields may have the names of its other columns.
KEPT = "kept."


class Directions(NamedTuple):
    """The rows of a sample whose vectors have a direction.

    Attributes:
        vectors: float64 [n, dim], of length 1.
        rows: Their columns but the vectors, [n].
    """

    vectors: NDArray[np.float64]
    rows: pa.Table


class _Group(NamedTuple):
    """A row group: its lowest content hash, the path of its part file and its number there."""

    lowest: str
    path: str
    number: int


def read_sample(output: str, snapshot: str, head: Head, files: Sequence[FileInfo]) -> pa.Table:
    """Return up to SAMPLE_ROWS rows of the row groups with the lowest content hashes, in an order that is the same always.

    Of rows with the same content, and of the parts of a recording, one comes before all rows that are not the first of
    theirs; among these the lowest hashes do.

    Columns: label, size (the head's size column), `file` and the head's content columns if rows refer to their content, the
    kept fields as strings with KEPT before their names, as far as their values are short, and the vectors. `label` has the
    beginnings of contents that are strings and are stored, and else the ids.

    Raises:
        SnapshotError: One of the files that are read is missing or damaged.
    """
    directory, remedy = run_path(output, snapshot), f"audioclip validate {output} lists all faults"
    parts = sorted((file.lowest_hash, file.name) for file in files if file.lowest_hash is not None)
    found = [group for _, name in parts[:SAMPLE_GROUPS] for group in _row_groups(join(directory, name), remedy)]
    groups = sorted(found)[:SAMPLE_GROUPS]
    if not groups:
        return pa.table({"label": pa.array([], pa.string()), EMBEDDING: []})
    hashes = [_read_hashes(group, remedy) for group in groups]
    places = _choose(pa.concat_arrays(hashes))
    tables, start = list[pa.Table](), 0
    for group, each in zip(groups, hashes, strict=True):
        inside = (places >= start) & (places < start + len(each))
        tables.append(_read_rows(group, places[inside] - start, head, remedy))
        start += len(each)
    try:
        rows = pa.concat_tables(tables)
    except pa.ArrowException:
        names = ", ".join(sorted({group.path for group in groups}))
        raise SnapshotError(f"one of {names} has other columns than the others: {remedy}") from None
    return rows.take(pa.array(np.argsort(np.argsort(places))))


def unit_vectors(rows: pa.Table) -> Directions:
    """Return the directions of a sample's rows; those whose vector has none (zero, infinite or NaN) are left out."""
    if not len(rows):
        return Directions(np.zeros((0, 1)), rows)
    numbers = rows[EMBEDDING].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = numbers.reshape(len(rows), -1).astype(np.float64)  # [rows, dim]
    good = np.isfinite(vectors).all(axis=1) & (np.abs(vectors).max(axis=1) > 0)  # [rows]
    vectors = vectors[good]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Directions(vectors, rows.drop_columns(EMBEDDING).filter(pa.array(good)))


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
    nearest = np.argsort(-cosines, kind="stable")[: min(count, len(cosines) - 1)]
    return [(float(cosines[other]), int(other)) for other in nearest]


def _row_groups(path: str, remedy: str) -> Iterator[_Group]:
    """Yield the row groups of a part file."""
    with open_part(path, remedy) as handle:
        file = pq.ParquetFile(handle)
        column = file.schema_arrow.names.index(CONTENT_HASH.name)  # columns before it are flat
        for number in range(file.num_row_groups):
            statistics = file.metadata.row_group(number).column(column).statistics
            yield _Group(statistics.min.hex() if statistics and statistics.has_min_max else "", path, number)


def _read_hashes(group: _Group, remedy: str) -> pa.FixedSizeBinaryArray:
    with open_part(group.path, remedy) as handle:
        table = open_pages(handle).read_row_group(group.number, columns=[CONTENT_HASH.name], use_threads=False)
        return pa.concat_arrays(table[CONTENT_HASH.name].chunks)


def _choose(hashes: pa.FixedSizeBinaryArray) -> NDArray[np.int64]:
    """Return the places of up to SAMPLE_ROWS of n rows, first to last as read_sample orders them.

    The last 32 bits of the hash of a recording's part are its number.
    """
    words = hash_words(hashes)  # [n, 4]
    first, second, third, number = (words[:, place].astype(np.uint32) for place in range(4))
    mixed = (number ^ third) * np.uint32(0x9E3779B1)  # else it would always be the beginning of a recording
    order = np.lexsort((mixed, third, second, first))
    groups = np.stack([first, second, third], axis=1)[order]  # [n, 3]
    begins = np.append(True, (groups[1:] != groups[:-1]).any(axis=1))
    place = np.arange(len(order))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = place - np.maximum.accumulate(np.where(begins, place, 0))
    return np.lexsort((number, third, second, first, ranks))[:SAMPLE_ROWS].astype(np.int64)


def _read_rows(group: _Group, places: NDArray[np.int64], head: Head, remedy: str) -> pa.Table:
    """Return the rows of a row group at these places, in the order of the file; those behind the last one are not read."""
    places = np.sort(places)
    with open_part(group.path, remedy) as handle:
        file = open_pages(handle)
        schema = file.schema_arrow
        label = head.content.name if head.content.type == "string" and head.content.name in schema.names else ID.name
        shown = {"label": label, "size": head.size_column}
        if head.by_reference:
            shown |= {field.name: field.name for field in content_fields(head)}
        kept = [field for field in kept_fields(schema) if _is_short(field.type)][:KEPT_FIELDS]
        shown |= {f"{KEPT}{field.name}": field.name for field in kept} | {EMBEDDING: EMBEDDING}
        columns, batches, start = list(dict.fromkeys(shown.values())), list[pa.RecordBatch](), 0
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group.number], columns=columns, use_threads=False):
            inside = places[(places >= start) & (places < start + batch.num_rows)] - start
            chosen = batch.take(pa.array(inside))
            batches.append(
                pa.RecordBatch.from_arrays([_shown(name, chosen[of]) for name, of in shown.items()], list(shown))
            )
            start += batch.num_rows
            if not len(places) or start > places[-1]:
                break
        return pa.Table.from_batches(batches)


def _is_short(kind: pa.DataType) -> bool:
    """Return whether values of a kept field can be shown in a few words."""
    return bool(pa.types.is_primitive(kind) or pa.types.is_decimal(kind)) or kind in (pa.string(), pa.large_string())


def _shown(name: str, column: pa.Array) -> pa.Array:
    """Return the column of this name in a sample; a kept field, whatever its type, as strings."""
    if not name.startswith(KEPT) and not (name == "label" and column.type == pa.string()):
        return column
    try:
        return pc.utf8_slice_codeunits(column.cast(pa.string()), 0, SHOWN_CHARACTERS)
    except pa.ArrowException:  # of a type that is not made a string, or a time zone that this machine does not know
        return pa.nulls(len(column), pa.string())
