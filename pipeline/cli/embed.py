"""Run one embedding job from the command line: options, runner, progress, summary."""

from __future__ import annotations

from collections.abc import Sequence

from ..embed import EmbedCorpus
from ..metrics import SECONDS
from ..options import EmbedOptions, reject_unknown_flags
from ..snapshots.commit import read_manifest
from ..snapshots.manifest import Manifest
from ..snapshots.run_directory import run_path
from ..terminal import print_note, printable
from .runner import run, show_progress


def parse(argv: Sequence[str]) -> EmbedOptions:
    """EmbedOptions from flags; OptionsError for flags that neither we nor Beam know."""
    options = EmbedOptions(list(argv))
    reject_unknown_flags(options)
    return options


def embed(argv: Sequence[str]) -> int:
    """Run `audioclip-text embed` with these flags; gives the exit status."""
    options = parse(argv)
    options.check()
    if options.download_model:
        download(options)
    corpus = EmbedCorpus(options)
    job = corpus.job
    for note in job.notes:
        print_note(note)
    if job.model.untrained:
        print_note("WARNING: the weights are untrained: the vectors try the machinery out and carry no meaning")
    try:
        with show_progress(known_total=bool(job.bits)):
            ended = run(corpus, options)
    finally:
        corpus.close()
    if not ended:
        print(f"submitted {corpus.snapshot}: `audioclip-text log {job.output}` lists it once it is published")
        return 0
    manifest = read_manifest(job.output, str(corpus.snapshot))
    if manifest is None:
        raise RuntimeError(f"the run ended, but {job.output} holds no manifest of {corpus.snapshot}")
    print(run_summary(job.output, manifest))
    return 0


def download(options: EmbedOptions) -> None:
    """Fetch the checkpoint and the vocabulary that the options name, where they are missing."""
    from ...model.fetch import fetch

    fetch(options.checkpoint if options.checkpoint in ("full", "partial") else "vocabulary")


def run_summary(output: str, manifest: Manifest) -> str:
    """What a person wants to know of a finished run."""
    counts, seconds = manifest["counts"], manifest["seconds"]
    why = ", ".join(f"{reason} {rows:,}" for reason, rows in counts["rejected_by_reason"].items())
    path = run_path(output, manifest["snapshot"])
    model = seconds.get("model_seconds", 0) + seconds.get("tokenize_seconds", 0)
    lines = [
        f"snapshot  {path}",
        f"rows      {counts['read']:,} read = {counts['embedded']:,} embedded + {counts['reused']:,} reused + "
        f"{counts['rejected']:,} rejected{f' ({why})' if why else ''}",
        f"model     {counts['model_texts']:,} texts, {counts['tokens']:,} tokens"
        + (f", {1 - counts['nodes'] / counts['tokens']:.0%} of them shared" if counts["nodes"] else "")
        + (f", {counts['micro_batches']:,} micro-batches" if counts["micro_batches"] else "")
        + (f" with {1 - counts['tokens'] / counts['slots']:.0%} padding in attention" if counts["slots"] else "")
        + (f", {counts['model_texts'] / model:,.0f} texts/s" if model else "")
        + (f"; {counts['truncated']:,} rows truncated" if counts["truncated"] else "")
        + (f"; out of memory {counts['oom_retries']:,} times, in smaller pieces then" if counts["oom_retries"] else ""),
        f"time      {seconds['total']:,.1f} s, {counts['read'] / max(seconds['total'], 1e-9):,.0f} rows/s; of all workers "
        + ", ".join(f"{name.removesuffix('_seconds')} {seconds.get(name, 0):,.1f} s" for name in SECONDS),
    ]
    lines += [f"note      {note}" for note in manifest["notes"]]
    if manifest["weights"] == "untrained":
        lines.append("weights   untrained: the vectors carry no meaning")
    if "report" in manifest:
        lines.append(f"look      {path}/{manifest['report']}")
    lines.append(f"""read it   duckdb -c "SELECT id, embedding FROM '{path}/part-*.parquet' LIMIT 5\"""")
    return "\n".join(map(printable, lines))
