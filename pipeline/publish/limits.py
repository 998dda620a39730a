"""Whether a run may publish: its rows must add up, and no limit that it was given is exceeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..canary import Canary, canaries_agree
from ..errors import SnapshotError
from ..job import Job
from ..options import rejected_limit
from ..snapshots.manifest import Manifest
from ..snapshots.segments import Segment, add_rows
from .run_totals import RunTotals

_MAX_NAMED = 5  # shards in an error


def check_canary(job: Job, canary: Canary) -> list[str]:
    """Check the canary of a run, and return what the manifest notes on it.

    Raises:
        SnapshotError: Its vectors differ from those of the snapshot of the same fingerprint, and --force is not given.
    """
    if job.reusable is None or canaries_agree(canary, job.canary, job.dtype):
        return []
    other = f"the encoder gives other canary vectors than in {job.reusable['snapshot']}, of the same fingerprint"
    if not job.force:
        raise SnapshotError(
            f"{other}: vectors of both would not be comparable; find out what changed (hardware, libraries), or "
            f"embed every text again with --force"
        )
    return [f"{other}: nothing was reused"]


def check_totals(job: Job, totals: RunTotals, segments: Sequence[Segment], *, directory: str) -> None:
    """Raise SnapshotError if rows are missing, or if the run or the snapshot exceeds one of the limits of the run.

    `segments` are all of the snapshot.
    """
    read, stats, rows = totals.read, totals.stats, add_rows(segment["rows"] for segment in segments)
    written = sum(file.rows for file in totals.files)
    if (
        not read == stats.vectors + stats.rejected == written
        or totals.shards != job.read_shards
        or any(segment.read != segment.stats.vectors + segment.stats.rejected for segment in totals.segments.values())
    ):
        raise SnapshotError(
            f"rows do not add up: read {read} from {totals.shards} of {job.read_shards} shards, embedded "
            f"{stats.embedded}, reused {stats.reused}, rejected {stats.rejected}, written {written}; "
            f"run again, and report this if it happens twice"
        )
    carried = sum(segment["rows"]["read"] for segment in job.carry_over.segments)
    if len(totals.carried) != job.carried_files or sum(file.rows for file in totals.carried) != carried:
        raise SnapshotError(
            f"{len(totals.carried)} of {job.carried_files} files were carried over; run again, and report this if it "
            f"happens twice"
        )
    shards, damaged = sum(segment["shards"] for segment in segments), damaged_shards(segments)
    if len(damaged) > job.allow_damaged:
        more = f", and {len(damaged) - _MAX_NAMED} more" if len(damaged) > _MAX_NAMED else ""
        raise SnapshotError(
            f"{len(damaged)} of {shards} shards could not be read to the end: "
            f"{'; '.join(damaged[:_MAX_NAMED])}{more}; repair or leave them out, or accept the loss of their "
            f"other rows with --allow_damaged {len(damaged)}"
        )
    if not rows["vectors"] and not job.allow_empty:
        if rows["read"]:
            reasons = Counter(rows["rejected_by_reason"]).most_common()
            raise SnapshotError(
                f"all {rows['read']:,} rows were rejected ({', '.join(f'{reason} {n:,}' for reason, n in reasons)}): check "
                f"--text_field and {directory}/rejected-*.parquet, or publish an empty snapshot with --allow_empty"
            )
        raise SnapshotError(
            f"no row was read from {shards} shards: check --input, or publish an empty snapshot with --allow_empty"
        )
    for what, rejected, of in (
        ("", stats.rejected, read),
        (", with those carried over,", rows["rejected"], rows["read"]),
    ):
        if rejected > rejected_limit(job.max_rejected, of):
            raise SnapshotError(
                f"{rejected} of {of} rows{what} were rejected, more than --max_rejected {job.max_rejected}; the "
                f"reasons are in {directory}/rejected-*.parquet"
            )
    if job.unique_ids and totals.duplicate_ids:
        raise SnapshotError(
            f"{totals.duplicate_ids} ids occur more than once, and --unique_ids forbids that; among them "
            f"{', '.join(map(repr, totals.duplicate_examples[:5]))}"
        )
    before = job.previous["totals"]["read"] if job.previous else 0
    if rows["read"] < before * job.max_shrink:
        raise SnapshotError(
            f"the corpus shrank from {before} rows to {rows['read']}, below --max_shrink {job.max_shrink}; if "
            f"that is right, run again with a lower --max_shrink"
        )


def damaged_shards(segments: Iterable[Segment]) -> list[str]:
    """Return the shards that were not read to their end, with the reason."""
    return sorted(f"{shard} ({reason})" for segment in segments for shard, reason in segment["damaged"].items())


def check_same_rows(published: Manifest, totals: RunTotals) -> None:
    """Raise SnapshotError if another execution of the graph that published a snapshot read or wrote other rows."""
    counts, stats = published["counts"], totals.stats
    before = counts["read"], counts["embedded"] + counts["reused"], counts["rejected"]
    now = totals.read, stats.embedded + stats.reused, stats.rejected
    if before != now:
        raise SnapshotError(
            f"{published['snapshot']} is already published, with {before[0]} rows read, {before[1]} with vectors and "
            f"{before[2]} rejected, and this execution of the same job has {now[0]}, {now[1]} and {now[2]}; what is "
            f"published was not changed: start a new run to embed the corpus as it is now"
        )
