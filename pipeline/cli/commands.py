"""The commands: each takes parsed arguments and returns the exit status. Beam and torch are imported if needed."""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ...model.messages import plural
from ..flags import MODEL_FLAGS
from ..run.signals import end_at_once
from ..terminal import print_line, print_note, print_result, printable

if TYPE_CHECKING:
    from ..prepare.unchanged import Listing

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

EXIT_BROKEN_PIPE = 141  # what a shell reports for SIGPIPE


def run_embed(arguments: argparse.Namespace) -> int:
    """Embed shards into a new snapshot, unless the current one is what a run would publish again."""
    # The launcher of a template must hand over a job graph, whatever the job will find.
    found = None if "template_location" in arguments.beam else _compare_with_current(arguments)
    if isinstance(found, str):
        print_result(f"unchanged since {found}: nothing to do; --force runs anyway")
        return EXIT_DONE
    with _importing():
        if not arguments.beam:  # a local run
            from ...model.heads import find_head
            from ..inference.shared_encoder import start_reading

            head = find_head(arguments.head)
            start_reading(head, head.settings(vars(arguments)))
        from .embed_command import embed
    return embed(arguments.argv, found)


@contextmanager
def _importing() -> Iterator[None]:
    """Import Beam and torch without garbage collection, and without any of what they leave at the end of the process.

    They make a million objects that stay: looking through them takes half a second here, and nearly a second at the end.
    """
    first = "apache_beam" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        gc.enable()


def run_plan(arguments: argparse.Namespace) -> int:
    """Print what `embed` would do."""
    found = _compare_with_current(arguments)
    if isinstance(found, str):
        print_line(f"unchanged since {found}: embed would do nothing")
        return EXIT_DONE
    with _importing():
        from .plan_command import plan
    return plan(arguments.argv, listing=found)


def _compare_with_current(arguments: argparse.Namespace) -> str | Listing | None:
    """Return the name of the current snapshot if a run would publish the same again, or the shards if they were listed."""
    if arguments.beam:
        from ..options import set_object_store_options

        set_object_store_options(arguments.beam)
    from ..prepare.unchanged import compare_with_current

    try:
        return compare_with_current(vars(arguments))
    except (ValueError, OSError, RuntimeError):  # a run meets the same error, and reports it
        return None


def run_fetch(arguments: argparse.Namespace) -> int:
    """Download a checkpoint and the vocabulary."""
    from ...model.fetch import fetch

    for path in fetch(arguments.what, arguments.dir):
        print_result(str(path))
    return EXIT_DONE


def run_extract(arguments: argparse.Namespace) -> int:
    """Write one head of a checkpoint."""
    from ...model.checkpoint import extract

    extract(arguments.checkpoint, arguments.target, arguments.head)
    print_result(arguments.target)
    return EXIT_DONE


def run_log(arguments: argparse.Namespace) -> int:
    """List the snapshots."""
    from ..snapshots.history import LOG_HEADER, log

    entries = log(arguments.output)
    if arguments.json:
        print_line(json.dumps([asdict(entry) for entry in entries], indent=1))
        return EXIT_DONE
    for line in (LOG_HEADER, *(entry.as_line() for entry in entries)):
        print_line(printable(line))
    return EXIT_DONE


def run_current(arguments: argparse.Namespace) -> int:
    """Print the path of the current snapshot."""
    from ..snapshots.history import current_path

    print_line(current_path(arguments.output))
    return EXIT_DONE


def _model_files(arguments: argparse.Namespace) -> Mapping[str, str | None]:
    """Return the paths of a snapshot's model that were given, by the name of the flag."""
    return {name: getattr(arguments, name) for name in MODEL_FLAGS}


