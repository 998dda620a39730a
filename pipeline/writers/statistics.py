"""Counts of rows and of the model's work, made while rows are written; they add up over files and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...model.head import Head, Work
from ..content import hash_words
from ..metrics import count
from ..schemas import CONTENT_HASH, EMBEDDING
from ..snapshots.manifest import FileInfo

NORM_BINS = 64  # per doubling of the norm


@dataclass
class FileStats:
    """Counts of rows, by outcome, and the model's work on them.

    Attributes:
        embedded: Rows with a vector that the model made.
        reused: Rows with a vector from an earlier part file.
        copied: Rows of the previous snapshot that were not read again.
        rejected: Rejected rows, which are also counted by reason.
        truncated: Rows, reused ones too, of whose content the model read only the beginning.
        work: The model's work.
        write_seconds: Time of writing.
        sizes: Rows by the size of their content, in the head's unit; sizes from the head's `max_size` on are one.
        norm_bins: Rows by the norm of their vector, in bins as `norm_of` reads them.
        contents: How much content the rows have, as the head's `extent` returns it.
        by_second: Rows by outcome and by the second in which they were finished.
    """

    embedded: int = 0
    reused: int = 0
    copied: int = 0
    rejected: int = 0
    truncated: int = 0
    work: Work = field(default_factory=Work)
    write_seconds: float = 0.0
    rejected_by_reason: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    norm_bins: Counter[int] = field(default_factory=Counter)
    contents: Counter[str] = field(default_factory=Counter)
    by_second: dict[str, Counter[int]] = field(default_factory=dict)

    def __iadd__(self, other: FileStats) -> FileStats:
        """Add the counts of `other`."""
        self.work += other.work
        for attribute in fields(self):
            if attribute.name not in ("work", "by_second"):
                setattr(self, attribute.name, getattr(self, attribute.name) + getattr(other, attribute.name))
        for outcome, rows in other.by_second.items():
            self.add_seconds(outcome, rows)
        return self

    def __bool__(self) -> bool:
        """Return whether anything was counted."""
        return self != FileStats()

    @property
    def vectors(self) -> int:
        """Rows with a vector."""
        return self.embedded + self.reused

    def add_file_rows(self, batch: pa.RecordBatch, head: Head) -> None:
        """Add what the list of files says of rows of a part file or a rejected file."""
        if EMBEDDING in batch.schema.names:
            self.add_vectors(batch, head)
        else:
            self.rejected_by_reason.update(batch.column("reason").to_pylist())

    def described(self, file: FileInfo) -> FileInfo:
        """Return a file with these counts as those of its rows."""
        return replace(
            file,
            truncated=self.truncated,
            rejected_by_reason=dict(sorted(self.rejected_by_reason.items())),
            sizes=dict(sorted(self.sizes.items())),
            norm_bins=dict(sorted(self.norm_bins.items())),
            contents=dict(self.contents),
        )

    def add_vectors(self, part: pa.RecordBatch, head: Head) -> None:
        """Add the sizes and norms of embedded rows, from the head's columns and from `embedding` [n, dim]."""
        sizes = np.minimum(part.column(head.size_column).to_numpy(), head.max_size).astype(np.int64)
        if head.cut_column:
            self.truncated += pc.sum(part.column(head.cut_column)).as_py()
        self.contents.update(extent_of(part, head))
        numbers = part.column(EMBEDDING).flatten().to_numpy(zero_copy_only=False).reshape(part.num_rows, -1)
        squares = np.einsum("ij,ij->i", numbers, numbers, dtype=np.float32)
        with np.errstate(divide="ignore"):
            bins = np.round(np.log2(squares) * (NORM_BINS / 2))
        self.sizes.update(_count_values(sizes))
        self.norm_bins.update(_count_values(bins[np.isfinite(bins)].astype(np.int64)))

    def add_seconds(self, outcome: str, rows: Mapping[int, int]) -> None:
        """Add rows by the second in which they were finished."""
        self.by_second.setdefault(outcome, Counter()).update(rows)

    def count_metrics(self) -> None:
        """Add these counts to Beam's metrics, seconds as milliseconds. Rows are not added: `process` counts them."""
        for name, amount in self.work.counts().items():
            count(f"model_{name}" if name in ("items", "units") else name, amount)
        times = {
            "prepare": self.work.prepare_seconds,
            "model": self.work.model_seconds,
            "write": self.write_seconds,
        }
        for name, seconds in times.items():
            count(f"{name}_msecs", round(1000 * seconds))
        count("rows_truncated", self.truncated)
        for reason, rows in self.rejected_by_reason.items():
            count(f"rows_rejected_{reason.lower().replace(' ', '_').replace('-', '_')}", rows)


@dataclass(frozen=True)
class WrittenFile:
    """A finished file, and counts of its rows; `file` is None for counts that no file belongs to.

    `stats` are those of the rows that the run has read, `copied` those of the others.
    """

    file: FileInfo | None
    stats: FileStats
    copied: FileStats = field(default_factory=FileStats)


def extent_of(part: pa.RecordBatch, head: Head) -> dict[str, int]:
    """Return how much content rows of a part file have, as the head's `extent` returns it."""
    columns = [column.name for column in (*head.content_columns, *head.model_columns)]
    numbers = hash_words(part.column(CONTENT_HASH.name))[:, 3]
    return head.extent({name: part.column(name).to_numpy(zero_copy_only=False) for name in columns}, numbers)


def norm_of(bins: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the norm in the middle of each bin of `norm_bins` [n]."""
    return 2.0 ** (bins / NORM_BINS)


def _count_values(values: NDArray[np.integer]) -> Counter[int]:
    distinct, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))
