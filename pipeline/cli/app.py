"""The command line: flags in, a run and a summary out. Beam and torch are imported by the commands that need them.

audioclip-text embed --input 'texts/*.jsonl' --output out --checkpoint full
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
from collections.abc import Sequence

from ..terminal import printable
from .commands import EXIT_BROKEN_PIPE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from .parser import build_parser

_FORMAT = "audioclip-text: %(levelname)s: %(message)s"

# What Beam warns of at every start and nobody can act on: extras that are not needed, a figure that nobody asked for.
_NOISE = ("apitools not found", "Resource module is not available")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status: 0 done, 1 failed, 2 the command cannot be run as it was given."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments, rest = parser.parse_known_args(given)
    if rest and arguments.command in ("fetch", "extract"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.argv = given[given.index(arguments.command) + 1 :]
    _quiet_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character gets its number, and no traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if arguments.command not in ("embed", "plan", "fetch", "extract"):
            from ..options import set_object_store_options

            set_object_store_options(rest)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except ValueError as error:  # InputError, OptionsError, CheckpointError, ...: found before anything started
        return _fail(error, EXIT_USAGE)
    except (RuntimeError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return EXIT_BROKEN_PIPE
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail(
            "interrupted: nothing was published; run the same command again to go on from what is finished",
            EXIT_INTERRUPTED,
        )


def _output_is_closed() -> bool:
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
