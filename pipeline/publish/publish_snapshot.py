"""The end of a run: publish its snapshot, if the reports of all steps allow it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import apache_beam as beam

from ...model.messages import plural
from ..errors import SnapshotError
from ..io.paths import is_local
from ..layout import REPORT
from ..prepare.job import Job
from ..report.html import write_report
from ..snapshots.commit import missing_files, point_to, publish, read_manifest, remove_strays
from ..snapshots.history import remove_late_files
from ..snapshots.listing import read_file_list, write_file_list, write_shard_list
from ..snapshots.manifest import FileInfo, Manifest
from ..snapshots.run_directory import remove_dead_run, remove_spills, run_path
from .corpus import Corpus, make_corpus
from .kept_notes import kept_notes
from .limits import check_canary, check_limits, check_same_rows
from .make_manifest import make_manifest
from .run_totals import RunReport, RunTotals

_LOGGER = logging.getLogger(__name__)


class PublishSnapshot(beam.DoFn):  # type: ignore[misc]
    """The DoFn that publishes a run's snapshot from all of its reports, or raises SnapshotError if it must not.

    Args:
        job: The run.
        snapshot: The name of its snapshot.
        started: When the run started, in seconds since 1970.
        local: Whether no step of the run can be started again, so that nothing needs its copies of contents any more.
    """

    def __init__(self, job: Job, snapshot: str, started: float, *, local: bool = False) -> None:
        self.job, self.snapshot, self.started = job.without_files(), snapshot, started
        self.spills_contents = local and is_local(job.output) and job.head.by_reference
        self.directory = run_path(job.output, snapshot)

    def process(self, element: tuple[None, Iterable[RunReport]]) -> Iterator[Manifest]:
        """Publish, and return the manifest.

        A graph may be executed again: a restarted stage, a template started twice. What is published then stays as it
        is, down to the last file, and is the result again if the new execution read the same rows.
        """
        output, totals = self.job.output, RunTotals.of(element[1])
        # First: a process that is killed when it has published would leave them in the snapshot.
        remove_spills(output, self.snapshot, contents=self.spills_contents)
        published = read_manifest(output, self.snapshot)
        if published is None:
            corpus = make_corpus(self.job, self.snapshot, self.directory, totals, self.job.reading.file_io)
            self._check(totals, corpus)
            manifest = self._write(totals, corpus)
            published = publish(output, manifest)  # points current.json at it
            if published is manifest:
                self._clean_up(manifest, corpus.files)
                yield manifest
                return
        check_same_rows(published, totals)
        point_to(output, self.snapshot, expected=published["previous"])
        self._clean_up(published, read_file_list(output, published))
        yield published

    def _check(self, totals: RunTotals, corpus: Corpus) -> None:
        """Check limits and files."""
        check_limits(self.job, totals, corpus, directory=self.directory)
        if totals.canary is None:
            raise SnapshotError(f"the canary {self.job.head.items} were not embedded; run again")
        lost = missing_files(self.directory, corpus.files)
        if lost:
            raise SnapshotError(
                f"{len(lost)} of {len(corpus.files)} finished files are gone from {self.directory} or not as they were "
                f"written ({', '.join(lost[:3])}); run again"
            )

    def _write(self, totals: RunTotals, corpus: Corpus) -> Manifest:
        """Write the lists of files and shards, and the report; return the manifest."""
        assert totals.canary is not None
        notes = [
            *self.job.notes,
            *kept_notes(self.job, totals.types or self.job.settled),
            *check_canary(self.job, totals.canary),
            *totals.notes.describe(),
        ]
        if damaged := corpus.damaged:
            notes.append(f"{plural(len(damaged), 'shard')} could not be read to the end: {'; '.join(damaged)}")
        manifest = make_manifest(
            self.job,
            self.snapshot,
            self.started,
            totals,
            corpus=corpus,
            files=write_file_list(self.directory, corpus.files),
            shards=write_shard_list(self.directory, corpus.shards),
            canary=totals.canary,
            notes=notes,
        )
        try:
            manifest["report"] = write_report(self.job.output, manifest, corpus.files)
        except Exception as error:  # a snapshot without its page is still complete
            reason = error if isinstance(error, SnapshotError) else f"{type(error).__name__}: {error}"
            manifest["notes"].append(f"{REPORT} could not be written: {reason}"[:500])
        return manifest

    def _clean_up(self, manifest: Manifest, files: Sequence[FileInfo]) -> None:
        """Remove what the published snapshot does not need."""
        output = self.job.output
        named = {manifest["files"]["name"], manifest["shards"]["name"], *(file.name for file in files)}
        tasks: dict[str, Callable[[], object]] = {
            f"files of {self.snapshot} that are not listed": lambda: remove_strays(self.directory, named),
        }
        if previous := self.job.previous:
            tasks[f"late files of {previous['snapshot']}"] = lambda: remove_late_files(output, previous)
        tasks |= {run: partial(remove_dead_run, output, run) for run in self.job.earlier.dead_runs}
        _try_to_remove(tasks)


def _try_to_remove(tasks: dict[str, Callable[[], object]]) -> None:
    """Remove what is named. A failure is only logged: the snapshot needs none of it."""
    for what, remove in tasks.items():
        try:
            remove()
        except Exception as error:
            _LOGGER.warning("%s cannot be removed: %s", what, error)
