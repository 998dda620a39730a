"""The commands: each takes parsed arguments and returns the exit status."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from ..terminal import printable

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141  # as a shell says of SIGINT and SIGPIPE


def run_embed(arguments: argparse.Namespace) -> int:
    from .embed import embed

    return embed(arguments.argv)


def run_plan(arguments: argparse.Namespace) -> int:
    from .plan import plan

    return plan(arguments.argv)


def run_fetch(arguments: argparse.Namespace) -> int:
    from ...model.fetch import fetch

    for path in fetch(arguments.what, arguments.dir):
        print(path)
    return EXIT_DONE


def run_extract(arguments: argparse.Namespace) -> int:
    from ...model.checkpoint import extract

    extract(arguments.checkpoint, arguments.target)
    print(arguments.target)
    return EXIT_DONE


def run_log(arguments: argparse.Namespace) -> int:
    from ..snapshots.history import log

    for line in log(arguments.output):
        print(printable(line))
    return EXIT_DONE


def run_current(arguments: argparse.Namespace) -> int:
    from ..snapshots.history import current_path

    print(current_path(arguments.output))
    return EXIT_DONE


def run_search(arguments: argparse.Namespace) -> int:
    from ..search.exact_search import search

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


def run_validate(arguments: argparse.Namespace) -> int:
    from ..validation.validate_snapshot import validate

    verdict = validate(
        arguments.output,
        arguments.snapshot,
        checkpoint=arguments.checkpoint,
        tokenizer_path=arguments.tokenizer_path,
    )
    if arguments.json:
        print(json.dumps(verdict.as_json(), indent=1))
    else:
        for line in verdict.as_lines():
            print(printable(line))
    return EXIT_DONE if verdict.valid else EXIT_FAILED


def run_report(arguments: argparse.Namespace) -> int:
    from ..io.filesystem import is_local
    from ..report.html import ensure_report

    path = ensure_report(arguments.output, remake=arguments.remake)
    print(printable(path))
    if not arguments.open:
        return EXIT_DONE
    if not is_local(path):
        raise ValueError(f"{path} lies on a store: copy it to this machine, and open it there")
    import webbrowser

    if not webbrowser.open(Path(path).resolve().as_uri()):
        raise RuntimeError("no browser was found on this machine: open the file above in another way")
    return EXIT_DONE


def run_rollback(arguments: argparse.Namespace) -> int:
    from ..snapshots.history import rollback

    print(rollback(arguments.output, arguments.snapshot))
    return EXIT_DONE


def run_gc(arguments: argparse.Namespace) -> int:
    from ..snapshots.history import gc

    for name in gc(arguments.output, arguments.keep, dry_run=arguments.dry_run):
        print(f"{'would remove' if arguments.dry_run else 'removed'} {printable(name)}")
    return EXIT_DONE
