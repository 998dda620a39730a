"""Counts of rows and of the model's work, made while rows are written; they add up over files and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..metrics import MODEL_COUNTS, count
from ..schemas import REASONS
from ..snapshots.manifest import FileInfo
from ..snapshots.segments import RowCounts

MAX_TOKENS = 128  # longer texts are counted under this number
NORM_BINS = 64  # per doubling of the norm


@dataclass
class FileStats:
    """Counts of rows, by outcome, and of the model's work on them.

    `token_counts` maps a text's tokens before truncation, at most MAX_TOKENS, to rows; `norm_bins` maps a bin, as
    `norm_of` reads it, to rows; `by_second` maps an outcome to rows by the second in which they were finished.
    """

    embedded: int = 0
    reused: int = 0
    rejected: int = 0
    truncated: int = 0
    model_texts: int = 0
    tokens: int = 0
    nodes: int = 0
    slots: int = 0
    micro_batches: int = 0
    oom_retries: int = 0
    tokenize_seconds: float = 0.0
    model_seconds: float = 0.0
    write_seconds: float = 0.0
    rejected_by_reason: Counter[str] = field(default_factory=Counter)
    token_counts: Counter[int] = field(default_factory=Counter)
    norm_bins: Counter[int] = field(default_factory=Counter)
    by_second: dict[str, Counter[int]] = field(default_factory=dict)

    def __iadd__(self, other: FileStats) -> FileStats:
        """Add the counts of `other`."""
        for attribute in fields(self):
            if attribute.name != "by_second":
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

    def row_counts(self, without_texts: int) -> RowCounts:
        """Return the counts of rows as a manifest has them."""
        return {
            "read": self.vectors + self.rejected,
            "vectors": self.vectors,
            "rejected": self.rejected,
            "truncated": self.truncated,
            "without_texts": without_texts,
            "rejected_by_reason": {
                reason: self.rejected_by_reason[reason] for reason in REASONS if reason in self.rejected_by_reason
            },
        }

    def add_histograms(self, token_counts: Mapping[str, int], norm_bins: Mapping[str, int]) -> None:
        """Add histograms as a manifest has them, with numbers as text."""
        for histogram, added in ((self.token_counts, token_counts), (self.norm_bins, norm_bins)):
            histogram.update({int(number): rows for number, rows in added.items()})

    def add_model(self, counts: Mapping[str, float]) -> None:
        """Add the counts of the model's work that `embed_batch` made."""
        for name in (*MODEL_COUNTS, "tokenize_seconds", "model_seconds"):
            setattr(self, name, getattr(self, name) + counts.get(name, 0))

    def add_vectors(self, part: pa.RecordBatch) -> None:
        """Add the tokens and norms of embedded rows, from the columns `n_tokens` and `embedding` [n, dim]."""
        lengths = np.minimum(part.column("n_tokens").to_numpy(), MAX_TOKENS)
        numbers = part.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(part.num_rows, -1)
        squares = np.einsum("ij,ij->i", numbers, numbers, dtype=np.float32)
        with np.errstate(divide="ignore"):
            bins = np.round(np.log2(squares) * (NORM_BINS / 2))
        self.token_counts.update(_count_values(lengths))
        self.norm_bins.update(_count_values(bins[np.isfinite(bins)].astype(np.int64)))

    def add_seconds(self, outcome: str, rows: Mapping[int, int]) -> None:
        """Add rows by the second in which they were finished."""
        self.by_second.setdefault(outcome, Counter()).update(rows)

    def count_metrics(self) -> None:
        """Add these counts to Beam's metrics, seconds as milliseconds. Rows are not added: `process` counts them."""
        for name in MODEL_COUNTS:
            count(name, getattr(self, name))
        for name in ("tokenize", "model", "write"):
            count(f"{name}_msecs", round(1000 * getattr(self, f"{name}_seconds")))
        count("rows_truncated", self.truncated)
        for reason, rows in self.rejected_by_reason.items():
            count(f"rows_rejected_{reason.lower().replace(' ', '_').replace('-', '_')}", rows)


@dataclass(frozen=True)
class WrittenFile:
    """A finished file, and the counts of its rows; `file` is None for counts that no file belongs to."""

    file: FileInfo | None
    stats: FileStats


def norm_of(bins: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the norm in the middle of each bin of `norm_bins` [n]."""
    return 2.0 ** (bins / NORM_BINS)


def _count_values(values: NDArray[np.integer]) -> Counter[int]:
    distinct, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))
