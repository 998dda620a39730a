"""Which runs ended without publishing, by their locks, by the services that run their jobs, or by their age."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..io.filesystem import is_locked, list_directory
from ..io.json_file import Json, has_ended, read_json
from ..io.paths import base_name, is_local, join
from ..layout import DRY_RUN, LOCK, MARKER
from ..remote.job_service import ENDED, RemoteJob, job_states
from .run_directory import is_complete, marker_path, run_path

# If no service can be asked for a run (its launcher was killed before it knew the job's id, a Flex Template has none, a
# local run of another machine had no lock), it may still be running until its newest file has this age. So may a dry run.
UNKNOWN_RUN_SECONDS = 24 * 3600


def dead_runs(
    output: str, runs: Mapping[str, list[tuple[str, float]]]
) -> tuple[dict[str, list[tuple[str, float]]], list[str]]:
    """Return those of `runs` that ended without publishing, with their files, and notes on runs that may still be running.

    A run is dead if nothing holds its lock and it has no marker, if its process was on this machine and has ended, or if
    its service says that its job has ended. A job of which nothing is known counts as alive. Runs that hold their lock and
    dry runs get no note.
    """
    dry = [name for name in runs if name.startswith(DRY_RUN)]
    dead = [name for name in dry if _is_old(runs[name])]
    unknown, jobs, notes = {}, {}, []
    for name, files in runs.items():
        locked = is_local(output) and is_locked(join(run_path(output, name), LOCK))
        if name in dry or is_complete(files) or locked:
            continue
        marker = _marker_of(output, name, files, locked)
        if marker is None:
            dead.append(name)
        elif (job := _job_of(marker)) is not None:
            jobs[name] = job
        elif _is_old(files):
            dead.append(name)
        else:
            unknown[name] = marker
    for name, marker in unknown.items():
        notes.append(
            f"{name}, started by {marker.get('owner')}, may still be running: its files are neither reused nor removed "
            f"until the newest is {UNKNOWN_RUN_SECONDS // 3600} hours old; if it has ended, remove "
            f"{marker_path(output, name) if marker is not _LOCK_ONLY else join(run_path(output, name), LOCK)}"
        )
    states = job_states(jobs.values())
    for name, job in jobs.items():
        state, place = states.get(job), job.endpoint or job.runner
        if state in ENDED:
            dead.append(name)
        elif state:
            note = (
                f"{name} is still running at {place} (job {job.job}, {state}): its files are neither reused nor removed"
            )
            if not job.project:
                note += (
                    f"; if Flink's or Spark's own page shows that it has failed, remove {marker_path(output, name)}: their "
                    f"job server does not learn that once the launcher is dead"
                )
            notes.append(note)
        else:
            notes.append(
                f"{name} may still be running at {place} (job {job.job}), which does not report its state: its files are "
                f"neither reused nor removed; if it has ended, remove {marker_path(output, name)}"
            )
    # Again, because a run may have published, or finished more files, between its listing and its end.
    listed = {name: list_directory(run_path(output, name)) for name in sorted(dead)}
    found = {name: [(file.path, file.changed) for file in files] for name, files in listed.items()}
    return {name: files for name, files in found.items() if not is_complete(files)}, notes


def _is_old(files: list[tuple[str, float]]) -> bool:
    return time.time() - max((changed for _, changed in files), default=0.0) >= UNKNOWN_RUN_SECONDS


def _has(name: str, files: list[tuple[str, float]]) -> bool:
    return any(base_name(path) == name for path, _ in files)


_LOCK_ONLY: Json = {"owner": "a process on another machine"}


def _marker_of(output: str, name: str, files: list[tuple[str, float]], locked: bool | None) -> Json | None:
    """Return the marker of a run that may be running; `locked` is None if its lock cannot be seen from this machine."""
    marker = read_json(marker_path(output, name)) if _has(MARKER, files) else None
    if marker is None and locked is None:
        return _LOCK_ONLY
    return None if marker is None or has_ended(marker) else marker


def _job_of(marker: Json) -> RemoteJob | None:
    """Return the job that a marker names; None if it names none."""
    names = ("job", "runner", "endpoint", "project", "region")
    values = {name: str(marker[name]) for name in names if marker.get(name)}
    return RemoteJob(**values) if {"job", "runner"} <= values.keys() else None
