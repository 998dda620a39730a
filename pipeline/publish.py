"""The end of a run: add up what was written, hold it against what was read, and publish the snapshot or refuse to."""

from __future__ import annotations

import base64
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TypedDict

import apache_beam as beam
import numpy as np
import pyarrow as pa

from .ids import Ids
from .job import Job
from .metrics import MODEL_COUNTS, SECONDS
from .options import rejected_limit
from .output_file import FileInfo
from .pointer import SnapshotError
from .records import REASONS
from .report import NAME, write_report
from .run_dirs import remove_run, remove_spills, run_path
from .snapshot import Canary, Manifest, lost_files, publish, remove_strays
from .source import ShardRead
from .statistics import pace_of

_LOGGER = logging.getLogger(__name__)

CANARY_TEXTS = (
    "dog barking",
    "rain on a tin roof",
    "a choir singing in a cathedral",
    "glass breaking, then footsteps running away",
    "thunder",
    "Coffee machine grinding beans; cups clinking in the background",
    "an old steam train leaving the station",
    "1, 2, 3, 4 - count-in with drum sticks",
    "le vent dans les arbres",
    "Möwen über dem Hafen",
    "猫がのどを鳴らす",
    "шум прибоя",
    "a",
    "people laughing & applauding (crowd)",
    "slow piano music with a crackling vinyl noise, recorded from far away in a large empty hall",
    "🎸 solo",
)


class Report(TypedDict, total=False):
    """One report of a step to the publisher; each element holds one of these."""

    file: FileInfo
    read: ShardRead
    ids: Ids
    canary: Canary


def canary_of(batch: pa.RecordBatch) -> Canary:
    """The canary vectors out of an embedded batch of CANARY_TEXTS; SnapshotError where the model failed on one."""
    failed = [detail for detail in batch.column("detail").to_pylist() if detail]
    if failed:
        raise SnapshotError(
            f"the model failed on {len(failed)} of {len(CANARY_TEXTS)} plain texts: nothing was published; it said "
            f"{failed[0]}"
        )
    vectors = batch.column("embedding").dictionary_decode().values.to_numpy(zero_copy_only=False)
    return {
        "texts": batch.column("text").to_pylist(),
        "vectors": base64.b64encode(vectors.astype("<f4").tobytes()).decode(),
    }


def agrees(now: Canary, before: Canary | None, dtype: str) -> bool:
    """Whether the encoder still gives the vectors it gave: cosines of at least 0.9999, 0.9995 in reduced precision."""
    if before is None:
        return True
    if now["texts"] != before["texts"]:
        return False
    old, new = (
        np.frombuffer(base64.b64decode(canary["vectors"]), "<f4").reshape(len(canary["texts"]), -1)
        for canary in (before, now)
    )
    if old.shape != new.shape:
        return False
    cosine = (old * new).sum(1) / np.maximum(np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1), 1e-30)
    return bool((cosine >= (0.9999 if dtype == "float32" else 0.9995)).all())


def add_up(reports: Iterable[Report]) -> tuple[dict[str, float], list[FileInfo], Canary | None, Ids, list[str]]:
    """(counts, files, canary, ids that stand more than once, shards read) out of all steps' reports."""
    counts: Counter[str] = Counter()
    files: list[FileInfo] = []
    canary: Canary | None = None
    ids: Ids = {"duplicates": 0, "examples": []}
    shards: list[str] = []
    for report in reports:
        if "file" in report:
            counts.update(report["file"]["counts"])
            if report["file"]["name"]:
                files.append({**report["file"], "counts": {}})
        if "read" in report:
            read = report["read"]
            counts["read"] += read["rows"]
            counts["read_seconds"] += read["seconds"]  # type: ignore[assignment]
            counts.update(read["pace"])
            shards.append(read["shard"])
        if "ids" in report:
            ids["duplicates"] += report["ids"]["duplicates"]
            ids["examples"] = (ids["examples"] + report["ids"]["examples"])[:10]
        canary = report.get("canary", canary)
    return dict(counts), sorted(files, key=lambda file: file["name"]), canary, ids, shards


