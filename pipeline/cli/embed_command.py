"""Run one embedding job from the command line: options, runner, progress, summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from apache_beam.options.pipeline_options import DirectOptions

from ...model.head import Head, Work
from ...model.heads import find_head
from ...model.messages import plural
from ..embed import EmbedCorpus
from ..errors import message_of
from ..inference.gpus import HOST_MEMORY, gpu_memory, host_memory, processes_for, usable_gpus
from ..inference.model_threads import available_cores
from ..metrics import SECONDS
from ..options import EmbedOptions, is_local_run, reject_unknown_flags
from ..prepare.unchanged import Listing, rows_to_retry
from ..run.check_runner import check_runner, job_server_options
from ..run.runner import run
from ..snapshots.commit import read_manifest
from ..snapshots.manifest import Manifest
from ..snapshots.run_directory import run_path
from ..terminal import print_note, print_result, printable
from .progress import show_progress


def parse_options(argv: Sequence[str]) -> EmbedOptions:
    """Return the options of `argv`; raise OptionsError for flags that this project, Beam and the job server do not know."""
    options = EmbedOptions(list(argv))
    reject_unknown_flags(options, [option.name for option in job_server_options(options)])
    return options


def embed(argv: Sequence[str], listing: Listing | None = None) -> int:
    """Run `audioclip embed` with these flags, on shards that were listed before; return the exit status."""
    options = parse_options(argv)
    options.check()
    check_runner(options)
    check_device(options)
    if options.download_model:
        download(options)
    corpus = EmbedCorpus(options, listing=listing)
    job = corpus.job
    try:
        for note in job.notes:
            print_note(note)
        if job.model.info.untrained:
            print_note("WARNING: the weights are untrained: random weights, for testing only")
        share_gpus(options, argv, job.head, job.rows)
        total = job.listed.read_bytes
        with show_progress(total_bytes=total, head=job.head):
            finished = _run(corpus, options)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(with_outcome(message_of(error), corpus)) from error
    finally:
        corpus.close()
    if not finished:
        print_result(f"submitted {corpus.snapshot}: `audioclip log {job.output}` lists it when it is published")
        return 0
    manifest = read_manifest(job.output, str(corpus.snapshot))
    if manifest is None:
        raise RuntimeError(
            f"the run ended, but {job.output} contains no manifest of {corpus.snapshot}: run the same command again"
        )
    for line in run_summary(job.output, manifest).split("\n"):
        print_result(line)
    return 0


def _run(corpus: EmbedCorpus, options: EmbedOptions) -> bool:
    """Run the job. Whatever its error, the command line, which has been checked before, is not at fault."""
    try:
        return run(corpus, options)
    except OSError:
        raise
    except Exception as error:
        raise RuntimeError(str(error) or type(error).__name__) from error


def with_outcome(message: str, corpus: EmbedCorpus) -> str:
    """Return the error message of a run, which also says what was published."""
    if re.search(rf"\b{corpus.snapshot} (is already|may have been) published\b", message):
        return message
    if corpus.local:
        return f"{message}; nothing was published"
    return f"{message}; `audioclip log {corpus.job.output}` shows whether {corpus.snapshot} was published"


def check_device(options: EmbedOptions) -> None:
    """Raise ValueError or RuntimeError if a local run lacks the device; on a remote runner the workers look for it.

    Print a note if the machine has a GPU that torch does not see.
    """
    from ...model.device import pick_device, unseen_gpu

    if is_local_run(options):
        pick_device(options.device, options.dtype)
        if note := unseen_gpu(options.device):
            print_note(note)


def share_gpus(options: EmbedOptions, argv: Sequence[str], head: Head, rows: int) -> None:
    """Have a local run over about `rows` rows start as many processes as its GPUs need, unless flags of Beam's decide it."""
    flags = {token.partition("=")[0].replace("-", "_") for token in argv if token.startswith("--")}
    if any(flag.startswith("__direct_") for flag in flags) or not is_local_run(options):
        return
    memory = gpu_memory()
    usable = [memory[number] for number in usable_gpus(options.device, len(memory))]
    gpus, per_process = len(usable), head.gpu_memory
    cores = min(available_cores(), host_memory() // HOST_MEMORY)
    processes = processes_for(usable, per_process, cores, rows)
    if processes > 1:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers, direct.direct_running_mode = processes, "multi_processing"
        print_note(f"{processes} processes share {plural(gpus, 'GPU')}; --direct_num_workers sets another number")


def download(options: EmbedOptions) -> None:
    """Fetch the files of the model that are missing."""
    from ...model.fetch import fetch_missing

    of_head = [getattr(options, flag.name) for flag in find_head(options.head).flags if flag.is_file]
    fetch_missing(options.checkpoint, *of_head)


def run_summary(output: str, manifest: Manifest) -> str:
    """Return the counts, times and paths of a finished run as lines for a terminal."""
    counts, seconds = manifest["counts"], manifest["seconds"]
    reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in counts["rejected_by_reason"].items())
    path = run_path(output, manifest["snapshot"])
    head, work, totals = find_head(manifest["head"]), Work.of(counts["model"], seconds), manifest["totals"]
    extent = head.describe_extent(totals["contents"])
    carried = totals["read"] - counts["read"]
    lines = [
        f"snapshot  {path}",
        *(
            [
                f"corpus    {plural(totals['read'], 'row')} = {totals['vectors']:,} with vectors + "
                f"{totals['rejected']:,} rejected; {carried:,} carried over unread"
            ]
            if carried
            else []
        ),
        f"rows      {counts['read']:,} read = {counts['embedded']:,} embedded + {counts['reused']:,} reused + "
        f"{counts['rejected']:,} rejected{f' ({reasons})' if reasons else ''}",
        *([f"content   {extent}{' in the snapshot' if carried else ''}"] if extent else []),
        f"model     {head.describe_work(work)}"
        + (f"; {plural(counts['truncated'], 'row')} truncated" if counts["truncated"] else "")
        + (
            f"; out of memory {plural(work.oom_retries, 'time')}, repeated in smaller pieces"
            if work.oom_retries
            else ""
        ),
        f"time      {seconds['total']:,.1f} s, {counts['read'] / max(seconds['total'], 1e-9):,.0f} rows/s; of all workers "
        + ", ".join(f"{name.removesuffix('_seconds')} {seconds.get(name, 0):,.1f} s" for name in SECONDS),
    ]
    if counts.get("without_texts"):
        lines.append(f"documents {counts['without_texts']:,} without texts: their list is missing or empty")
    if waiting := rows_to_retry(manifest):
        lines.append(
            f"rejected  {plural(waiting, 'row')} for reasons that may pass: --retry_rejected reads the shards again"
        )
    lines += [f"note      {note}" for note in manifest["notes"]]
    if manifest["fingerprint_parts"]["stored"] == "float16":
        lines.append(
            "vectors   float16, which neither Spark nor BigQuery reads: docs/reading.md has a table of readers"
        )
    if manifest["weights"] == "untrained":
        lines.append("weights   untrained: random weights, for testing only")
    if "report" in manifest:
        lines.append(f"report    {path}/{manifest['report']}")
    lines += _query_lines(path)
    return "\n".join(map(printable, lines))


def _query_lines(path: str) -> list[str]:
    """Return a line that queries the part files in `path`, for a shell; none if DuckDB or the shell cannot take the path."""
    if path.startswith("~") or "\\" in path or "!" in path or printable(path) != path:
        return []
    literal = re.sub(r"[\[*?]", r"[\g<0>]", path).replace("'", "''")  # for DuckDB's globs and strings
    quoted = re.sub(r'["$`]', r"\\\g<0>", literal)
    return [f"""query     duckdb -c "SELECT id, embedding FROM '{quoted}/part-*.parquet' LIMIT 5\""""]
