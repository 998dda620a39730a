"""The dry run of `embed`: what a run would do, as lines for a terminal."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

from ..inference.model_handler import RecordBatchHandler
from ..options import OptionsError, is_local_run
from ..prepare.job import Job, prepare_job
from ..publish.limits import Counted, damaged_shards, exceeded_limits
from ..run.check_runner import check_runner
from ..run.plan_pipeline import PlanCounts, count_changes
from ..snapshots.history import measured_work
from ..snapshots.segments import add_rows
from ..terminal import print_line, print_note, printable
from .embed_command import download, parse_options


def plan(argv: Sequence[str], handler: RecordBatchHandler | None = None) -> int:
    """Run `audioclip plan` with the flags of `embed`; return the exit status."""
    options = parse_options(argv)
    if options.no_dedupe:
        raise OptionsError("--no_dedupe embeds every row, so there is nothing to plan: run plan without it")
    options.check()
    check_runner(options)
    if options.download_model:
        download(options)
    job, handler = prepare_job(options, handler)
    for note in job.notes:
        print_note(note)
    with tempfile.TemporaryDirectory(prefix="audioclip-beam-") as spill:
        print_line(plan_summary(job, count_changes(job, handler, options, spill if is_local_run(options) else None)))
    return 0


def plan_summary(job: Job, counts: PlanCounts) -> str:
    """Return the plan as lines for a terminal."""
    carry_over = job.carry_over
    carried = sum(segment["rows"]["vectors"] for segment in carry_over.segments)
    carried_bytes = sum(file.bytes for file in carry_over.files)
    read, read_bytes = len(carry_over.read), sum(shard.bytes for shard in carry_over.read)
    against = job.previous["snapshot"] if job.previous else "nothing (the first run)"
    lines = [
        f"against   {against}",
        f"shards    {len(carry_over.shards) - read:,} carried over ({carried:,} rows, {carried_bytes:,} bytes of files), "
        f"{read:,} read ({read_bytes:,} bytes)",
        f"rows      {counts.new:,} new, {counts.changed:,} with another text, {counts.same + carried:,} with the same text, "
        f"{counts.removed:,} removed; {counts.rejected:,} rejected",
        f"vectors   {counts.reused:,} rows reused, {counts.embed:,} rows to embed",
        f"model     {counts.texts:,} texts, {counts.tokens:,} tokens",
    ]
    measured = measured_work(job.output, job.model.fingerprint)
    if measured:
        rate = measured.tokens / measured.seconds
        lines.append(
            f"estimate  {counts.tokens / rate:,.0f} s of model time, at the {rate:,.0f} tokens/s of earlier runs with this "
            f"fingerprint"
        )
    else:
        lines.append("estimate  none: no model time was measured in an earlier run with this fingerprint")
    lines += [f"limits    embed would publish nothing: {excess}" for excess in _exceeded_limits(job, counts)]
    return "\n".join(map(printable, lines))


def _exceeded_limits(job: Job, counts: PlanCounts) -> Iterator[str]:
    """Yield what exceeds a limit of the job, as a run would find it."""
    if job.on_long == "error" and counts.too_long:
        yield f"{counts.too_long:,} rows have more tokens than the model reads, and --on_long error forbids that"
    carried = add_rows(segment["rows"] for segment in job.carry_over.segments)
    vectors = counts.reused + counts.embed
    new = Counted(vectors + counts.rejected, vectors, counts.rejected)
    total = Counted(new.read + carried["read"], vectors + carried["vectors"], counts.rejected + carried["rejected"])
    for _, excess in exceeded_limits(
        job,
        new=new,
        total=total,
        shards=len(job.carry_over.shards),
        damaged=counts.damaged + len(damaged_shards(job.carry_over.segments)),
        duplicate_ids=counts.duplicate_ids,
    ):
        yield excess
