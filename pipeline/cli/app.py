"""The program `audioclip`: parse a command line, run the command, and turn errors and signals into exit statuses."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from ...model.messages import SettingError
from ..run.signals import Interrupted, end_process, handle_signals, ignore_signals
from ..terminal import print_error, printable, printable_lines
from .commands import EXIT_BROKEN_PIPE, EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from .parser import PROGRAM, UsageError, parse

_FORMAT = "audioclip: %(levelname)s: %(message)s"

# Beam warns of these at every start, and no one can act on them: extras that are not needed, an unused figure.
_NOISE = ("apitools not found", "Resource module is not available")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 2 usage error, 128 + n ended by signal n."""
    _open_standard_streams()
    with handle_signals():
        try:
            status = _run(list(sys.argv[1:] if argv is None else argv))
        except Interrupted as interruption:
            print_error(f"interrupted by {interruption.name}")
            end_process(128 + interruption.signum)
        except KeyboardInterrupt:  # not from a signal that this process handles, as in a test
            print_error("interrupted by SIGINT")
            status = 130
    if argv is None:
        ignore_signals()  # the program ends now: torch would abort if that were interrupted
    return status


def _run(argv: list[str]) -> int:
    """Run one command; return the exit status."""
    _set_up_logging()
    try:
        arguments = parse(argv)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the encoding lacks is escaped, without an error
            sys.stdout.reconfigure(errors="backslashreplace")
        if arguments.beam and arguments.command not in ("embed", "plan"):
            from ..options import set_object_store_options

            set_object_store_options(arguments.beam)
        status = int(arguments.run(arguments))
        return _flush(status, strict=not arguments.writes)
    except UsageError as error:
        print_error(error, f"See `{' '.join(filter(None, (PROGRAM, error.command)))} --help`.")
        return EXIT_USAGE
    except SettingError as error:
        print_error(error.as_flag())
        return EXIT_USAGE if isinstance(error, ValueError) else EXIT_FAILED
    except ValueError as error:  # InputError, OptionsError, CheckpointError, ...: found before anything started
        print_error(error)
        return EXIT_USAGE
    except (RuntimeError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _is_closed(sys.stdout):
            _discard_output(sys.stdout)
            return EXIT_BROKEN_PIPE
        print_error(error)
        return EXIT_FAILED
    finally:
        _flush(EXIT_DONE, strict=False)


def _open_standard_streams() -> None:
    """Open os.devnull for each standard stream that was closed at start: a file must not get its descriptor."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free descriptor, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _flush(status: int, *, strict: bool) -> int:
    """Write out both streams and return `status`; with `strict` raise OSError if stdout cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            closed = isinstance(error, BrokenPipeError)
            _discard_output(stream)
            if strict and stream is sys.stdout:
                if closed:
                    return EXIT_BROKEN_PIPE
                raise OSError(f"standard output cannot be written: {getattr(error, 'strerror', error)}") from error
    return status


def _is_closed(stream: TextIO) -> bool:
    """Return whether the reader of `stream` is gone, as in `| head`."""
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors are reported anyway
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _discard_output(stream: TextIO) -> None:
    """Send what `stream` still holds to os.devnull: Python would fail to write it at its end and exit with 120."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _set_up_logging() -> None:
    """Log warnings as one line each; Beam's tracebacks appear once, in the error that ends the run."""
    stderr = logging.StreamHandler()
    stderr.setFormatter(_Formatter(_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[stderr])
    logging.raiseExceptions = False  # stderr may be full or closed
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.getMessage().startswith(_NOISE))