def run_search(arguments: argparse.Namespace) -> int:
    """Print or write the rows nearest to texts, sounds, pictures or vectors."""
    with _importing():
        from ..search.exact_search import search
    result = search(
        arguments.output,
        arguments.queries,
        top=arguments.top,
        by=arguments.by,
        text=arguments.text,
        query_head=arguments.query_head,
        target=arguments.target,
        **_model_files(arguments),
    )
    if arguments.json:
        print_line(json.dumps(result.as_json(), indent=1))
        return EXIT_DONE
    for note in result.notes:
        print_note(note)
    if arguments.target:
        print_result(f"{plural(sum(map(len, result.hits)), 'hit')} in {arguments.target}")
        return EXIT_DONE
    for line in result.as_table(shutil.get_terminal_size().columns if sys.stdout.isatty() else None):
        print_line(line)
    return EXIT_DONE


def run_classify(arguments: argparse.Namespace) -> int:
    """Print or write the most probable labels of sounds or pictures."""
    with _importing():
        from ..search.classify_rows import classify
    classes = classify(
        arguments.output,
        arguments.labels,
        prompts=arguments.prompt or ("{}",),
        top=arguments.top,
        min_probability=arguments.min_probability,
        target=arguments.target,
        **_model_files(arguments),
    )
    for note in classes.notes:
        print_note(note)
    for line in classes.lines:
        print_line(line)
    if arguments.target:
        print_result(f"{plural(classes.labels, 'label')} in {arguments.target}")
    return EXIT_DONE


def run_pairs(arguments: argparse.Namespace) -> int:
    """Write the nearest rows of another snapshot."""
    from ..search.pairs import find_pairs

    found = find_pairs(arguments.output, arguments.other, arguments.target, top=arguments.top)
    for note in found.notes:
        print_note(note)
    print_result(f"{plural(found.pairs, 'pair')} in {arguments.target}")
    return EXIT_DONE


def run_browse(arguments: argparse.Namespace) -> int:
    """Serve the page until a signal ends the process; nothing is unfinished then."""
    with _importing():
        from ..browse.server import browse

    end_at_once()
    browse(arguments.outputs, host=arguments.host, port=arguments.port, files=_model_files(arguments))
    return EXIT_DONE


def run_validate(arguments: argparse.Namespace) -> int:
    """Check a snapshot against its manifest."""
    from ..validation.validate_snapshot import validate

    result = validate(
        arguments.output,
        arguments.snapshot,
        **_model_files(arguments),
    )
    if arguments.json:
        print_line(json.dumps(result.as_json(), indent=1))
    else:
        for line in result.as_lines():
            print_line(printable(line))
    return EXIT_DONE if result.valid else EXIT_FAILED


def run_report(arguments: argparse.Namespace) -> int:
    """Print the path of the report, and make it if it is missing."""
    from ..io.paths import is_local
    from ..report.html import ensure_report

    path = ensure_report(arguments.output, remake=arguments.remake)
    print_line(printable(path))
    if not arguments.open:
        return EXIT_DONE
    if not is_local(path):
        raise ValueError(f"{path} is in an object store: copy it to this machine and open the copy")
    import webbrowser

    if not webbrowser.open(Path(path).resolve().as_uri()):
        raise RuntimeError("this machine has no browser: open the file above on another one")
    return EXIT_DONE


def run_rollback(arguments: argparse.Namespace) -> int:
    """Make an earlier snapshot the current one."""
    from ..snapshots.history import rollback

    print_result(rollback(arguments.output, arguments.snapshot))
    return EXIT_DONE


def run_changes(arguments: argparse.Namespace) -> int:
    """Compare two snapshots."""
    from ..changes.compare_snapshots import find_changes

    changes = find_changes(arguments.output, arguments.before, arguments.now, target=arguments.target)
    print_result(
        f"from {changes.before or 'nothing'} to {changes.now}: {changes.added:,} added, {changes.changed:,} changed, "
        f"{changes.removed:,} removed"
    )
    if arguments.target:
        print_result(f"{plural(len(changes.files), 'file')} in {arguments.target}")
    return EXIT_DONE


def run_gc(arguments: argparse.Namespace) -> int:
    """Remove old snapshots and the files of dead runs."""
    from ..snapshots.history import gc

    for name in gc(arguments.output, arguments.keep, dry_run=arguments.dry_run):
        print_result(f"{'would remove' if arguments.dry_run else 'removed'} {name}")
    return EXIT_DONE
