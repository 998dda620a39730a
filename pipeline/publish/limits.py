"""Whether a run may publish: its rows must add up, and no limit that it was given is exceeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from ...model.head import Head
from ...model.messages import plural
from ..canary import Canary, canaries_agree
from ..errors import SnapshotError
from ..options import rejected_limit
from ..prepare.job import Job, Limits
from ..snapshots.manifest import Manifest
from ..snapshots.segments import add_rows
from .corpus import Corpus
from .run_totals import RunTotals

_MAX_NAMED = 5  # shards or ids in an error


def check_canary(job: Job, canary: Canary) -> list[str]:
    """Check the canary of a run, and return what the manifest notes on it.

    Raises:
        SnapshotError: Its vectors differ from those of the snapshot of the same fingerprint, and --force is not given.
    """
    if canaries_agree(canary, job.earlier.canary, job.dtype):
        return []
    reusable = job.earlier.reusable
    earlier = reusable["snapshot"] if reusable else "a run that did not publish"
    other = f"the encoder gives other canary vectors than in {earlier}, of the same fingerprint"
    if reusable and not job.force:
        raise SnapshotError(
            f"{other}: vectors of both would not be comparable; find out what changed (hardware, libraries), or "
            f"embed every {job.head.item} again with --force"
        )
    return [f"{other}: nothing was reused"]


def check_limits(job: Job, totals: RunTotals, corpus: Corpus, *, directory: str) -> None:
    """Raise SnapshotError if the run or its snapshot exceeds one of the limits of the run."""
    stats, rows = totals.stats, add_rows(segment["rows"] for segment in corpus.segments)
    exceeded = exceeded_limits(
        job.limits,
        job.previous,
        new=RowTotals(totals.read, stats.vectors, stats.rejected),
        total=RowTotals(rows["read"], rows["vectors"], rows["rejected"]),
        shards=len(corpus.shards),
        damaged=sum(segment["damaged"] for segment in corpus.segments),
        duplicate_ids=totals.duplicate_ids,
    )
    for limit, excess in exceeded:
        raise SnapshotError(f"{excess}{_explain(limit, job.head, totals, corpus, directory)}")


class RowTotals(NamedTuple):
    """How many rows were read, of how many of them there are vectors, and how many were rejected."""

    read: int
    vectors: int
    rejected: int


def exceeded_limits(
    limits: Limits,
    previous: Manifest | None,
    *,
    new: RowTotals,
    total: RowTotals,
    shards: int,
    damaged: int,
    duplicate_ids: int,
) -> Iterator[tuple[str, str]]:
    """Yield the limits that a run exceeds, each with what exceeds it.

    Args:
        limits: The limits.
        previous: The manifest of the previous snapshot, if there is one.
        new: The rows that the run has read.
        total: The rows of the snapshot that it would publish.
        shards: The shards of that snapshot.
        damaged: How many of these cannot be read to the end.
        duplicate_ids: Ids that occur more than once in that snapshot.
    """
    if damaged > limits.allow_damaged:
        excess = f"{damaged:,} of {plural(shards, 'shard')} cannot be read to the end"
        yield "allow_damaged", f"{excess}, more than --allow_damaged {limits.allow_damaged}"
    if not total.vectors and not limits.allow_empty:
        yield "allow_empty", "no row can be embedded, which only --allow_empty permits"
    for which, rows in (("", new), (", with those carried over,", total)):
        if rows.rejected > rejected_limit(limits.max_rejected, rows.read):
            excess = f"{rows.rejected:,} of {plural(rows.read, 'row')}{which} are rejected"
            yield "max_rejected", f"{excess}, more than --max_rejected {limits.max_rejected}"
            break
    if limits.unique_ids and duplicate_ids:
        yield (
            "unique_ids",
            f"{plural(duplicate_ids, 'id occurs', 'ids occur')} more than once, and --unique_ids forbids that",
        )
    before = previous["totals"]["vectors"] if previous else 0
    if total.vectors < before * limits.max_shrink:
        excess = f"the corpus shrinks from {plural(before, 'row')} with vectors to {total.vectors:,}"
        yield "max_shrink", f"{excess}, below --max_shrink {limits.max_shrink}"


def _explain(limit: str, head: Head, totals: RunTotals, corpus: Corpus, directory: str) -> str:
    """Return what an error adds on a limit that a run has exceeded: the cause or examples, and what to do."""
    if limit == "allow_damaged":
        damaged = corpus.damaged
        more = f", and {len(damaged) - _MAX_NAMED} more" if len(damaged) > _MAX_NAMED else ""
        words = "repair them or leave them out, or accept the loss of their"
        if len(damaged) == 1:
            words = "repair it or leave it out, or accept the loss of its"
        return f": {'; '.join(damaged[:_MAX_NAMED])}{more}; {words} other rows with --allow_damaged {len(damaged)}"
    if limit == "allow_empty":
        rows = add_rows(segment["rows"] for segment in corpus.segments)
        if not rows["read"]:
            return f": no row was read from {plural(len(corpus.shards), 'shard')}; check --input"
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in Counter(rows["rejected_by_reason"]).most_common())
        check = "" if head.by_reference else f"{head.field_flag} and "  # files and tars have no field
        every = "the only row was" if rows["read"] == 1 else f"all {rows['read']:,} rows were"
        return f": {every} rejected ({reasons}); check {check}{directory}/rejected-*.parquet"
    if limit == "max_rejected":
        return f"; the reasons are in {directory}/rejected-*.parquet"
    if limit == "unique_ids":
        return (
            f"; among them {', '.join(map(repr, totals.duplicate_examples[:_MAX_NAMED]))}; give each row its own id, or "
            f"leave --unique_ids out"
        )
    return "; if that is right, run again with a lower --max_shrink"


def check_same_rows(published: Manifest, totals: RunTotals) -> None:
    """Raise SnapshotError if another execution of the graph that published a snapshot read or wrote other rows."""
    counts, stats = published["counts"], totals.stats
    before = counts["read"], counts["embedded"] + counts["reused"], counts["rejected"]
    now = totals.read, stats.embedded + stats.reused, stats.rejected
    if before != now:
        raise SnapshotError(
            f"{published['snapshot']} is already published, with {plural(before[0], 'row')} read, {before[1]} "
            f"with vectors and {before[2]} rejected, and this execution of the same job has {now[0]}, {now[1]} and "
            f"{now[2]}; what is published was not changed: start a new run to embed the corpus as it is now"
        )
