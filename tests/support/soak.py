"""Nightly runs over a million rows, killed at random: nothing is lost, duplicated or left behind.

python -m tests.support.soak                      # 1,000,000 rows, three nights, at most ten minutes
python -m tests.support.soak --rows 20000         # the one that the tests run

Every run is a separate process with a stub model. It is killed at random moments and started again until it succeeds;
its memory, threads and open files are sampled. Then every row is read back.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from audioclip_beam.model.head import Encoding, Work
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.snapshot import Snapshot
from tests.support.processes import start_process
from tests.support.stub import StubEncoder, StubHead

SHARDS, DIM = 16, 64
STEADY = 200  # samples: with fewer a process has done little more than start
EVERY = 0.1  # seconds between two samples
BAD, SHARED = 997, 10  # every BAD-th row is broken; rows that share one text


class SoakEncoder(StubEncoder):
    """A model that costs almost nothing, so that the load is the pipeline's."""

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        vectors = vectors_of(texts)
        lengths = np.full(len(texts), 5, np.int16)
        return Encoding(vectors, {"n_tokens": lengths, "truncated": lengths > 77}, {}, Work(len(texts), 5 * len(texts)))


class SoakHead(StubHead):
    """StubHead over a SoakEncoder."""

    def encoder(self) -> SoakEncoder:
        return SoakEncoder(self.info())


