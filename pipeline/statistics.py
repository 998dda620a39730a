"""What a report shows of the rows: counts made while they pass into files, and a sample read back from those.

Histograms are counts like all others of a file, so they add up over files, workers and retries as those do.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from numpy.typing import NDArray

from .reading import open_to_read

TOKENS, NORM = "tokens: ", "norm: "
PACED = ("read", "embedded", "reused", "rejected")
MOST_SPANS = 60
MOST_TOKENS = 128  # longer texts stand in one bin
NORM_BINS = 64  # a doubling of the norm
SAMPLE = 256
SAMPLE_GROUPS = 4  # row groups that are read for the sample


def histograms(part: pa.RecordBatch) -> Counter[str]:
    """Counts "tokens: 18" and "norm: 89" of embedded rows: tokens before truncation, and norms in bins of 1/64 octave."""
    lengths = np.minimum(part.column("n_tokens").to_numpy(), MOST_TOKENS)
    numbers = part.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(part.num_rows, -1)
    squares = np.einsum("ij,ij->i", numbers, numbers, dtype=np.float32)
    with np.errstate(divide="ignore"):
        bins = np.round(np.log2(squares) * (NORM_BINS / 2))
    found: Counter[str] = Counter()
    for name, values in ((TOKENS, lengths), (NORM, bins[np.isfinite(bins)].astype(np.int64))):
        distinct, counts = np.unique(values, return_counts=True)
        found.update({f"{name}{value}": int(count) for value, count in zip(distinct, counts, strict=True)})
    return found


def histogram(counts: Mapping[str, float], kind: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(values, rows of each) of one kind out of summed counts, in order of the values."""
    found = sorted((int(name[len(kind) :]), int(rows)) for name, rows in counts.items() if name.startswith(kind))
    table = np.array(found, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def norm_of(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """The norm in the middle of each bin."""
    return 2.0 ** (bins / NORM_BINS)


class Pace(TypedDict):
    """Rows done in each span of a run: PACED -> rows, a number a span; a span is `seconds` long."""

    seconds: int
    rows: dict[str, list[int]]


def paced(what: str, rows: int, took: float = 0.0) -> Counter[str]:
    """Counts "embedded at 1795464412" of rows that are done now, spread evenly over the `took` seconds they took."""
    now = time.time()

    def done(moment: float) -> int:
        return rows if moment >= now else int(rows * max(0.0, moment - now + took) / took) if took else 0

    seconds = range(int(now - took), int(now) + 1)
    return Counter({f"{what} at {second}": done(second + 1) - done(second) for second in seconds})


def pace_of(counts: Mapping[str, float], started: float, total: float) -> Pace:
    """Summed counts of `paced` as at most MOST_SPANS spans; a worker's clock that is off moves rows, and loses none."""
    seconds = max(1, math.ceil(total / MOST_SPANS))
    spans = max(1, math.ceil(total / seconds))
    rows = {what: [0] * spans for what in PACED}
    for name, amount in counts.items():
        what, at, second = name.partition(" at ")
        if at and what in rows:
            rows[what][min(max(int((int(second) - int(started)) // seconds), 0), spans - 1)] += int(amount)
    return {"seconds": seconds, "rows": rows}


def sample(directory: str, files: Sequence[Mapping[str, object]]) -> pa.Table:
    """Up to SAMPLE rows of part files with the lowest text hashes: columns id, text (null where left out), embedding.

    `files` are those of a manifest. Files are written bucket by bucket, so the lowest hashes lie in few row groups; of
    files in another order (--no_dedupe) it is the lowest of those few.
    """
    groups = []
    for file in files:
        if str(file["name"]).startswith("part-"):
            for number, group in enumerate(file["row_groups"]):  # type: ignore[arg-type, var-annotated]
                lowest = min((low for low, _ in group["ranges"]), default=0)
                groups.append((lowest, str(file["name"]), number))
    tables = [
        _row_group(FileSystems.join(directory, name), number) for _, name, number in sorted(groups)[:SAMPLE_GROUPS]
    ]
    if not tables:
        return pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string()), "embedding": []})
    table = pa.concat_tables(tables).sort_by("text_hash").slice(0, SAMPLE)
    return table.select(["id", "text", "embedding"])


def _row_group(path: str, number: int) -> pa.Table:
    with open_to_read(path) as handle:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        there = [name for name in ("id", "text", "text_hash", "embedding") if name in file.schema_arrow.names]
        table = file.read_row_group(number, columns=there, use_threads=False)
    if "text" not in there:
        table = table.append_column("text", pa.nulls(len(table), pa.string()))
    return table.cast(pa.schema([field.remove_metadata() for field in table.schema]))
