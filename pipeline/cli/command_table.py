"""COMMANDS: every command of `audioclip`, with its arguments and the function that runs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ...model.heads import HEADS
from ...model.release import HEAD_MEGABYTES
from ..flags import MODEL_FLAGS, add_flags, at_least, not_empty, one_of, path_type, port, share
from . import commands


@dataclass(frozen=True)
class Command:
    """One command: the function that runs it, its arguments, and which of Beam's flags it takes.

    `writes` says that its result is files: the exit status says whether they were written, even if stdout cannot be.
    """

    run: Callable[[argparse.Namespace], int]
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    beam: str = "none"  # "all", "object stores" or "none"
    writes: bool = False


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=path_type, metavar="OUT", help="directory of the snapshots")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that loads the model of a snapshot."""
    for name, meaning in MODEL_FLAGS.items():
        parser.add_argument(f"--{name}", type=path_type, metavar="PATH", help=f"{meaning} (default: as recorded)")


def _add_result(parser: argparse.ArgumentParser, content: str, *, required: bool = False) -> None:
    """Add --output of a command whose result can be a directory."""
    parser.add_argument(
        "--output",
        dest="target",
        type=path_type,
        metavar="DIR",
        required=required,
        help=f"new directory for {content}, as Parquet files"
        + ("" if required else " (default: none, they are printed)"),
    )


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    words = ("full", "partial", "vocabulary")
    parser.add_argument("what", type=one_of(*words), choices=words, help="the checkpoint, or the vocabulary alone")
    parser.add_argument("--dir", type=path_type, default=".cache", help="directory for the files (default: .cache)")


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=path_type, help="a released .pt file")
    parser.add_argument("target", type=path_type, help="the .safetensors file to write")
    heads = tuple(HEAD_MEGABYTES)
    parser.add_argument(
        "--head", type=one_of(*heads), choices=heads, default=heads[0], help=f"what to write (default: {heads[0]})"
    )


def _log_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array of objects instead of lines")


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "queries",
        nargs="+",
        metavar="QUERY",
        help="a text, a sound file (also file.wav#t=START,END), a picture, or a .npy file: floats [dim] or [n, dim]",
    )
    parser.add_argument("--top", type=at_least(1), default=10, metavar="N", help="number of rows (default: 10)")
    words = ("cosine", "dot", "logits")
    parser.add_argument(
        "--by",
        type=one_of(*words),
        choices=words,
        default="cosine",
        help="cosine, dot product, or logits: the cosine times AudioCLIP's scale for the two heads (default: cosine)",
    )
    parser.add_argument("--text", action="store_true", help="take every query as a text, whatever it ends in")
    parser.add_argument(
        "--query_head", type=one_of(*HEADS), choices=tuple(HEADS), help="head of the vectors in .npy files, for logits"
    )
    _add_result(parser, "the hits")
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _classify_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "--labels",
        type=path_type,
        required=True,
        metavar="FILE",
        help="a .txt with a label per line, or a .csv or .jsonl with fields label and, optionally, text",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        type=not_empty,
        metavar="TEMPLATE",
        help="template for the labels, as in 'a photo of {}' (default: {}); can be repeated: the vectors are averaged",
    )
    parser.add_argument("--top", type=at_least(1), default=1, metavar="N", help="labels of a row (default: 1)")
    parser.add_argument(
        "--min_probability", type=share, default=0.0, metavar="P", help="leave out less probable labels (default: 0)"
    )
    _add_result(parser, "the labels")
    _add_model(parser)


def _pairs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=path_type, metavar="A", help="directory of the snapshots whose rows get others")
    parser.add_argument("other", type=path_type, metavar="B", help="directory of the snapshots that are searched")
    parser.add_argument("--top", type=at_least(1), default=1, metavar="N", help="rows of B for each of A (default: 1)")
    _add_result(parser, "the pairs", required=True)


