"""The command line: flags in, a run and a summary out. Beam and torch are imported by the commands that need them.

audioclip-text embed --input 'texts/*.jsonl' --output out --checkpoint full
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import select
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from .escape import printable
from .flags import add_flags, at_least

_FORMAT = "audioclip-text: %(levelname)s: %(message)s"
EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_INTERRUPTED, EXIT_NOBODY_READS = 130, 141  # as a shell says of SIGINT and SIGPIPE

# What Beam warns of at every start and nobody can act on: extras that are not needed, a figure that nobody asked for.
_NOISE = ("apitools not found", "Resource module is not available")


def _parser() -> argparse.ArgumentParser:
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
    embed = command("embed", _embed, "embed text shards into a new snapshot; only what changed costs model time")
    plan = command("plan", _plan, "say what embed would do, without running the model")
    for sub in (embed, plan):
        add_flags(sub)
        sub.epilog = beam_flags
    sub = command("fetch", _fetch, "download a released checkpoint and the vocabulary, verified")
    sub.add_argument("what", choices=("full", "partial", "vocabulary"))
    sub.add_argument("--dir", default=".cache", help="where to put them (default: .cache)")
    sub = command("extract", _extract, "write a checkpoint's text head as .safetensors: 254 MB instead of 537")
    sub.add_argument("checkpoint")
    sub.add_argument("target")
    sub = command("log", _log, "list the snapshots with their counts")
    sub.add_argument("output", metavar="OUT")
    sub = command("current", _current, "print the path of the current snapshot")
    sub.add_argument("output", metavar="OUT")
    sub = command("search", _search, "find the rows of the current snapshot that are nearest to texts or vectors")
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
    sub = command("validate", _validate, "hold a snapshot against its manifest: exit status 0 sound, 1 not")
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("--snapshot", metavar="NAME", help="default: the current one")
    _add_model(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object instead of a report")
    sub = command(
        "report", _report, "print the path of the current snapshot's report.html; make it where it is missing"
    )
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("--remake", action="store_true", help="make it again from the part files")
    sub.add_argument("--open", action="store_true", help="open it in the browser of this machine")
    sub = command("rollback", _rollback, "make an earlier snapshot the current one")
    sub.add_argument("output", metavar="OUT")
    sub.add_argument("snapshot", nargs="?", help="default: the one before the current")
    sub = command("gc", _gc, "remove old snapshots and what dead runs left")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status: 0 done, 1 failed, 2 the command cannot be run as it was given."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments, rest = parser.parse_known_args(given)
    if rest and arguments.command in ("fetch", "extract"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.argv = given[given.index(arguments.command) + 1 :]
    _quiet_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character gets its number, and no traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if arguments.command not in ("embed", "plan", "fetch", "extract"):
            from .options import set_store_options

            set_store_options(rest)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except ValueError as error:  # InputError, OptionsError, CheckpointError, ...: found before anything started
        return _fail(error, EXIT_USAGE)
    except (RuntimeError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_NOBODY_READS
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail(
            "interrupted: nothing was published; run the same command again to go on from what is finished",
            EXIT_INTERRUPTED,
        )


def _nobody_reads() -> bool:
    """Whether it is our own output that is closed, as by `| head`; then Python shall not complain of it at its end."""
    output, asked = sys.stdout.fileno(), select.poll()
    asked.register(output, 0)  # errors are told unasked
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _fail(error: object, status: int) -> int:
    print(f"audioclip-text: error: {_shown(str(error))}", file=sys.stderr)
    return status


def _shown(text: str) -> str:
    """`text` for a terminal, lines kept: names of files, fields and ids in it come from strangers."""
    return "\n".join(map(printable, text.split("\n")))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


def _quiet_logging() -> None:
    """Warnings as one line each; Beam's own tracebacks come once, with the error that ends the run."""
    stderr = logging.StreamHandler()
    stderr.setFormatter(_Formatter(_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[stderr])
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.getMessage().startswith(_NOISE))


def _embed(arguments: argparse.Namespace) -> int:
    from .run import embed

    return embed(arguments.argv)


def _plan(arguments: argparse.Namespace) -> int:
    from .plan import plan

    return plan(arguments.argv)


def _fetch(arguments: argparse.Namespace) -> int:
    from ..model.fetch import fetch

    for path in fetch(arguments.what, arguments.dir):
        print(path)
    return EXIT_DONE


def _extract(arguments: argparse.Namespace) -> int:
    from ..model.checkpoint import extract

    extract(arguments.checkpoint, arguments.target)
    print(arguments.target)
    return EXIT_DONE


def _log(arguments: argparse.Namespace) -> int:
    from .history import log

    for line in log(arguments.output):
        print(printable(line))
    return EXIT_DONE


def _current(arguments: argparse.Namespace) -> int:
    from .history import current_path

    print(current_path(arguments.output))
    return EXIT_DONE


def _search(arguments: argparse.Namespace) -> int:
    from .search import search

    found = search(
        arguments.output,
        arguments.queries,
        top=arguments.top,
        by=arguments.by,
        checkpoint=arguments.checkpoint,
        tokenizer_path=arguments.tokenizer_path,
    )
    if arguments.json:
        print(json.dumps(found.as_json(), indent=1))
        return EXIT_DONE
    for note in found.notes:
        print(f"audioclip-text: {printable(note)}", file=sys.stderr)
    for line in found.as_table(shutil.get_terminal_size().columns if sys.stdout.isatty() else None):
        print(line)
    return EXIT_DONE


def _validate(arguments: argparse.Namespace) -> int:
    from .validate import validate

    verdict = validate(
        arguments.output,
        arguments.snapshot,
        checkpoint=arguments.checkpoint,
        tokenizer_path=arguments.tokenizer_path,
    )
    if arguments.json:
        print(json.dumps(verdict.as_json(), indent=1))
    else:
        for line in verdict.as_report():
            print(printable(line))
    return EXIT_DONE if verdict.sound else EXIT_FAILED


def _report(arguments: argparse.Namespace) -> int:
    from .report import report
    from .stores import is_local

    path = report(arguments.output, remake=arguments.remake)
    print(printable(path))
    if not arguments.open:
        return EXIT_DONE
    if not is_local(path):
        raise ValueError(f"{path} lies on a store: copy it to this machine, and open it there")
    import webbrowser

    if not webbrowser.open(Path(path).resolve().as_uri()):
        raise RuntimeError("no browser was found on this machine: open the file above in another way")
    return EXIT_DONE


def _rollback(arguments: argparse.Namespace) -> int:
    from .history import rollback

    print(rollback(arguments.output, arguments.snapshot))
    return EXIT_DONE


def _gc(arguments: argparse.Namespace) -> int:
    from .history import gc

    for name in gc(arguments.output, arguments.keep, dry_run=arguments.dry_run):
        print(f"{'would remove' if arguments.dry_run else 'removed'} {printable(name)}")
    return EXIT_DONE
