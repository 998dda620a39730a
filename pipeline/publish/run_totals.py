"""RunTotals: what all steps of a run report, added up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from ..canary import Canary
from ..dedup.duplicate_ids import Duplicates
from ..readers.notes import ShardNotes
from ..readers.read_shards import ShardsRead
from ..readers.settle_types import SettledTypes
from ..snapshots.manifest import FileInfo
from ..writers.carried_files import CarriedFile
from ..writers.statistics import FileStats, WrittenFile

# What the steps of a run report to the publisher.
RunReport: TypeAlias = "WrittenFile | CarriedFile | ShardsRead | Duplicates | SettledTypes | Canary"
_MAX_EXAMPLES = 10


@dataclass
class SegmentTotals:
    """The reports of a run on one of the segments that it wrote added up."""

    stats: FileStats = field(default_factory=FileStats)
    read: int = 0
    without_texts: int = 0  # documents whose list of contents is missing or empty
    damage: dict[str, tuple[int, str]] = field(default_factory=dict)  # of a shard: its first damaged part, the reason

    @property
    def damaged(self) -> dict[str, str]:
        """The shards that were not read to their end, with the reason."""
        return {shard: reason for shard, (_, reason) in sorted(self.damage.items())}


@dataclass
class RunTotals:
    """All reports of a run added up."""

    stats: FileStats = field(default_factory=FileStats)
    read: int = 0
    read_seconds: float = 0.0
    parts: list[tuple[str, int, int]] = field(default_factory=list)  # as in ShardsRead
    segments: dict[int, SegmentTotals] = field(default_factory=lambda: defaultdict(SegmentTotals))
    files: list[FileInfo] = field(default_factory=list)
    carried: list[FileInfo] = field(default_factory=list)
    duplicate_ids: int = 0
    duplicate_examples: list[str] = field(default_factory=list)
    types: SettledTypes | None = None  # None if they were known before the run
    canary: Canary | None = None
    notes: ShardNotes = field(default_factory=ShardNotes)

    @classmethod
    def of(cls, reports: Iterable[RunReport]) -> RunTotals:
        """Return the sum of `reports`."""
        totals = cls()
        for report in reports:
            totals.add(report)
        totals.files.sort(key=name_of)
        return totals

    def add(self, report: RunReport) -> None:
        """Add one report."""
        if isinstance(report, WrittenFile):
            self.stats += report.stats
            if report.file is not None:
                self.files.append(report.file)
                self.segments[report.file.segment].stats += report.stats
        elif isinstance(report, CarriedFile):
            self.carried.append(report.file)
        elif isinstance(report, ShardsRead):
            self.read += report.rows
            self.read_seconds += report.seconds
            segment = self.segments[report.segment]
            segment.read += report.rows
            segment.without_texts += report.without_texts
            self.stats.add_seconds("read", report.by_second)
            self.parts += report.parts
            self.notes.merge(report.notes)
            for shard, number, reason in report.damaged:
                segment.damage[shard] = min((number, reason), segment.damage.get(shard, (number, reason)))
        elif isinstance(report, Duplicates):
            self.duplicate_ids += report.ids
            self.duplicate_examples = (self.duplicate_examples + report.examples)[:_MAX_EXAMPLES]
        elif isinstance(report, SettledTypes):
            self.types = report
        else:
            self.canary = report

    @property
    def shards(self) -> int:
        """The number of shards of which every part was read exactly once."""
        read: dict[str, list[tuple[int, int]]] = {}
        for shard, number, parts in self.parts:
            read.setdefault(shard, []).append((number, parts))
        return sum(sorted(parts) == [(n, len(parts)) for n in range(len(parts))] for parts in read.values())


def name_of(file: FileInfo) -> str:
    """Return the name of a file, by which lists of files are sorted."""
    return file.name
