"""Search, labels and pairs over many rows, beside reading the rows and beside the matrix products that they need.

    python benchmarks/search.py                      # 1,000,000 rows: 4 GB below --folder, some minutes
    python benchmarks/search.py --rows 100000

The vectors are random, of 1,024 numbers. Each step runs in a new process, and has its seconds, its CPU seconds of all
threads, and the most memory of its process over that of one that only imports. `read` reads ids and vectors as the other
steps do. A product multiplies a block of vectors in memory with the same queries, as often as the rows need it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from audioclip_beam.pipeline.search.classify_rows import Labelled, label_rows
from audioclip_beam.pipeline.search.exact_search import search
from audioclip_beam.pipeline.search.labels import LabelVectors
from audioclip_beam.pipeline.search.pairs import find_pairs
from audioclip_beam.pipeline.snapshots.snapshot import BATCH_ROWS, iter_rows, open_snapshot
from tests.support.snapshots import random_batches, write_snapshot

DIM = 1024


class Cost(NamedTuple):
    """What a step took: seconds, CPU seconds, and megabytes over those of a process that imports the same."""

    seconds: float
    cpu: float
    memory: float


def measure(step: Callable[..., None], *arguments: object) -> Cost:
    """Run a step in a new process."""
    ours, others = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(others, step, arguments))
    process.start()
    others.close()
    cost: Cost = ours.recv()
    process.join()
    return cost


def _run(connection: Connection, step: Callable[..., None], arguments: Sequence[object]) -> None:
    before, began, cpu = _peak(), time.perf_counter(), time.process_time()
    step(*arguments)
    connection.send(Cost(time.perf_counter() - began, time.process_time() - cpu, _peak() - before))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def make_snapshots(folder: Path, rows: int, queries: int) -> None:
    """Write the snapshots `rows` and `queries`."""
    for name, count, seed in (("rows", rows, 0), ("queries", queries, 1)):
        write_snapshot(folder / name, random_batches(count, DIM, seed), DIM)


def read(folder: Path) -> None:
    """Read ids and vectors."""
    deque(iter_rows(open_snapshot(str(folder / "rows")), ("id", "embedding")), maxlen=0)


def multiply(rows: int, queries: int, dtype: str) -> None:
    """Multiply as many vectors as there are rows with the queries, a block at a time."""
    block = np.random.default_rng(0).standard_normal((min(rows, BATCH_ROWS), DIM)).astype(dtype)
    others = np.random.default_rng(1).standard_normal((DIM, queries)).astype(dtype)
    products = np.empty((len(block), queries), dtype)
    for _ in range(0, rows, len(block)):
        np.matmul(block, others, out=products)


def search_one(folder: Path, queries: int) -> None:
    """Search for the nearest ten rows to some vectors."""
    vectors = np.random.default_rng(2).standard_normal((queries, DIM)).astype(np.float32)
    np.save(folder / "queries.npy", vectors)
    search(str(folder / "rows"), [str(folder / "queries.npy")])


def classify(folder: Path, labels: int, top: int) -> None:
    """Label the rows, and write the labels, without the text head, which embeds them once."""
    vectors = np.random.default_rng(3).standard_normal((labels, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = LabelVectors([f"label {n}" for n in range(labels)], vectors)
    batches = label_rows(open_snapshot(str(folder / "rows")), known, 20.0, top, 0.0, labelled=Labelled())
    first = next(batches)
    with pq.ParquetWriter(folder / "classes.parquet", first.schema, compression="zstd") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def pair(folder: Path, top: int) -> None:
    """Find the nearest rows to each of the snapshot `queries`."""
    shutil.rmtree(folder / "pairs", ignore_errors=True)
    find_pairs(str(folder / "queries"), str(folder / "rows"), str(folder / "pairs"), top=top)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are searched (default: 1000000)")
    parser.add_argument("--labels", type=int, default=1000, help="labels (default: 1000)")
    parser.add_argument("--pairs", type=int, default=1024, help="rows that get a nearest one (default: 1024)")
    parser.add_argument("--folder", type=Path, help="directory for the files (default: a temporary one)")
    arguments = parser.parse_args(argv)
    rows, labels, pairs = arguments.rows, arguments.labels, arguments.pairs
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        measure(make_snapshots, folder, rows, pairs)
        measure(read, folder)  # from the disk
        print(f"{rows:,} rows of {DIM} numbers; numpy {np.__version__}, pyarrow {pa.__version__}")
        print("| step | seconds | CPU seconds | MB | beside read | beside read and product |")
        print("| --- | --- | --- | --- | --- | --- |")
        steps: list[tuple[str, Callable[..., None], tuple[object, ...], tuple[int, str]]] = [
            ("search, 1 query", search_one, (folder, 1), (1, "float32")),
            ("search, 100 queries", search_one, (folder, 100), (100, "float32")),
            (f"classify, {labels:,} labels", classify, (folder, labels, 1), (labels, "float64")),
            (f"classify, {labels:,} labels, --top 5", classify, (folder, labels, 5), (labels, "float64")),
            (f"pairs of {pairs:,} rows", pair, (folder, 1), (pairs, "float32")),
            (f"pairs of {pairs:,} rows, --top 5", pair, (folder, 5), (pairs, "float32")),
        ]
        for label, step, values, product in steps:
            reading, cost, multiplying = (
                measure(read, folder),
                measure(step, *values),
                measure(multiply, rows, *product),
            )
            print(
                f"| {label} | {cost.seconds:.1f} | {cost.cpu:.1f} | {cost.memory:.0f} | {cost.cpu / reading.cpu:.2f} x | "
                f"{cost.cpu / (reading.cpu + multiplying.cpu):.2f} x ({reading.cpu:.1f} + {multiplying.cpu:.1f} s) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
