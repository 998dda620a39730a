"""What the workers of a remote job leave in its run directory for the launcher: counts, and errors that no retry repairs."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from ..errors import SnapshotError
from ..io.filesystem import is_locked, list_directory, read, remove
from ..io.json_file import read_json, write_json
from ..io.paths import base_name, is_local, join
from ..layout import LOCK, MANIFEST, MARKER, WORKER_COUNTS, WORKER_END, WORKER_ERROR
from ..metrics import TALLY

REPORT_SECONDS, STORE_SECONDS = 5.0, 30.0  # between two reports of a worker: on a disk, on an object store

MAX_COUNTED = 100  # workers whose counts are read; of more the launcher knows only that they have started

# What fails again however often a runner repeats it: files that are missing or not allowed, or that are not what they were.
_PERMANENT = (ValueError, SnapshotError, FileNotFoundError, PermissionError)


@dataclass
class WorkerReports:
    """The reports of all workers of a job: how many there are, the sums of their counts, errors, and why some ended."""

    workers: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)


_PROCESS = uuid.uuid4().hex  # this one


@dataclass(frozen=True)
class RunReports:
    """Where workers of a job report: the run directory of a remote one; a local one needs no reports.

    Attributes:
        directory: The run directory.
        launcher: The process that started the job, in which some runners also run workers.
    """

    directory: str | None = None
    launcher: str = field(default=_PROCESS, compare=False)

    @property
    def in_worker_process(self) -> bool:
        """Whether this process is a worker alone: the remote runner starts another one if it ends."""
        return self.directory is not None and self.launcher != _PROCESS

    def start(self) -> None:
        """Report the counts of this process from now on, until the run has been published or has ended."""
        if self.directory is None:
            return
        with _lock:
            if self.directory in _reporting:
                return
            _reporting.add(self.directory)
        name = f"worker-report {self.directory}"
        threading.Thread(target=_report, args=(self.directory,), name=name, daemon=True).start()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Report an error of the block that no retry repairs, and raise it."""
        try:
            yield
        except _PERMANENT as error:
            if self.directory is not None:
                with suppress(Exception):
                    message = str(error) or type(error).__name__
                    path = join(self.directory, f"{WORKER_ERROR}{uuid.uuid4().hex[:16]}.json")
                    write_json(path, {"error": message})
            raise

    def report_end(self, reason: str) -> None:
        """Report why a worker process has ended: it explains a job that fails, which the runner's own error does not."""
        if self.directory is not None:
            write_json(join(self.directory, f"{WORKER_END}{uuid.uuid4().hex[:16]}.json"), {"reason": reason})

    def call(self, element: Any, call: Callable[[Any], Any]) -> list[Any]:
        """Return what `call` yields for an element; its errors are reported."""
        with self.errors():
            return list(call(element))


_reporting: set[str] = set()  # the directories into which this process reports
_lock = threading.Lock()


def _report(directory: str) -> None:
    path, reported = join(directory, f"{WORKER_COUNTS}{uuid.uuid4().hex[:16]}.json"), None
    while _goes_on(directory):
        counts = dict(TALLY)
        if counts != reported:
            with suppress(Exception):  # a report is worth no failure
                write_json(path, counts)
                reported = counts
        time.sleep(REPORT_SECONDS if is_local(directory) else STORE_SECONDS)
    with suppress(Exception):
        remove([path])


def _goes_on(directory: str) -> bool:
    """Return whether the run has no manifest, and its marker or the lock of its launcher.

    By their names, as its directory may have many files. A job that ends with its launcher has no marker on a disk.
    """
    try:
        if read(join(directory, MANIFEST)) is not None:
            return False
        if read(join(directory, MARKER)) is not None:
            return True
        return is_local(directory) and is_locked(join(directory, LOCK)) is not False
    except Exception:  # asked again later
        return True


def check_version(expected: str) -> None:
    """Raise ValueError if this worker has another version of the project than the launcher."""
    installed = version("audioclip-beam")
    if installed != expected:
        raise ValueError(
            f"a worker has audioclip-beam {installed}, and the launcher {expected}: install the same version on both"
        )


def read_reports(directory: str) -> WorkerReports:
    """Return what all workers have reported so far.

    Errors do not count if the run has been published: they are those of a step that was executed once more.
    """
    paths = [file.path for file in list_directory(directory) if file.path.endswith(".json")]  # others are being written
    counted = [path for path in paths if base_name(path).startswith(WORKER_COUNTS)]
    reports = WorkerReports(len(counted))
    for path in counted if len(counted) <= MAX_COUNTED else ():
        reports.counts.update({name: number for name, number in _read(path).items() if isinstance(number, int)})
    if any(base_name(path) == MANIFEST for path in paths):
        return reports
    errors = [_read(path).get("error") for path in paths if base_name(path).startswith(WORKER_ERROR)]
    reports.errors = [error for error in errors if isinstance(error, str)]
    ends = [_read(path).get("reason") for path in paths if base_name(path).startswith(WORKER_END)]
    reports.ends = [end for end in ends if isinstance(end, str)]
    return reports


def _read(path: str) -> dict[str, object]:
    with suppress(SnapshotError, OSError):
        return read_json(path) or {}  # it may have been removed since it was listed
    return {}


def remove_reports(directory: str) -> None:
    """Remove all reports; no error is raised."""
    with suppress(Exception):  # a snapshot does not name them
        paths = [file.path for file in list_directory(directory)]
        remove([path for path in paths if base_name(path).startswith((WORKER_COUNTS, WORKER_END, WORKER_ERROR))])
