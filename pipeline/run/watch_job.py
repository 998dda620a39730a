"""Watch a remote job by what its workers leave in the run directory: their counts, their errors, and whether any started."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.runners.runner import PipelineResult

from ..embed import EmbedCorpus
from ..io.paths import is_local
from ..metrics import TALLY
from ..options import is_local_run
from ..remote.job_service import ANSWER_SECONDS, within
from ..remote.worker_reports import WorkerReports, read_reports
from ..snapshots.run_directory import run_path
from ..terminal import print_note
from .flink_job import FlinkJob

POLL_SECONDS, STORE_SECONDS = 2.0, 10.0  # between two looks into the run directory: on a disk, on an object store

START_SECONDS = 60.0  # after which missing workers are explained

CANCEL_SECONDS = 30.0  # at most, for the requests that cancel a job


class JobWatch:
    """A thread that watches a job while the block waits for its end; a local run is not watched.

    An error that no retry repairs is kept in `error`, and the job is cancelled, also at Flink.
    """

    def __init__(
        self, corpus: EmbedCorpus, result: PipelineResult, options: PipelineOptions, flink: FlinkJob | None = None
    ) -> None:
        self.error: str | None = None
        self._flink = flink
        self._result, self._portable = result, options.view_as(PortableOptions)
        self._directory = None if is_local_run(options) else run_path(corpus.job.output, str(corpus.snapshot))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="job-watch", daemon=True)

    def __enter__(self) -> JobWatch:
        if self._directory:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the watch: look once more at a job that failed between two looks, and let the job be cancelled at Flink."""
        self._ended.set()
        if self._directory and self.error is None and kind is not None and issubclass(kind, Exception):
            with suppress(Exception):  # the object store may not answer now
                self.error = next(iter(within(ANSWER_SECONDS, lambda: read_reports(str(self._directory))).errors), None)
        if self.error is not None:
            self._thread.join(CANCEL_SECONDS)

    def worker_end(self) -> str:
        """Return why a worker has ended, for the reason of most workers, or ""."""
        with suppress(Exception):  # the object store may not answer now
            if self._directory:
                ends = Counter(within(ANSWER_SECONDS, lambda: read_reports(str(self._directory))).ends)
                return ends.most_common(1)[0][0] if ends else ""
        return ""

    def _watch(self) -> None:
        started, explained = time.monotonic(), False
        seconds = POLL_SECONDS if is_local(str(self._directory)) else STORE_SECONDS
        while not self._ended.wait(seconds):
            reports = WorkerReports()
            with suppress(Exception):  # the object store may not answer now
                reports = read_reports(str(self._directory))
            if reports.errors:
                self.error = reports.errors[0]
                with suppress(Exception):  # it has ended, or its service has
                    within(CANCEL_SECONDS, self._result.cancel)
                if self._flink and not self._flink.cancel():
                    print_note(f"Flink restarts the job until its restarts are used up; {self._flink.how_to_cancel}")
                if not self._ended.wait(CANCEL_SECONDS):
                    print_note(f"{self.error}; the job is cancelled, and has not ended yet")
                return
            if reports.workers:
                explained = True
                self._show(reports)
            if not explained and time.monotonic() - started > START_SECONDS:
                explained = True
                print_note(self._explanation())

    def _show(self, reports: WorkerReports) -> None:
        """Give the counts of workers in other processes to the progress line."""
        if self._portable.environment_type != "LOOPBACK" and self._portable.job_endpoint != "embed":
            TALLY.clear()
            TALLY.update(reports.counts)

    def _explanation(self) -> str:
        note = f"no worker has reported in {START_SECONDS:.0f} s"
        if self._portable.environment_type != "EXTERNAL":
            return f"{note}: the runner's own log says whether it starts them"
        return (
            f"{note}: a worker pool must run at {self._portable.environment_config} on the machine of every task manager or "
            f"executor, one for each of them, with this project as `python`, and must see {self._directory}"
        )
