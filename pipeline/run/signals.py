"""SIGINT, SIGTERM and SIGHUP: each ends the process with one line, exit status 128 + n, and no temporary files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from types import FrameType
from typing import NoReturn

from ..terminal import printable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_SECONDS = 10  # for what unwinds after a signal, and for clean-up

MESSAGE_SECONDS = 3  # of these, to find out what the run has published


class Interrupted(KeyboardInterrupt):
    """A signal that ends the process."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def name(self) -> str:
        """The signal's name, as in "SIGTERM"."""
        return signal.Signals(self.signum).name


@contextmanager
def handle_signals() -> Iterator[None]:
    """Raise Interrupted in the main thread for the first signal and ignore all later ones.

    A signal that is ignored at the start, as by nohup, stays ignored. As PID 1 of a container a process gets only
    signals that it handles. If the process has not ended GRACE_SECONDS after the signal, it ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, _interrupt)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def end_on_signal(message: Callable[[str], str], clean_up: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """End the process in the signal's handler, instead of raising Interrupted through Beam.

    Yields a function that sets the handlers once more: Beam sets one of its own when it starts a job server.

    Beam waits for its workers when it unwinds: for a whole bundle, which may take minutes. `message` returns the line to
    print for a signal's name; if it fails or takes longer than MESSAGE_SECONDS, the line says that the outcome is not
    known. `clean_up` removes files, after the worker processes have ended. The process ends after GRACE_SECONDS at most.
    """

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        ignore_signals()
        deadline, name = time.monotonic() + GRACE_SECONDS, signal.Signals(signum).name
        lines = [
            f"interrupted by {name}: it is not known whether a snapshot was published; run the same command again, which "
            f"reuses what is finished"
        ]
        # An object store or network mount may not answer, and this thread or another may hold a lock that a call needs.
        _run_for(MESSAGE_SECONDS, lambda: lines.append(message(name)))
        with suppress(OSError):  # not by print, which this signal may have interrupted
            clear = "\r\x1b[K" if os.isatty(2) else ""  # a progress bar
            os.write(2, f"{clear}audioclip: error: {printable(lines[-1])}\n".encode())
            # Beam's threads print tracebacks when their workers end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _run_for(deadline - time.monotonic(), lambda: _finish(clean_up))
        end_process(128 + signum)

    handled = {signum: signal.getsignal(signum) for signum in SIGNALS}
    handled = {signum: handler for signum, handler in handled.items() if handler is _interrupt}

    def set_handlers() -> None:
        for signum in handled:
            signal.signal(signum, end)

    try:
        set_handlers()
        yield set_handlers
    finally:
        for signum, handler in handled.items():
            signal.signal(signum, handler)


def end_at_once() -> None:
    """End the process in the handler of each signal, from now on: SIGINT with status 0, for a server that Ctrl-C ends."""

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        ignore_signals()
        if signum == signal.SIGINT:
            end_process(0)
        with suppress(OSError):
            os.write(2, f"audioclip: error: interrupted by {signal.Signals(signum).name}\n".encode())
        end_process(128 + signum)

    for signum in SIGNALS:
        if signal.getsignal(signum) is _interrupt:
            signal.signal(signum, end)


def remove_matches(patterns: Sequence[str]) -> None:
    """Remove what the globs match until they match nothing: threads that still run may create files meanwhile."""
    deadline = time.monotonic() + GRACE_SECONDS / 2
    while (paths := [path for pattern in patterns for path in glob(pattern)]) and time.monotonic() < deadline:
        for path in paths:
            with suppress(OSError):
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def ignore_signals() -> None:
    """Ignore all later signals, in the main thread."""
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)


def end_process(status: int) -> NoReturn:
    """End the process now. Threads of torch may compute: an orderly exit would wait for them or abort."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    ignore_signals()
    timer = threading.Timer(GRACE_SECONDS, os._exit, (128 + signum,))
    timer.daemon = True
    timer.start()
    raise Interrupted(signum)


def _run_for(seconds: float, call: Callable[[], None]) -> None:
    """Make a call in a thread of its own, and wait until it has returned or raised, or for that many seconds."""

    def attempt() -> None:
        with suppress(Exception):
            call()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def _finish(clean_up: Callable[[], None]) -> None:
    _kill_children()
    clean_up()


def _kill_children() -> None:
    """Kill all descendants of this process, and wait until they have ended."""
    children = _descendants()
    for pid in children:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + GRACE_SECONDS / 2
    while time.monotonic() < deadline and set(children) & set(_descendants()):
        time.sleep(0.02)


def _descendants() -> list[int]:
    """Return the process ids of all descendants that have not ended, children first."""
    parents = {pid: parent for pid, (parent, state) in _processes().items() if state != "Z"}
    found = [os.getpid()]
    for ancestor in found:
        found += [pid for pid, parent in parents.items() if parent == ancestor]
    return found[1:]


def _processes() -> dict[int, tuple[int, str]]:
    """Return (parent, state) of every process, from /proc or, elsewhere than on Linux, from ps."""
    if os.path.isdir("/proc/self"):
        processes = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{name}/stat") as handle:
                state, parent = handle.read().rpartition(")")[2].split()[:2]  # the program's name may contain spaces
                processes[int(name)] = int(parent), state
        return processes
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=False)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return {int(pid): (int(parent), state[0]) for pid, parent, state in rows}
