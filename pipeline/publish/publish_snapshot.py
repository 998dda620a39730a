"""The end of a run: publish its snapshot, if the reports of all steps allow it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import apache_beam as beam

from ..canary import Canary
from ..errors import SnapshotError
from ..job import Job
from ..metrics import pace_by_span
from ..report.html import NAME, write_report
from ..snapshots.commit import missing_files, point_to, publish, read_manifest, remove_strays
from ..snapshots.history import remove_late_files
from ..snapshots.listing import read_file_list, write_file_list
from ..snapshots.manifest import FORMAT, Counts, FileInfo, ListingInfo, Manifest
from ..snapshots.run_directory import remove_dead_run, remove_spills, run_path
from ..snapshots.segments import Segment, add_rows
from ..terminal import plural
from .limits import check_canary, check_same_rows, check_totals, damaged_shards
from .run_totals import RunReport, RunTotals, name_of

_LOGGER = logging.getLogger(__name__)


class PublishSnapshot(beam.DoFn):  # type: ignore[misc]
    """The DoFn that publishes a run's snapshot from all of its reports, or raises SnapshotError if it must not."""

    def __init__(self, job: Job, snapshot: str, shards: ListingInfo, started: float) -> None:
        self.job, self.snapshot, self.shards, self.started = job.without_files(), snapshot, shards, started
        # Number and bytes of the shards of each segment that the run writes, in the order of the segments' numbers.
        self.new = {shard.segment: [0, 0] for shard in job.carry_over.read}
        for shard in job.carry_over.read:
            self.new[shard.segment][0] += 1
            self.new[shard.segment][1] += shard.bytes
        self.directory = run_path(job.output, snapshot)

    def process(self, element: tuple[None, Iterable[RunReport]]) -> Iterator[Manifest]:
        """Publish, and return the manifest.

        A graph may be executed again: a restarted stage, a template started twice. What is published then stays as it
        is, down to the last file, and is the result again if the new execution read the same rows.
        """
        job = self.job
        totals = RunTotals.of(element[1])
        published = read_manifest(job.output, self.snapshot)
        if published is None:
            manifest, files = self._complete(totals)
            published = publish(job.output, manifest)
            if published is manifest:
                self._clean_up(manifest, files)
                yield manifest
                return
        check_same_rows(published, totals)
        point_to(job.output, self.snapshot, expected=published["previous"])
        self._clean_up(published, read_file_list(job.output, published))
        yield published

    def _complete(self, totals: RunTotals) -> tuple[Manifest, list[FileInfo]]:
        """Check that everything is in place, write the report, and return the manifest and the files of the snapshot."""
        job = self.job
        segments = self._segments(totals)
        check_totals(job, totals, segments, directory=self.directory)
        if totals.canary is None:
            raise SnapshotError("the canary texts were not embedded; run again")
        notes = [*job.notes, *check_canary(job, totals.canary)]
        damaged = damaged_shards(segments)
        if damaged:
            notes.append(f"{plural(len(damaged), 'shard')} could not be read to the end: {'; '.join(damaged)}")
        files = sorted([*totals.carried, *totals.files], key=name_of)
        lost = missing_files(self.directory, files)
        if lost:
            raise SnapshotError(
                f"{len(lost)} of {len(files)} finished files are gone from {self.directory} or not as they were "
                f"written ({', '.join(lost[:3])}); run again"
            )
        manifest = self._manifest(totals, segments, files, totals.canary, notes)
        try:
            manifest["report"] = write_report(job.output, manifest, files)
        except Exception as error:  # a snapshot without its page is still complete
            reason = error if isinstance(error, SnapshotError) else f"{type(error).__name__}: {error}"
            manifest["notes"].append(f"{NAME} could not be written: {reason}"[:500])
        return manifest, files

    def _clean_up(self, manifest: Manifest, files: Sequence[FileInfo]) -> None:
        """Remove what the published snapshot does not need. A failure is only logged: the snapshot is published."""
        output, named = self.job.output, {manifest["files"]["name"], *(file.name for file in files)}
        tasks: dict[str, Callable[[], object]] = {
            f"files of {self.snapshot} that are not listed": lambda: remove_strays(self.directory, named),
            f"spill files of {self.snapshot}": lambda: remove_spills(output, self.snapshot),
        }
        if previous := self.job.previous:
            tasks[f"late files of {previous['snapshot']}"] = lambda: remove_late_files(output, previous)
        tasks |= {run: partial(remove_dead_run, output, run) for run in self.job.leftovers}
        for what, remove in tasks.items():
            try:
                remove()
            except Exception as error:
                _LOGGER.warning("%s cannot be removed: %s", what, error)

    def _segments(self, totals: RunTotals) -> list[Segment]:
        """Return the segments of the snapshot: those carried over, and those that the run wrote."""
        segments = list(self.job.carry_over.segments)
        for number, (shards, size) in sorted(self.new.items()):
            new = totals.segments[number]
            segments.append(
                {
                    "run": self.snapshot,
                    "checkpoint": self.job.model.name,
                    "checkpoint_sha256": self.job.model.sha256,
                    "shards": shards,
                    "bytes": size,
                    "rows": new.stats.row_counts(new.without_texts),
                    "damaged": new.damaged,
                    "token_counts": {str(number): rows for number, rows in sorted(new.stats.token_counts.items())},
                    "norm_bins": {str(number): rows for number, rows in sorted(new.stats.norm_bins.items())},
                }
            )
        return segments

    def _manifest(
        self,
        totals: RunTotals,
        segments: list[Segment],
        files: Sequence[FileInfo],
        canary: Canary,
        notes: list[str],
    ) -> Manifest:
        job, model, stats = self.job, self.job.model, totals.stats
        counts: Counts = {
            "read": totals.read,
            "embedded": stats.embedded,
            "reused": stats.reused,
            "rejected": stats.rejected,
            "truncated": stats.truncated,
            "model_texts": stats.model_texts,
            "tokens": stats.tokens,
            "nodes": stats.nodes,
            "slots": stats.slots,
            "micro_batches": stats.micro_batches,
            "oom_retries": stats.oom_retries,
            "rejected_by_reason": stats.row_counts(0)["rejected_by_reason"],
        }
        if job.unique_ids:
            counts["duplicate_ids"] = totals.duplicate_ids
        if any("[]" in field.text for field in job.fields.texts):
            counts["without_texts"] = sum(segment.without_texts for segment in totals.segments.values())
        seconds = {
            "total": round(time.time() - self.started, 3),
            "read_seconds": round(totals.read_seconds, 6),
            "tokenize_seconds": round(stats.tokenize_seconds, 6),
            "model_seconds": round(stats.model_seconds, 6),
            "write_seconds": round(stats.write_seconds, 6),
        }
        return {
            "format": FORMAT,
            "snapshot": self.snapshot,
            "created": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "tool_version": version("audioclip-beam"),
            "fingerprint": model.fingerprint,
            "fingerprint_parts": model.fingerprint_parts,
            "weights": model.weights,
            "checkpoint": {"name": model.name, "sha256": model.sha256},
            "dim": model.dim,
            "options": job.options,
            "counts": counts,
            "lookup": job.lookup,
            "totals": add_rows(segment["rows"] for segment in segments),
            "segments": segments,
            "seconds": seconds,
            "pace": pace_by_span(stats.by_second, self.started, seconds["total"]),
            "files": write_file_list(self.directory, files),
            "shards": self.shards,
            "model_files": job.model_files,
            "canary": canary,
            "previous": job.previous["snapshot"] if job.previous else None,
            "notes": notes,
        }
