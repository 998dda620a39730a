"""RunTotals: what all steps of a run report, added up."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..canary import Canary
from ..dedup.duplicate_ids import Duplicates
from ..readers.notes import ShardNotes
from ..readers.read_shards import ShardsRead
from ..readers.settle_types import SettledTypes
from ..snapshots.manifest import FileInfo
from ..writers.kept_files import KeptRows
from ..writers.statistics import FileStats, WrittenFile

# What the steps of a run report to the publisher.
RunReport: TypeAlias = "WrittenFile | KeptRows | ShardsRead | Duplicates | SettledTypes | Canary"
_MAX_EXAMPLES = 10


@dataclass
class RunTotals:
    """All reports of a run added up."""

    stats: FileStats = field(default_factory=FileStats)
    read: int = 0
    read_seconds: float = 0.0
    parts: array[int] = field(default_factory=lambda: array("q"))  # as in ShardsRead
    damage: dict[int, tuple[int, str]] = field(default_factory=dict)  # of a shard: its first damaged part, the reason
    files: list[FileInfo] = field(default_factory=list)
    copied: int = 0  # rows in these files that were not read
    kept: list[FileInfo] = field(default_factory=list)
    kept_groups: int = 0
    dropped: int = 0
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
            self.copied += report.copied.copied
            if report.file is not None:
                self.files.append(report.file)
        elif isinstance(report, KeptRows):
            self.kept_groups += 1
            self.dropped += report.dropped
            if report.file is not None:
                self.kept.append(report.file)
        elif isinstance(report, ShardsRead):
            self.read += report.rows
            self.read_seconds += report.seconds
            self.stats.add_seconds("read", report.by_second)
            self.parts.extend(report.parts)
            self.notes.merge(report.notes)
            for shard, _, part, reason in report.damaged:
                self.damage[shard] = min((part, reason), self.damage.get(shard, (part, reason)))
        elif isinstance(report, Duplicates):
            self.duplicate_ids += report.ids
            self.duplicate_examples = (self.duplicate_examples + report.examples)[:_MAX_EXAMPLES]
        elif isinstance(report, SettledTypes):
            self.types = report
        else:
            self.canary = report

    @property
    def without_texts(self) -> int:
        """The documents whose list of contents is missing or empty."""
        return sum(self.parts[4::5])

    def by_shard(self, shards: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return of each shard the rows, the documents without contents, and whether each part was read exactly once."""
        number, part, parts, rows, without = np.array(self.parts, np.int64).reshape(-1, 5).T
        # Parts with different numbers, each below the number of parts, and as many as there are parts, are all of them.
        most = int(parts.max(initial=0)) + 1
        found = np.bincount(number, minlength=shards)
        different = np.bincount(np.unique(number * most + part) // most, minlength=shards)
        whole = (found == different) & (found > 0)
        np.logical_and.at(whole, number, (parts == found[number]) & (part < parts))
        return (
            np.bincount(number, rows, shards).astype(np.int64),
            np.bincount(number, without, shards).astype(np.int64),
            whole,
        )


def name_of(file: FileInfo) -> str:
    """Return the name of a file, by which lists of files are sorted."""
    return file.name
