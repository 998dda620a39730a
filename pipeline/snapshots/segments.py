"""Segments: the parts of a snapshot, each with all rows of some shards, and which of them a run writes again.

A run reads the shards that are new or changed into one new segment, and keeps the rows of all others in their files. So that
there are never many segments, and few files that are nearly empty, it copies the rows of small ones into the new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypedDict

MAX_SEGMENTS = 16

MIN_FILL = 4  # a segment of which less than this part is left is written again

TOTALS: tuple[Literal["read", "vectors", "rejected", "truncated", "without_texts"], ...]
TOTALS = ("read", "vectors", "rejected", "truncated", "without_texts")


class RowCounts(TypedDict):
    """Rows of a segment or of a whole snapshot: `read` are those with `vectors` and the `rejected` ones.

    `contents` says how much content they have, as the head's `extent` returns it.
    """

    read: int
    vectors: int
    rejected: int
    truncated: int
    without_texts: int
    rejected_by_reason: dict[str, int]
    contents: dict[str, int]


class Segment(TypedDict):
    """A part of a snapshot with all rows of some shards.

    Attributes:
        shards: How many shards they came from.
        bytes: The bytes of these.
        damaged: How many of these could not be read to their end.
        written: The rows that the segment had when it was made.
        rows: The counts of its rows.
    """

    shards: int
    bytes: int
    damaged: int
    written: int
    rows: RowCounts


def add_rows(parts: Iterable[RowCounts]) -> RowCounts:
    """Return the sum of the counts of segments."""
    total: RowCounts = {
        "read": 0,
        "vectors": 0,
        "rejected": 0,
        "truncated": 0,
        "without_texts": 0,
        "rejected_by_reason": {},
        "contents": {},
    }
    for part in parts:
        for name in TOTALS:
            total[name] += part[name]
        for reason, rows in part["rejected_by_reason"].items():
            total["rejected_by_reason"][reason] = total["rejected_by_reason"].get(reason, 0) + rows
        for unit, amount in part["contents"].items():
            total["contents"][unit] = total["contents"].get(unit, 0) + amount
    return total


class Remainder(NamedTuple):
    """What is left of a segment in the next snapshot.

    Attributes:
        size: Rows, or shards if these are more: a shard without rows counts, too.
        written: The rows that the segment had when it was made.
    """

    size: int
    written: int


def choose_segments(segments: Sequence[Remainder], new: int, lost: int = 0) -> list[int]:
    """Return the numbers of the segments that are kept, in ascending order; the rows of all others are written again.

    What is written again grows with what changed: segments of which less than a quarter is left are absorbed, then others,
    smallest first, while none is larger than all that is gathered so far, and the smallest ones also if there would be
    more than MAX_SEGMENTS. New rows that take the place of others do not count: a large shard that changes every night must
    not have all others copied. Nothing is left of a segment of size 0, which is neither kept nor written.

    Args:
        segments: What is left of each segment.
        new: About how many rows are read, or how many shards if these are more.
        lost: How many rows, or shards, are not in the segments any more.
    """
    left = {n: segment for n, segment in enumerate(segments) if segment.size}
    kept = sorted(
        (n for n, (size, written) in left.items() if MIN_FILL * size >= written), key=lambda n: (-left[n].size, n)
    )
    nearly_empty = sum(segment.size for n, segment in left.items() if n not in kept)
    gathered = max(0, new - lost) + nearly_empty
    while kept and (new or nearly_empty):
        if left[kept[-1]].size > gathered and len(kept) < MAX_SEGMENTS:
            break
        gathered += left[kept.pop()].size
    return sorted(kept)
