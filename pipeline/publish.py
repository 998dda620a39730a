"""The end of a run: add up the reports of all steps, check rows written against rows read, and publish or refuse."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from typing import TypeAlias

import apache_beam as beam

from .canary import Canary, canaries_agree
from .dedup.duplicate_ids import Duplicates
from .errors import SnapshotError
from .job import Job
from .metrics import pace_by_span
from .options import rejected_limit
from .readers.read_shards import ShardsRead
from .report.html import NAME, write_report
from .snapshots.commit import missing_files, point_to, publish, read_manifest, remove_strays
from .snapshots.listing import read_file_list, write_file_list
from .snapshots.manifest import FORMAT, Counts, FileInfo, ListingInfo, Manifest
from .snapshots.run_directory import remove_run, remove_spills, run_path
from .snapshots.segments import Segment, add_rows
from .writers.carry_over_files import CarriedFile
from .writers.statistics import FileStats, WrittenFile

_LOGGER = logging.getLogger(__name__)


# What the steps of a run tell the publisher.
RunReport: TypeAlias = "WrittenFile | CarriedFile | ShardsRead | Duplicates | Canary"
_MAX_EXAMPLES = 10
_MAX_NAMED = 5  # shards in an error


@dataclass
class SegmentTotals:
    """The reports of a run on one of the segments that it wrote added up."""

    stats: FileStats = field(default_factory=FileStats)
    read: int = 0
    without_texts: int = 0  # documents whose list of texts is missing or empty
    damage: dict[str, tuple[int, str]] = field(default_factory=dict)  # of a shard: its first damaged part, the reason

    @property
    def damaged(self) -> dict[str, str]:
        """The shards that were not read to their end, with the reason."""
        return {shard: reason for shard, (_, reason) in sorted(self.damage.items())}


@dataclass
class RunTotals:
    """All reports of a run added up."""

    stats: FileStats = field(default_factory=FileStats)
    read: int = 0
    read_seconds: float = 0.0
    parts: list[tuple[str, int, int]] = field(default_factory=list)  # as in ShardsRead
    segments: dict[int, SegmentTotals] = field(default_factory=lambda: defaultdict(SegmentTotals))
    files: list[FileInfo] = field(default_factory=list)
    carried: list[FileInfo] = field(default_factory=list)
    duplicate_ids: int = 0
    duplicate_examples: list[str] = field(default_factory=list)
    canary: Canary | None = None

    @classmethod
    def of(cls, reports: Iterable[RunReport]) -> RunTotals:
        """Return the sum of `reports`."""
        totals = cls()
        for report in reports:
            totals.add(report)
        totals.files.sort(key=_name)
        return totals

    def add(self, report: RunReport) -> None:
        """Add one report."""
        if isinstance(report, WrittenFile):
            self.stats += report.stats
            if report.file is not None:
                self.files.append(report.file)
                self.segments[report.file.segment].stats += report.stats
        elif isinstance(report, CarriedFile):
            self.carried.append(report.file)
        elif isinstance(report, ShardsRead):
            self.read += report.rows
            self.read_seconds += report.seconds
            segment = self.segments[report.segment]
            segment.read += report.rows
            segment.without_texts += report.without_texts
            self.stats.add_seconds("read", report.by_second)
            self.parts += report.parts
            for shard, number, reason in report.damaged:
                segment.damage[shard] = min((number, reason), segment.damage.get(shard, (number, reason)))
        elif isinstance(report, Duplicates):
            self.duplicate_ids += report.ids
            self.duplicate_examples = (self.duplicate_examples + report.examples)[:_MAX_EXAMPLES]
        else:
            self.canary = report

    @property
    def shards(self) -> int:
        """The number of shards of which every part was read exactly once."""
        read: dict[str, list[tuple[int, int]]] = {}
        for shard, number, parts in self.parts:
            read.setdefault(shard, []).append((number, parts))
        return sum(sorted(parts) == [(n, len(parts)) for n in range(len(parts))] for parts in read.values())


def check_totals(job: Job, totals: RunTotals, segments: Sequence[Segment], *, directory: str) -> None:
    """Raise SnapshotError if rows are missing, or if the run or the snapshot exceeds one of the limits of the run.

    `segments` are all of the snapshot.
    """
    read, stats, rows = totals.read, totals.stats, add_rows(segment["rows"] for segment in segments)
    written = sum(file.rows for file in totals.files)
    if (
        not read == stats.vectors + stats.rejected == written
        or totals.shards != job.read_shards
        or any(segment.read != segment.stats.vectors + segment.stats.rejected for segment in totals.segments.values())
    ):
        raise SnapshotError(
            f"rows do not add up: read {read} from {totals.shards} of {job.read_shards} shards, embedded "
            f"{stats.embedded}, reused {stats.reused}, rejected {stats.rejected}, written {written}; "
            f"run again, and report this if it happens twice"
        )
    carried = sum(segment["rows"]["read"] for segment in job.carry_over.segments)
    if len(totals.carried) != job.carried_files or sum(file.rows for file in totals.carried) != carried:
        raise SnapshotError(
            f"{len(totals.carried)} of {job.carried_files} files were carried over; run again, and report this if it "
            f"happens twice"
        )
    shards, damaged = sum(segment["shards"] for segment in segments), _damaged(segments)
    if len(damaged) > job.allow_damaged:
        more = f", and {len(damaged) - _MAX_NAMED} more" if len(damaged) > _MAX_NAMED else ""
        raise SnapshotError(
            f"{len(damaged)} of {shards} shards could not be read to the end: "
            f"{'; '.join(damaged[:_MAX_NAMED])}{more}; repair or leave them out, or accept the loss of their "
            f"other rows with --allow_damaged {len(damaged)}"
        )
    if not rows["vectors"] and not job.allow_empty:
        if rows["read"]:
            reasons = Counter(rows["rejected_by_reason"]).most_common()
            raise SnapshotError(
                f"all {rows['read']:,} rows were rejected ({', '.join(f'{reason} {n:,}' for reason, n in reasons)}): check "
                f"--text_field and {directory}/rejected-*.parquet, or publish an empty snapshot with --allow_empty"
            )
        raise SnapshotError(
            f"no row was read from {shards} shards: check --input, or publish an empty snapshot with --allow_empty"
        )
    for what, rejected, of in (
        ("", stats.rejected, read),
        (", with those carried over,", rows["rejected"], rows["read"]),
    ):
        if rejected > rejected_limit(job.max_rejected, of):
            raise SnapshotError(
                f"{rejected} of {of} rows{what} were rejected, more than --max_rejected {job.max_rejected}; the "
                f"reasons are in {directory}/rejected-*.parquet"
            )
    if job.unique_ids and totals.duplicate_ids:
        raise SnapshotError(
            f"{totals.duplicate_ids} ids occur more than once, and --unique_ids forbids that; among them "
            f"{', '.join(map(repr, totals.duplicate_examples[:5]))}"
        )
    before = job.previous["totals"]["read"] if job.previous else 0
    if rows["read"] < before * job.max_shrink:
        raise SnapshotError(
            f"the corpus shrank from {before} rows to {rows['read']}, below --max_shrink {job.max_shrink}; if "
            f"that is right, run again with a lower --max_shrink"
        )


def _damaged(segments: Iterable[Segment]) -> list[str]:
    """Return the shards that were not read to their end, with the reason."""
    return sorted(f"{shard} ({reason})" for segment in segments for shard, reason in segment["damaged"].items())


def _name(file: FileInfo) -> str:
    return file.name


def check_same_rows(published: Manifest, totals: RunTotals) -> None:
    """Raise SnapshotError if another execution of the graph that published a snapshot read or wrote other rows."""
    counts, stats = published["counts"], totals.stats
    before = counts["read"], counts["embedded"] + counts["reused"], counts["rejected"]
    now = totals.read, stats.embedded + stats.reused, stats.rejected
    if before != now:
        raise SnapshotError(
            f"{published['snapshot']} is already published, with {before[0]} rows read, {before[1]} with vectors and "
            f"{before[2]} rejected, and this execution of the same job has {now[0]}, {now[1]} and {now[2]}; what is "
            f"published was not changed: start a new run to embed the corpus as it is now"
        )


class PublishSnapshot(beam.DoFn):  # type: ignore[misc]
    """Publishes the snapshot of a run from all of its reports; raises SnapshotError if it must not be published."""

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
        if published is not None:
            check_same_rows(published, totals)
            point_to(job.output, self.snapshot, expected=published["previous"])
            self._clean_up(published, read_file_list(job.output, published))
            yield published
            return
        segments = self._segments(totals)
        check_totals(job, totals, segments, directory=self.directory)
        if totals.canary is None:
            raise SnapshotError("the canary texts were not embedded; run again")
        notes = list(job.notes)
        if job.reusable and not canaries_agree(totals.canary, job.canary, job.dtype):
            other = (
                f"the encoder gives other canary vectors than in {job.reusable['snapshot']}, of the same fingerprint"
            )
            if not job.force:
                raise SnapshotError(
                    f"{other}: vectors of both would not be comparable; find out what changed (hardware, libraries), or "
                    f"embed every text again with --force"
                )
            notes.append(f"{other}: nothing was reused")
        damaged = _damaged(segments)
        if damaged:
            notes.append(f"{len(damaged)} shards could not be read to the end: {'; '.join(damaged)}")
        files = sorted([*totals.carried, *totals.files], key=_name)
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
            manifest["notes"].append(f"{NAME} could not be written: {type(error).__name__}: {error}"[:500])
        publish(job.output, manifest)
        self._clean_up(manifest, files)
        yield manifest

    def _clean_up(self, manifest: Manifest, files: Sequence[FileInfo]) -> None:
        """Remove what the published snapshot does not need. A failure is only logged: the snapshot is published."""
        output, named = self.job.output, {manifest["files"]["name"], *(file.name for file in files)}
        tasks: dict[str, Callable[[], None]] = {
            f"files of {self.snapshot} that are not listed": lambda: remove_strays(self.directory, named),
            f"spill files of {self.snapshot}": lambda: remove_spills(output, self.snapshot),
        }
        tasks |= {run: partial(remove_run, output, run) for run in self.job.leftovers}
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
        if job.bits and job.unique_ids:
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
            "created": datetime.fromtimestamp(self.started, timezone.utc).isoformat(timespec="seconds"),
            "tool_version": version("audioclip-text"),
            "fingerprint": model.fingerprint,
            "fingerprint_parts": model.fingerprint_parts,
            "weights": model.weights,
            "checkpoint": {"name": model.name, "sha256": model.sha256},
            "dim": model.dim,
            "options": job.options,
            "counts": counts,
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