def _browse_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", nargs="+", type=path_type, metavar="OUT", help="directories of the snapshots")
    parser.add_argument(
        "--host",
        type=not_empty,
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, for this machine alone)",
    )
    parser.add_argument("--port", type=port, default=0, help="port to listen on (default: 0, a free one)")
    _add_model(parser)


def _validate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "--snapshot", type=not_empty, metavar="NAME", help="snapshot to check (default: the current one)"
    )
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--remake", action="store_true", help="make the report again")
    parser.add_argument("--open", action="store_true", help="open the report in a browser on this machine")


def _changes_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "--from",
        dest="before",
        type=not_empty,
        metavar="SNAPSHOT",
        help="older snapshot (default: the one that was current when the run of the newer one started)",
    )
    parser.add_argument(
        "--to", dest="now", type=not_empty, metavar="SNAPSHOT", help="newer snapshot (default: the current one)"
    )
    parser.add_argument(
        "--output",
        dest="target",
        type=path_type,
        metavar="DIR",
        help="new directory for the rows, as Parquet files (default: none, the numbers are printed)",
    )


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "snapshot",
        nargs="?",
        type=not_empty,
        help="snapshot to make current (default: the one before the current)",
    )


def _gc_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "--keep",
        type=int,
        required=True,
        metavar="N",
        help="snapshots to keep: the current one, those it followed, then the newest others; changes needs 2",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be removed, and remove nothing")


COMMANDS: dict[str, Command] = {
    "embed": Command(
        commands.run_embed,
        "embed shards into a new snapshot; known contents cost no model time",
        add_flags,
        "all",
        True,
    ),
    "plan": Command(
        commands.run_plan,
        "dry run of embed: count what it would do, without the model",
        partial(add_flags, for_plan=True),
        "all",
    ),
    "fetch": Command(
        commands.run_fetch,
        "download and verify a released checkpoint and the vocabulary",
        _fetch_arguments,
        writes=True,
    ),
    "extract": Command(
        commands.run_extract,
        "write one head of a checkpoint as .safetensors: of 537 MB "
        + ", ".join(f"{name} has {size}" for name, size in HEAD_MEGABYTES.items()),
        _extract_arguments,
        writes=True,
    ),
    "log": Command(commands.run_log, "list the snapshots with their counts", _log_arguments, "object stores"),
    "current": Command(commands.run_current, "print the path of the current snapshot", _add_output, "object stores"),
    "search": Command(
        commands.run_search,
        "find the rows of the current snapshot nearest to texts, sounds, pictures or vectors",
        _search_arguments,
        "object stores",
    ),
    "classify": Command(
        commands.run_classify,
        "find the most probable labels of the sounds or pictures of the current snapshot",
        _classify_arguments,
        "object stores",
    ),
    "pairs": Command(
        commands.run_pairs,
        "find for each row of one snapshot the nearest rows of another one",
        _pairs_arguments,
        "object stores",
        True,
    ),
    "browse": Command(
        commands.run_browse,
        "look at and listen to the rows of current snapshots on a page of this machine, and search them there",
        _browse_arguments,
        "object stores",
    ),
    "validate": Command(
        commands.run_validate,
        "check a snapshot against its manifest; exit status 0 if it is valid, else 1",
        _validate_arguments,
        "object stores",
    ),
    "report": Command(
        commands.run_report,
        "print the path of the current snapshot's report.html; make it if it is missing",
        _report_arguments,
        "object stores",
    ),
    "changes": Command(
        commands.run_changes,
        "compare two snapshots: the ids that were added, changed and removed, with their rows",
        _changes_arguments,
        "object stores",
    ),
    "rollback": Command(
        commands.run_rollback, "make an earlier snapshot the current one", _rollback_arguments, "object stores", True
    ),
    "gc": Command(
        commands.run_gc, "remove old snapshots and the files of runs that died", _gc_arguments, "object stores", True
    ),
}
