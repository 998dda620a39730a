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


@dataclass(eq=False)
class Segment:
    """The rows of each shard in each of its files, int32 [files, shards], and where each shard is in these."""

    place: dict[int, int]
    files: NDArray[np.int32]
    written: int

    def __post_init__(self) -> None:
        self.left = self.files.sum(axis=1, dtype=np.int64)  # rows of each file
        self.touched = np.zeros(len(self.files), bool)  # whether the file loses rows this night

    @property
    def rows(self) -> int:
        """The rows that are left of it."""
        return int(self.left.sum())

    def drop(self, shard: int) -> int:
        """Drop the rows of a shard; return how many they are."""
        column = self.files[:, self.place.pop(shard)]
        rows = int(column.sum())
        self.touched |= column > 0
        self.left -= column
        column[:] = 0
        return rows


def write(rows: dict[int, int]) -> Segment:
    """Return a segment: rows are spread over files by their hashes, so that each has some of each large shard."""
    total = sum(rows.values())
    count = max(1, -(-total // MAX_FILE_ROWS))
    sizes = np.fromiter(rows.values(), np.int64, len(rows))
    files = np.tile((sizes // count).astype(np.int32), (count, 1))
    for place, (shard, rest) in enumerate(zip(rows, (sizes % count).tolist(), strict=True)):
        files[(np.arange(rest) + shard) % count, place] += 1  # of a small shard, each row is in another file
    return Segment({shard: place for place, shard in enumerate(rows)}, files, total)


@dataclass
class Corpus:
    """A corpus, and what its nights have cost."""

    segments: list[Segment] = field(default_factory=list)
    owner: dict[int, Segment] = field(default_factory=dict)  # of each shard
    rewritten: list[int] = field(default_factory=list)
    files_rewritten: list[int] = field(default_factory=list)
    most_segments: int = 0

    def night(self, changed: dict[int, int]) -> None:
        """Replace or add shards, each with its new rows."""
        for segment in self.segments:
            segment.touched[:] = False
        lost = sum(self.owner[shard].drop(shard) for shard in changed if shard in self.owner)
        remainders = [Remainder(segment.rows, segment.written) for segment in self.segments]
        kept = [self.segments[number] for number in choose_segments(remainders, sum(changed.values()), lost)]
        moved = [segment for segment in self.segments if segment not in kept and segment.rows]
        copies = [segment.touched & (segment.left > 0) for segment in kept]
        again = sum(int(segment.left[copy].sum()) for segment, copy in zip(kept, copies, strict=True))
        copied = sum(segment.rows for segment in moved)
        rows = {shard: int(segment.files[:, at].sum()) for segment in moved for shard, at in segment.place.items()}
        new = write({**rows, **changed})
        self.owner.update(dict.fromkeys(new.place, new))
        self.segments = [*kept, new]
        self.rewritten.append(again + copied)
        self.files_rewritten.append(sum(int(copy.sum()) for copy in copies) + -(-copied // MAX_FILE_ROWS))
        self.most_segments = max(self.most_segments, len(self.segments))

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(segment.rows for segment in self.segments)


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
        files = sum(int((segment.left > 0).sum()) for segment in corpus.segments)
        fill = corpus.rows / files / MAX_FILE_ROWS
        print(
            f"| {name} | {np.mean(corpus.rewritten):,.0f} | {np.mean(corpus.files_rewritten):.1f} | "
            f"{corpus.most_segments} | {files:,} | {fill:.0%} |"
        )


if __name__ == "__main__":
    main()
