"""Ten years of nights: which rows each night writes again, and how many segments and files there are.

The nights are simulated with the choice of segments in pipeline/snapshots/segments.py, without data: a corpus is
the rows of each shard, and a part file is how many rows of which shard it has. One worker writes a segment, in full files
and one that is not, as a local run does.

    python benchmarks/compaction.py            # the table of docs/scaling.md, about two minutes
    python benchmarks/compaction.py --nights 365
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from audioclip_beam.pipeline.flags import MAX_FILE_ROWS
from audioclip_beam.pipeline.snapshots.segments import Remainder, choose_segments


@dataclass
class Segment:
    """The rows of each shard in each of its files, int64 [files, shards of the segment], and the numbers of these shards."""

    shards: NDArray[np.int64]
    files: NDArray[np.int64]
    written: int

    @property
    def rows(self) -> int:
        """The rows that are left of it."""
        return int(self.files.sum())


def write(shards: NDArray[np.int64], rows: NDArray[np.int64]) -> Segment:
    """Return a segment: rows are spread over files by their hashes, so that each has some of each large shard."""
    total = int(rows.sum())
    count = max(1, -(-total // MAX_FILE_ROWS))
    base = np.tile(rows // count, (count, 1))
    for place, rest in enumerate((rows % count).tolist()):  # of a small shard, each row is in another file
        base[(np.arange(rest) + shards[place]) % count, place] += 1
    return Segment(shards, base, total)


@dataclass
class Corpus:
    """A corpus, and what its nights have cost."""

    shards: dict[int, int] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    rewritten: list[int] = field(default_factory=list)
    files_rewritten: list[int] = field(default_factory=list)
    most_segments: int = 0

    def night(self, changed: dict[int, int]) -> None:
        """Replace or add shards, each with its new rows."""
        again = files = 0
        lost = 0
        for segment in self.segments:
            changes = np.isin(segment.shards, list(changed))
            touched = segment.files[:, changes].sum(axis=1) > 0
            lost += int(segment.files[:, changes].sum())
            segment.files[:, changes] = 0
            left = segment.files.sum(axis=1)
            segment.touched = touched & (left > 0)  # type: ignore[attr-defined]
            segment.files = segment.files[left > 0]
            segment.touched = segment.touched[left > 0]  # type: ignore[attr-defined]
        remainders = [Remainder(segment.rows, segment.written) for segment in self.segments]
        kept = choose_segments(remainders, sum(changed.values()), lost)
        moved = [segment for n, segment in enumerate(self.segments) if n not in kept]
        for number in kept:
            segment = self.segments[number]
            again += int(segment.files[segment.touched].sum())  # type: ignore[attr-defined]
            files += int(segment.touched.sum())  # type: ignore[attr-defined]
        numbers = np.concatenate([*(segment.shards for segment in moved), np.array(list(changed), np.int64)])
        rows = [*(segment.files.sum(axis=0) for segment in moved), np.array(list(changed.values()), np.int64)]
        copied = sum(segment.rows for segment in moved)
        files += -(-copied // MAX_FILE_ROWS)
        self.shards.update(changed)
        new = np.concatenate(rows)
        self.segments = [self.segments[number] for number in kept]
        if new.sum():
            self.segments.append(write(numbers[new > 0], new[new > 0]))
        self.rewritten.append(again + copied)
        self.files_rewritten.append(files)
        self.most_segments = max(self.most_segments, len(self.segments))
        assert sum(segment.rows for segment in self.segments) == sum(self.shards.values())


def appended(corpus: Corpus, night: int, _: np.random.Generator) -> dict[int, int]:
    return {night + 1: 1000}


def one_of_a_million(corpus: Corpus, _: int, random: np.random.Generator) -> dict[int, int]:
    return {int(random.integers(1_000_000)): 1}


def growing(corpus: Corpus, night: int, _: np.random.Generator) -> dict[int, int]:
    return {0: 1_000_000 + 1000 * night}


def one_of_twenty(corpus: Corpus, _: int, random: np.random.Generator) -> dict[int, int]:
    return {int(random.integers(20)): 50_000}


Night = Callable[[Corpus, int, np.random.Generator], dict[int, int]]
CORPORA: dict[str, tuple[dict[int, int], Night]] = {
    "a shard of 1,000 rows appended": ({0: 1000}, appended),
    "another one of 1,000,000 one-row shards changed": (dict.fromkeys(range(1_000_000), 1), one_of_a_million),
    "one shard of 1,000,000 rows grows by 1,000, beside 1,000,000": ({0: 1_000_000, 1: 1_000_000}, growing),
    "another 50,000-row shard of 1,000,000 rows replaced": (dict.fromkeys(range(20), 50_000), one_of_twenty),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=3650)
    nights = parser.parse_args().nights
    print("| each night | rows written again | part files written again | segments, at most | files | fill |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (first, night) in CORPORA.items():
        corpus, random = Corpus(), np.random.default_rng(0)
        corpus.night(first)
        corpus.rewritten.clear()
        corpus.files_rewritten.clear()
        for number in range(nights):
            corpus.night(night(corpus, number, random))
        files = sum(len(segment.files) for segment in corpus.segments)
        fill = sum(corpus.shards.values()) / files / MAX_FILE_ROWS
        print(
            f"| {name} | {np.mean(corpus.rewritten):,.0f} | {np.mean(corpus.files_rewritten):.1f} | "
            f"{corpus.most_segments} | {files:,} | {fill:.0%} |"
        )


if __name__ == "__main__":
    main()
