"""The end of a run: publish its snapshot, if the reports of all steps allow it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import apache_beam as beam

from ..errors import SnapshotError
from ..layout import REPORT
from ..prepare.job import Job
from ..report.html import write_report
from ..snapshots.commit import missing_files, point_to, publish, read_manifest, remove_strays
from ..snapshots.history import remove_late_files
from ..snapshots.listing import read_file_list, write_file_list
from ..snapshots.manifest import FileInfo, ListingInfo, Manifest
from ..snapshots.run_directory import remove_dead_run, remove_spills, run_path
from ..snapshots.segments import Segment
from ..terminal import plural
from .kept_notes import kept_notes
from .limits import check_canary, check_same_rows, check_totals, damaged_shards
from .make_manifest import ShardTotals, make_manifest, make_segments
from .run_totals import RunReport, RunTotals, name_of

_LOGGER = logging.getLogger(__name__)


class PublishSnapshot(beam.DoFn):  # type: ignore[misc]
    """The DoFn that publishes a run's snapshot from all of its reports, or raises SnapshotError if it must not.

    Args:
        job: The run.
        snapshot: The name of its snapshot.
        shards: The list of all shards.
        started: When the run started, in seconds since 1970.
    """

    def __init__(self, job: Job, snapshot: str, shards: ListingInfo, started: float) -> None:
        self.job, self.snapshot, self.shards, self.started = job.without_files(), snapshot, shards, started
        self.directory = run_path(job.output, snapshot)
        self.written: dict[int, ShardTotals] = {}  # by the numbers of the segments that the run writes
        for shard in job.carry_over.read:
            shards_before, bytes_before = self.written.get(shard.segment, ShardTotals(0, 0))
            self.written[shard.segment] = ShardTotals(shards_before + 1, bytes_before + shard.bytes)

    def process(self, element: tuple[None, Iterable[RunReport]]) -> Iterator[Manifest]:
        """Publish, and return the manifest.

        A graph may be executed again: a restarted stage, a template started twice. What is published then stays as it
        is, down to the last file, and is the result again if the new execution read the same rows.
        """
        output, totals = self.job.output, RunTotals.of(element[1])
        published = read_manifest(output, self.snapshot)
        if published is None:
            segments = make_segments(self.job, self.snapshot, self.written, totals)
            files = self._check(totals, segments)
            manifest = self._write(totals, segments, files)
            published = publish(output, manifest)  # points current.json at it
            if published is manifest:
                self._clean_up(manifest, files)
                yield manifest
                return
        check_same_rows(published, totals)
        point_to(output, self.snapshot, expected=published["previous"])
        self._clean_up(published, read_file_list(output, published))
        yield published

    def _check(self, totals: RunTotals, segments: Sequence[Segment]) -> list[FileInfo]:
        """Check counts, limits and files; return the files of the snapshot."""
        check_totals(self.job, totals, segments, directory=self.directory)
        if totals.canary is None:
            raise SnapshotError(f"the canary {self.job.head.items} were not embedded; run again")
        files = sorted([*totals.carried, *totals.files], key=name_of)
        lost = missing_files(self.directory, files)
        if lost:
            raise SnapshotError(
                f"{len(lost)} of {len(files)} finished files are gone from {self.directory} or not as they were "
                f"written ({', '.join(lost[:3])}); run again"
            )
        return files

    def _write(self, totals: RunTotals, segments: list[Segment], files: Sequence[FileInfo]) -> Manifest:
        """Write the list of files and the report; return the manifest."""
        assert totals.canary is not None
        notes = [
            *self.job.notes,
            *kept_notes(self.job, totals.types),
            *check_canary(self.job, totals.canary),
            *totals.notes.describe(),
        ]
        damaged = damaged_shards(segments)
        if damaged:
            notes.append(f"{plural(len(damaged), 'shard')} could not be read to the end: {'; '.join(damaged)}")
        manifest = make_manifest(
            self.job,
            self.snapshot,
            self.started,
            totals,
            segments=segments,
            files=write_file_list(self.directory, files),
            shards=self.shards,
            canary=totals.canary,
            notes=notes,
        )
        try:
            manifest["report"] = write_report(self.job.output, manifest, files)
        except Exception as error:  # a snapshot without its page is still complete
            reason = error if isinstance(error, SnapshotError) else f"{type(error).__name__}: {error}"
            manifest["notes"].append(f"{REPORT} could not be written: {reason}"[:500])
        return manifest

    def _clean_up(self, manifest: Manifest, files: Sequence[FileInfo]) -> None:
        """Remove what the published snapshot does not need. A failure is only logged: the snapshot is published."""
        output, named = self.job.output, {manifest["files"]["name"], *(file.name for file in files)}
        tasks: dict[str, Callable[[], object]] = {
            f"files of {self.snapshot} that are not listed": lambda: remove_strays(self.directory, named),
            f"spill files of {self.snapshot}": lambda: remove_spills(output, self.snapshot),
        }
        if previous := self.job.previous:
            tasks[f"late files of {previous['snapshot']}"] = lambda: remove_late_files(output, previous)
        tasks |= {run: partial(remove_dead_run, output, run) for run in self.job.earlier.dead_runs}
        for what, remove in tasks.items():
            try:
                remove()
            except Exception as error:
                _LOGGER.warning("%s cannot be removed: %s", what, error)
