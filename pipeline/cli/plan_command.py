"""The dry run of `embed`: what a run would do, as lines for a terminal."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from ...model.head import Head, Work
from ...model.messages import duration, plural
from ..io.paths import is_local
from ..options import OptionsError, is_local_run
from ..prepare.earlier_vectors import measured_work
from ..prepare.job import Job, prepare_job
from ..prepare.unchanged import Listing
from ..publish.limits import RowTotals, exceeded_limits
from ..run.check_runner import check_runner
from ..run.plan_pipeline import PlanCounts, count_changes
from ..terminal import print_line, print_note, printable
from .embed_command import download, parse_options


def plan(argv: Sequence[str], head: Head | None = None, listing: Listing | None = None) -> int:
    """Run `audioclip plan` with the flags of `embed`, on shards that were listed before; return the exit status."""
    read_all = "--read" in argv
    options = parse_options([flag for flag in argv if flag != "--read"])
    if options.no_dedupe:
        raise OptionsError("--no_dedupe embeds every row, so there is nothing to plan: run plan without it")
    options.check()
    check_runner(options)
    if options.download_model:
        download(options)
    job = prepare_job(options, head, listing)
    headers_only = job.head.by_reference and not read_all
    if read_all and not job.head.by_reference:
        raise OptionsError(f"--read: {job.head.items} are read anyway: leave it out")
    for note in job.notes:
        print_note(note)
    with tempfile.TemporaryDirectory(prefix="audioclip-beam-") as spill:
        spill_or_none = spill if is_local_run(options) else None
        counts = count_changes(job, options, spill_or_none, headers_only=headers_only)
        print_line(plan_summary(job, counts, headers_only=headers_only, local=is_local_run(options)))
    return 0


def plan_summary(job: Job, counts: PlanCounts, *, headers_only: bool = False, local: bool = True) -> str:
    """Return the plan as lines for a terminal.

    Args:
        job: The run.
        counts: What it would do.
        headers_only: Whether no more than the headers of files was read.
        local: Whether the run is one on this machine.
    """
    carry_over, head = job.carry_over, job.head
    listed, carried = job.listed, counts.kept
    carried_bytes = sum(each.file.bytes for each in carry_over.files)
    against = job.previous["snapshot"] if job.previous else "nothing (the first run)"
    reused, to_embed = f"{plural(counts.reused, 'row')} reused", f"{plural(counts.embed, 'row')} to embed"
    lines = [
        f"against   {against}",
        f"shards    {listed.shards - listed.read:,} carried over ({plural(carried, 'row')}, {carried_bytes:,} bytes of "
        f"files), {listed.read:,} read ({listed.read_bytes:,} bytes)",
        f"rows      {counts.new:,} new, {counts.changed:,} with "
        f"{'a file that is new or changed' if headers_only else f'another {head.item}'}, {counts.same + carried:,} with the "
        f"same {head.item}, {counts.removed:,} removed; {counts.rejected:,} rejected",
        *([f"content   {head.describe_extent(counts.extent)} in what is read"] if counts.extent else []),
        f"vectors   {f'{reused}, ' if counts.reused else ''}at most {to_embed}: --read finds those whose "
        f"{head.items} are known"
        if headers_only
        else f"vectors   {reused}, {to_embed}",
        f"model     {head.describe_work(Work(items=counts.items, units=counts.units))}",
    ]
    measured = measured_work(job.output, job.model.info.fingerprint)
    if measured:
        rate = measured.units / measured.model_seconds
        lines.append(
            f"estimate  {duration(counts.units / rate)} of model time, at the {rate:,.0f} {head.unit}/s of earlier runs "
            f"with this fingerprint"
        )
    else:
        lines.append("estimate  none: no model time was measured in an earlier run with this fingerprint")
    place, free = _space_for_copies(job.output, local=local)
    if counts.copied:
        lines.append(
            f"copies    {counts.copied:,} bytes of {head.items} that cannot be read by themselves, in {place}"
            + (f", which has {free:,} free" if free is not None else "")
        )
    lines += [f"note      {note}" for note in counts.notes]
    lines += [f"limits    embed would publish nothing: {excess}" for excess in _exceeded_limits(job, counts)]
    if free is not None and free < counts.copied:
        lines.append(f"limits    embed would publish nothing: {place} has too little space for the copies")
    return "\n".join(map(printable, lines))


def _space_for_copies(output: str, *, local: bool) -> tuple[str, int | None]:
    """Return the place in which a run keeps copies of contents, and the bytes that are free there, if that can be known."""
    if not local:
        return "the run directory", None
    place = output if is_local(output) else tempfile.gettempdir()
    existing = place
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    return place, shutil.disk_usage(existing).free


def _exceeded_limits(job: Job, counts: PlanCounts) -> Iterator[str]:
    """Yield what exceeds a limit of the job, as a run would find it."""
    if counts.forbidden:
        yield job.model.settings.describe_forbidden_rows(counts.forbidden)
    kept_rows = job.listed.kept_rows
    vectors = counts.reused + counts.embed
    new = RowTotals(vectors + counts.rejected, vectors, counts.rejected)
    total = RowTotals(new.read + kept_rows, vectors + counts.kept, counts.rejected + kept_rows - counts.kept)
    for _, excess in exceeded_limits(
        job.limits,
        job.previous,
        new=new,
        total=total,
        shards=job.listed.shards,
        damaged=counts.damaged + job.carry_over.damaged,
        duplicate_ids=counts.duplicate_ids,
    ):
        yield excess
