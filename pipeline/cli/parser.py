"""The argument parser of `audioclip-text`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version

from ..flags import add_flags, at_least
from .commands import (
    run_current,
    run_embed,
    run_extract,
    run_fetch,
    run_gc,
    run_log,
    run_plan,
    run_report,
    run_rollback,
    run_search,
    run_validate,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "audioclip-text", description="Embed text corpora with AudioCLIP's text head.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"audioclip-text {version('audioclip-text')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    beam_flags = (
        "Any flag of Apache Beam's may stand beside these: --runner, --direct_num_workers, --temp_location, ..."
    )
    embed = command("embed", run_embed, "embed text shards into a new snapshot; only what changed costs model time")
    plan = command("plan", run_plan, "say what embed would do, without running the model")
    for sub in (embed, plan):
        add_flags(sub)
        sub.epilog = beam_flags
    sub = command("fetch", run_fetch, "download a released checkpoint and the vocabulary, verified")
    sub.add_argument("what", choices=("full", "partial", "vocabulary"))
    sub.add_argument("--dir", default=".cache", help="where to put them (default: .cache)")
    sub = command("extract", run_extract, "write a checkpoint's text head as .safetensors: 254 MB instead of 537")
    sub.add_argument("checkpoint")
    sub.add_argument("target")
    sub = command("log", run_log, "list the snapshots with their counts")
    sub.add_argument("output", metavar="OUT")
    sub = command("current", run_current, "print the path of the current snapshot")
    sub.add_argument("output", metavar="OUT")
    sub = command("search", run_search, "find the rows of the current snapshot that are nearest to texts or vectors")
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("queries", nargs="+", metavar="QUERY", help="a text, or a .npy file: floats [dim] or [n, dim]")
    sub.add_argument("--top", type=at_least(1), default=10, metavar="N", help="how many rows (default: 10)")
    sub.add_argument(
        "--by",
        choices=("cosine", "audio_logits", "image_logits"),
        default="cosine",
        help="cosine, or AudioCLIP's scaled logits for vectors of its audio or image encoder (default: cosine)",
    )
    _add_model(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    sub = command("validate", run_validate, "hold a snapshot against its manifest: exit status 0 sound, 1 not")
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("--snapshot", metavar="NAME", help="default: the current one")
    _add_model(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object instead of a report")
    sub = command(
        "report", run_report, "print the path of the current snapshot's report.html; make it where it is missing"
    )
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("--remake", action="store_true", help="make it again from the part files")
    sub.add_argument("--open", action="store_true", help="open it in the browser of this machine")
    sub = command("rollback", run_rollback, "make an earlier snapshot the current one")
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("snapshot", nargs="?", help="default: the one before the current")
    sub = command("gc", run_gc, "remove old snapshots and what dead runs left")
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("--keep", type=int, required=True, metavar="N", help="how many snapshots to keep")
    sub.add_argument("--dry_run", action="store_true", help="only say what would be removed")
    for name in ("log", "current", "search", "validate", "report", "rollback", "gc"):
        commands.choices[name].epilog = "Beam's flags for stores may stand beside these, as in --s3_endpoint_url=URL."
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Flags for a command that needs the snapshot's own model again."""
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="where the snapshot's checkpoint is (default: where it was)"
    )
    parser.add_argument("--tokenizer_path", metavar="PATH", help="where its vocabulary is (default: where it was)")