def vectors_of(texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the stub's vectors [n, DIM]: the text's checksum, spread over the dimensions."""
    seeds = np.fromiter((zlib.crc32(text.encode()) for text in texts), np.uint32, len(texts))
    with np.errstate(over="ignore"):
        spread = seeds[:, None] * np.arange(1, 2 * DIM, 2, dtype=np.uint32)
    return (spread >> 8).astype(np.float32)


def text_of(row: int, night: int) -> str | None:
    """Return the text of a row in a night, None if its line is broken; one row in a hundred changes every night."""
    if row % BAD == BAD - 1:
        return None
    version = night if row % 100 == 7 else 0
    return f"a sound of kind {row // SHARED} recorded in take {version}, of some length as captions have it"


def write_corpus(directory: Path, rows: int, night: int) -> None:
    """Write the shards of a night."""
    directory.mkdir(exist_ok=True)
    for shard in range(SHARDS):
        with (directory / f"{shard:02}.jsonl").open("w") as handle:
            for row in range(shard, rows, SHARDS):
                text = text_of(row, night)
                handle.write('{"text":\n' if text is None else f'{{"id": {row}, "text": {json.dumps(text)}}}\n')


@dataclass
class Load:
    """Samples of the memory, threads and open files of a process and its children."""

    memory: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def sample(self, process: psutil.Process) -> None:
        """Take one sample, unless the process has just ended."""
        try:
            family = [process, *process.children(recursive=True)]
            self.memory.append(sum(one.memory_info().rss for one in family))
            self.threads.append(sum(one.num_threads() for one in family))
            self.files.append(sum(one.num_fds() for one in family))
        except psutil.Error:
            return


@dataclass
class Soak:
    """One soak below `root`."""

    root: Path
    rows: int
    dice: random.Random
    kills: int = 0
    runs: int = 0
    peaks: list[Load] = field(default_factory=list)

    @property
    def temporary(self) -> Path:
        """Return the directory for temporary files of runs."""
        return self.root / "tmp"

    def start(self) -> ForkServerProcess:
        """Start one run in a separate process."""
        self.runs += 1
        return start_process(_run, self.root, environment={**os.environ, "TMPDIR": str(self.temporary)})

    def run_and_kill(self, seconds: float) -> None:
        """Start a run and kill it, with its children, some time after it has created its directory."""
        before = set(self.root.glob("out/snapshots/*"))
        process = self.start()
        while process.is_alive() and set(self.root.glob("out/snapshots/*")) == before:
            time.sleep(0.02)
        time.sleep(self.dice.uniform(0, seconds))
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
            self.kills += 1
        process.join()

    def run_to_end(self) -> float:
        """Run undisturbed, with samples; return the seconds."""
        began, load = time.monotonic(), Load()
        process = self.start()
        watched = psutil.Process(process.pid)
        while process.is_alive():
            load.sample(watched)
            time.sleep(EVERY)
        if process.exitcode:
            raise RuntimeError(f"an undisturbed run ended with status {process.exitcode}")
        self.peaks.append(load)
        return time.monotonic() - began

    def night(self, number: int, kills: int, seconds: float) -> str:
        """Change the corpus, run over it with that many kills, check everything; return a line of figures."""
        write_corpus(self.root / "in", self.rows, number)
        for _ in range(kills):
            self.run_and_kill(seconds)
        for left in self.temporary.iterdir():  # of killed runs; the one that succeeds must leave nothing
            subprocess.run(["rm", "-rf", left], check=True)
        shared = shared_memory()
        duration = self.run_to_end()
        counts = check_rows(self.root / "out", self.rows, number)
        left_over = [path for path in (self.root / "out").rglob("*") if path.name.endswith(".tmp")]
        left_over += list(self.temporary.iterdir())
        left_over += [path for path in (self.root / "out/snapshots").iterdir() if not (path / "manifest.json").exists()]
        new = {path: path.stat().st_ino for path in shared_memory() - shared if path.exists()}
        used = mapped_inodes()
        left_over += [path for path, inode in new.items() if inode not in used]
        if left_over:
            raise AssertionError(f"left behind: {', '.join(map(str, left_over[:5]))}")
        return f"night {number}: {kills} kills, then {duration:.1f} s; {counts}; {steady(self.peaks[-1])}"


def shared_memory() -> set[Path]:
    """Return the files of shared memory and semaphores of this machine."""
    return set(Path("/dev/shm").iterdir()) if os.path.isdir("/dev/shm") else set()


def mapped_inodes() -> set[int]:
    """Return the inodes of shared memory that a process uses: the semaphores of other tests are among them."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            found.update(int(line.split()[4]) for line in maps.open() if "/dev/shm/" in line)
    return found


def steady(load: Load) -> str:
    """Return the load of a run as text; raise AssertionError if its second half needs much more than its first."""
    words = []
    for name, values, unit, slack in (
        ("memory", load.memory, 1 << 20, 64),
        ("threads", load.threads, 1, 8),
        ("files", load.files, 1, 16),
    ):
        half = len(values) // 2
        first, second = max(values[:half], default=0) / unit, max(values[half:], default=0) / unit
        if len(values) >= STEADY and second > 1.25 * first + slack:
            raise AssertionError(f"{name} grew from {first:.0f} in the first half of the run to {second:.0f}")
        words.append(f"{name} {first:.0f} then {second:.0f}{' MiB' if unit > 1 else ''}")
    return f"{', '.join(words)} over {len(load.memory)} samples"


def check_rows(output: Path, rows: int, night: int) -> str:
    """Read every row of the current snapshot; raise AssertionError if one is lost, duplicated or wrong."""
    name = str(current_name(str(output)))
    manifest = read_manifest(str(output), name)
    assert manifest is not None
    totals = {what: manifest["totals"][what] for what in ("read", "vectors", "rejected")}
    seen = np.zeros(rows, np.int8)
    for path in Snapshot(str(output), name, manifest).part_paths():
        for batch in pq.ParquetFile(path).iter_batches(8192):
            ids = batch.column("id").cast("int64").to_numpy()
            np.add.at(seen, ids, 1)
            texts = batch.column("text").to_pylist()
            assert texts == [text_of(row, night) for row in ids.tolist()], "a row has another row's text"
            vectors = batch.column("embedding").values.to_numpy().reshape(len(ids), -1)
            assert (vectors == vectors_of(texts)).all(), "a row has another text's vector"
    bad = np.arange(rows) % BAD == BAD - 1
    assert (seen == ~bad).all(), f"{int((seen == 0).sum() - bad.sum())} rows lost, {int((seen > 1).sum())} duplicated"
    # Of the snapshot, not of the run: a run that ended before it could be killed has published everything already.
    assert totals == {"read": rows, "vectors": rows - int(bad.sum()), "rejected": int(bad.sum())}
    last = manifest["counts"]
    return (
        f"{rows:,} rows, {totals['vectors']:,} with vectors, {totals['rejected']:,} rejected; "
        f"read {last['read']:,}, embedded {last['embedded']:,}, reused {last['reused']:,}"
    )


def soak(rows: int, nights: int, kills: int, seconds: float, seed: int) -> Iterator[str]:
    """Run all nights; yield a line for each, and one for all of them."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        one = Soak(Path(root), rows, random.Random(seed))
        one.temporary.mkdir()
        for night in range(nights):
            yield one.night(night, kills, seconds)
        yield (
            f"{nights} nights of {rows:,} rows: {one.runs} runs, {one.kills} killed, 0 rows lost or duplicated, nothing "
            f"left behind, {time.monotonic() - began:.0f} s"
        )


def _run(root: Path) -> None:
    """Run once over the shards below `root`, in a process that `Soak.start` started, and which leads a group of its own."""
    os.setpgid(0, 0)
    logging.disable(logging.CRITICAL)
    options = EmbedOptions(
        input=[str(root / "in/*.jsonl")], output=str(root / "out"), id_field="id", max_file_rows=20_000, max_shrink=0.0
    )
    corpus = EmbedCorpus(options, SoakHead(DIM, "soak"))
    try:
        run(corpus, options)
    finally:
        corpus.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3, help="per night")
    parser.add_argument("--kill_within", type=float, default=25.0, help="seconds after a run's directory appeared")
    parser.add_argument("--seed", type=int, default=20261123)
    chosen = parser.parse_args(argv)
    for line in soak(chosen.rows, chosen.nights, chosen.kills, chosen.kill_within, chosen.seed):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
