"""Segments: the parts of a snapshot that a later run carries over as a whole, and which of them it does carry over.

A run writes at most two: the rows of shards that did not change but had to be read again, and the rows of new or changed
ones. So a shard that changes every night is soon alone in its segment, and only it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

MAX_SEGMENTS = 16

TOTALS: tuple[Literal["read", "vectors", "rejected", "truncated", "without_texts"], ...]
TOTALS = ("read", "vectors", "rejected", "truncated", "without_texts")


class RowCounts(TypedDict):
    """Rows of a segment or of a whole snapshot: `read` are those with `vectors` and the `rejected` ones."""

    read: int
    vectors: int
    rejected: int
    truncated: int
    without_texts: int
    rejected_by_reason: dict[str, int]


class Segment(TypedDict):
    """Rows that are carried over together: the shards they came from, who wrote their files, and what is known of them.

    Attributes:
        run: The snapshot whose run wrote the files.
        checkpoint: The name of that run's checkpoint.
        checkpoint_sha256: Its digest.
        shards: How many were read.
        bytes: Their bytes.
        rows: The counts of their rows.
        damaged: The shards that were not read to their end, with the reason.
        sizes: A histogram of FileStats.
        norm_bins: Another one.
    """

    run: str
    checkpoint: str
    checkpoint_sha256: str
    shards: int
    bytes: int
    rows: RowCounts
    damaged: dict[str, str]
    sizes: dict[str, int]
    norm_bins: dict[str, int]


def add_rows(parts: Iterable[RowCounts]) -> RowCounts:
    """Return the sum of the counts of segments."""
    total: RowCounts = {
        "read": 0,
        "vectors": 0,
        "rejected": 0,
        "truncated": 0,
        "without_texts": 0,
        "rejected_by_reason": {},
    }
    for part in parts:
        for name in TOTALS:
            total[name] += part[name]
        for reason, rows in part["rejected_by_reason"].items():
            total["rejected_by_reason"][reason] = total["rejected_by_reason"].get(reason, 0) + rows
    return total


def choose_segments(sizes: Sequence[int], unchanged: Sequence[bool], changed_bytes: int) -> list[int]:
    """Return the numbers of the segments that are carried over, in ascending order; the shards of all others are read.

    What is read again grows with what changed: segments are absorbed, smallest first, while none is larger than all that
    is read so far, and the smallest ones also if there would be more than MAX_SEGMENTS.

    Args:
        sizes: The bytes of the shards of each segment that still exist as they were.
        unchanged: Whether these are all shards of the segment.
        changed_bytes: The size of the new and changed shards.
    """
    gathered = changed_bytes + sum(size for size, whole in zip(sizes, unchanged, strict=True) if not whole)
    carried = sorted((n for n, whole in enumerate(unchanged) if whole), key=lambda n: (-sizes[n], n))
    read_again = len(carried) < len(sizes)
    while carried and gathered:
        written = bool(changed_bytes) + read_again
        if sizes[carried[-1]] > gathered and len(carried) + written <= MAX_SEGMENTS:
            break
        gathered += sizes[carried.pop()]
        read_again = True
    return sorted(carried)