def check(
    job: Job, counts: dict[str, float], files: list[FileInfo], ids: Ids, shards: list[str], *, directory: str
) -> None:
    """SnapshotError where rows are missing, or where the run breaks a limit that it was given."""
    read, embedded, reused, rejected = (counts.get(name, 0) for name in ("read", "embedded", "reused", "rejected"))
    written = sum(file["rows"] for file in files)
    if not read == embedded + reused + rejected == written or len(shards) != len(job.shards):
        raise SnapshotError(
            f"rows do not add up: read {read:.0f} from {len(shards)} of {len(job.shards)} shards, embedded "
            f"{embedded:.0f}, reused {reused:.0f}, rejected {rejected:.0f}, written {written}: nothing was published"
        )
    if rejected > rejected_limit(job.max_rejected, int(read)):
        raise SnapshotError(
            f"{rejected:.0f} of {read:.0f} rows were rejected, more than --max_rejected {job.max_rejected}: nothing "
            f"was published; the reasons are in {directory}/rejected-*.parquet"
        )
    if job.unique_ids and ids["duplicates"]:
        raise SnapshotError(
            f"{ids['duplicates']} ids stand more than once, with --unique_ids: nothing was published; among them "
            f"{', '.join(map(repr, ids['examples'][:5]))}"
        )
    before = float(str(job.previous["counts"]["read"])) if job.previous else 0
    if read < before * job.max_shrink:
        raise SnapshotError(
            f"the corpus shrank from {before:.0f} rows to {read:.0f}, below --max_shrink {job.max_shrink}: nothing was "
            f"published; if that is right, run again with a lower --max_shrink"
        )


class Publish(beam.DoFn):  # type: ignore[misc]
    """All reports of a run -> its manifest, published; SnapshotError where it must not be."""

    def __init__(self, job: Job, snapshot: str, started: float) -> None:
        self.job, self.snapshot, self.started = job, snapshot, started

    def process(self, element: tuple[None, Iterable[Report]]) -> Iterator[Manifest]:
        """Run once, after everything else; running twice publishes once."""
        job = self.job
        counts, files, canary, ids, shards = add_up(element[1])
        check(job, counts, files, ids, shards, directory=run_path(job.output, self.snapshot))
        if canary is None:
            raise SnapshotError("the canary texts were not embedded: nothing was published")
        notes = list(job.notes)
        if job.reusable and not agrees(canary, job.canary, job.dtype):
            notes.append(
                f"the encoder gives other canary vectors than in {job.reusable['snapshot']}: nothing was reused"
            )
        manifest = self._manifest(counts, files, canary, ids, notes)
        lost = lost_files(job.output, manifest)
        if lost:
            raise SnapshotError(
                f"{len(lost)} of {len(files)} finished files are gone from {run_path(job.output, self.snapshot)} or not "
                f"as they were written ({', '.join(lost[:3])}): nothing was published; run again"
            )
        try:
            manifest["report"] = write_report(job.output, manifest, counts)
        except Exception as error:  # a page costs no snapshot
            manifest["notes"].append(f"{NAME} could not be made: {type(error).__name__}: {error}"[:500])
        remove_spills(job.output, self.snapshot)
        remove_strays(job.output, manifest)
        publish(job.output, manifest)
        for run in job.leftovers:
            try:
                remove_run(job.output, run)
            except Exception as error:  # the snapshot stands; what is left over is removed by the next run
                _LOGGER.warning("%s, left by an unfinished run, cannot be removed: %s", run, error)
        yield manifest

    def _manifest(
        self, counts: dict[str, float], files: list[FileInfo], canary: Canary, ids: Ids, notes: list[str]
    ) -> Manifest:
        job, card = self.job, self.job.card
        rows = ("read", "embedded", "reused", "rejected", "truncated", *MODEL_COUNTS)
        shown: dict[str, object] = {name: int(counts.get(name, 0)) for name in rows}
        shown["rejected_by_reason"] = {
            reason: int(counts[f"rejected: {reason}"]) for reason in REASONS if f"rejected: {reason}" in counts
        }
        if job.bits and job.fields.id is not None:
            shown["duplicate_ids"] = ids["duplicates"]
        seconds = {"total": round(time.time() - self.started, 3)}
        seconds |= {name: round(counts.get(name, 0), 6) for name in SECONDS}
        return {
            "snapshot": self.snapshot,
            "created": datetime.fromtimestamp(self.started, timezone.utc).isoformat(timespec="seconds"),
            "tool_version": version("audioclip-text"),
            "fingerprint": card.fingerprint,
            "fingerprint_parts": card.fingerprint_parts,
            "weights": card.weights,
            "checkpoint": {"name": card.name, "sha256": card.sha256},
            "dim": card.dim,
            "options": job.options,
            "counts": shown,
            "seconds": seconds,
            "pace": pace_of(counts, self.started, seconds["total"]),
            "files": files,
            "canary": canary,
            "previous": job.previous["snapshot"] if job.previous else None,
            "notes": notes,
        }
