"""The manifest of a run's snapshot, made of its job and of what its steps report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

from ..canary import Canary
from ..metrics import pace_by_span
from ..prepare.job import Job
from ..schemas import reasons_of
from ..snapshots.manifest import FORMAT, Counts, ListingInfo, Manifest
from ..snapshots.segments import Segment, add_rows
from .kept_notes import kept_types
from .run_totals import RunTotals


class ShardTotals(NamedTuple):
    """Number and bytes of the shards of a segment."""

    shards: int
    bytes: int


def make_segments(job: Job, snapshot: str, written: Mapping[int, ShardTotals], totals: RunTotals) -> list[Segment]:
    """Return the segments of a snapshot: those carried over, and those that the run has `written`, by their numbers."""
    segments = list(job.carry_over.segments)
    for number, (shards, size) in sorted(written.items()):
        new = totals.segments[number]
        segments.append(
            {
                "run": snapshot,
                "checkpoint": job.model.info.name,
                "checkpoint_sha256": job.model.info.sha256,
                "shards": shards,
                "bytes": size,
                "rows": new.stats.row_counts(reasons_of(job.head), new.without_texts),
                "damaged": new.damaged,
                "sizes": {str(size): rows for size, rows in sorted(new.stats.sizes.items())},
                "norm_bins": {str(number): rows for number, rows in sorted(new.stats.norm_bins.items())},
            }
        )
    return segments


def make_manifest(
    job: Job,
    snapshot: str,
    started: float,
    totals: RunTotals,
    *,
    segments: list[Segment],
    files: ListingInfo,
    shards: ListingInfo,
    canary: Canary,
    notes: list[str],
) -> Manifest:
    """Return the manifest of a snapshot, without its report.

    Args:
        job: The run.
        snapshot: The name of the snapshot.
        started: When the run started, in seconds since 1970.
        totals: What its steps report.
        segments: All segments of the snapshot.
        files: The list of its files.
        shards: The list of its shards.
        canary: The canary of its encoder.
        notes: What users should know.
    """
    info, stats = job.model.info, totals.stats
    rows = stats.row_counts(reasons_of(job.head), 0)
    counts: Counts = {
        "read": totals.read,
        "embedded": stats.embedded,
        "reused": stats.reused,
        "rejected": stats.rejected,
        "truncated": stats.truncated,
        "rejected_by_reason": rows["rejected_by_reason"],
        "model": stats.work.counts(),
    }
    if job.limits.unique_ids:
        counts["duplicate_ids"] = totals.duplicate_ids
    if any("[]" in field.text for field in job.reading.fields.texts):
        counts["without_texts"] = sum(segment.without_texts for segment in totals.segments.values())
    seconds = {
        "total": round(time.time() - started, 3),
        "read_seconds": round(totals.read_seconds, 6),
        "prepare_seconds": round(stats.work.prepare_seconds, 6),
        "model_seconds": round(stats.work.model_seconds, 6),
        "write_seconds": round(stats.write_seconds, 6),
    }
    manifest: Manifest = {
        "format": FORMAT,
        "snapshot": snapshot,
        "created": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "tool_version": version("audioclip-beam"),
        "head": info.head,
        "fingerprint": info.fingerprint,
        "fingerprint_parts": info.fingerprint_parts,
        "weights": info.weights,
        "checkpoint": {"name": info.name, "sha256": info.sha256},
        "dim": info.dim,
        "limit": info.limit,
        "options": job.given,
        "counts": counts,
        "lookup": job.earlier.lookup,
        "totals": add_rows(segment["rows"] for segment in segments),
        "segments": segments,
        "seconds": seconds,
        "pace": pace_by_span(stats.by_second, started, seconds["total"]),
        "files": files,
        "shards": shards,
        "model_files": job.model_files,
        "canary": canary,
        "previous": job.previous["snapshot"] if job.previous else None,
        "notes": notes,
    }
    if job.reading.fields.keep:
        manifest["kept"] = kept_types(job, totals.types)
    return manifest
