"""The manifest of a run's snapshot, made of its job and of what its steps report."""

from __future__ import annotations

import base64
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version

from ..canary import Canary
from ..metrics import pace_by_span
from ..prepare.job import Job
from ..schemas import reasons_of
from ..snapshots.manifest import FORMAT, CheckpointInfo, Counts, ListingInfo, Manifest
from ..snapshots.segments import add_rows
from .corpus import Corpus
from .kept_notes import kept_types
from .run_totals import RunTotals


def make_manifest(
    job: Job,
    snapshot: str,
    started: float,
    totals: RunTotals,
    *,
    corpus: Corpus,
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
        corpus: All of the snapshot.
        files: The list of its files.
        shards: The list of its shards.
        canary: The canary of its encoder.
        notes: What users should know.
    """
    info, stats = job.model.info, totals.stats
    sizes, norm_bins = Counter[int](), Counter[int]()
    for file in corpus.files:
        sizes.update(file.sizes)
        norm_bins.update(file.norm_bins)
    counts: Counts = {
        "read": totals.read,
        "embedded": stats.embedded,
        "reused": stats.reused,
        "rejected": stats.rejected,
        "truncated": stats.truncated,
        "rejected_by_reason": {
            reason: stats.rejected_by_reason[reason]
            for reason in reasons_of(job.head)
            if reason in stats.rejected_by_reason
        },
        "model": stats.work.counts(),
    }
    if job.limits.unique_ids:
        counts["duplicate_ids"] = totals.duplicate_ids
    if any("[]" in field.text for field in job.reading.fields.texts):
        counts["without_texts"] = totals.without_texts
    seconds = {
        "total": round(time.time() - started, 3),
        "read_seconds": round(totals.read_seconds, 6),
        "prepare_seconds": round(stats.work.prepare_seconds, 6),
        "model_seconds": round(stats.work.model_seconds, 6),
        "write_seconds": round(stats.write_seconds, 6),
    }
    checkpoint: CheckpointInfo = {"name": info.name, "sha256": info.sha256}
    if info.released:
        checkpoint["released_sha256"] = info.released
    manifest: Manifest = {
        "format": FORMAT,
        "snapshot": snapshot,
        "created": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "tool_version": version("audioclip-beam"),
        "head": info.head,
        "fingerprint": info.fingerprint,
        "fingerprint_parts": info.fingerprint_parts,
        "weights": info.weights,
        "checkpoint": checkpoint,
        "dim": info.dim,
        "limit": info.limit,
        "options": job.given,
        "deciding": job.deciding,
        "counts": counts,
        "lookup": job.earlier.lookup,
        "totals": add_rows(segment["rows"] for segment in corpus.segments),
        "segments": corpus.segments,
        "sizes": {str(size): rows for size, rows in sorted(sizes.items())},
        "norm_bins": {str(number): rows for number, rows in sorted(norm_bins.items())},
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
    columns = totals.types.kept if totals.types else job.types.final
    manifest["kept_schema"] = base64.b64encode(columns.serialize()).decode()
    return manifest
