"""Notes on the kept fields of a snapshot, for its manifest, the summary of `embed`, and `plan`."""

from __future__ import annotations

from ..prepare.job import Job
from ..readers.settle_types import SettledTypes
from ..writers.engine_limits import engine_notes


def kept_notes(job: Job, types: SettledTypes | None) -> list[str]:
    """Return what users should know of the types of kept fields; `types` is None if they were known before the run."""
    widened = types.widened if types else {}
    notes = [
        f"kept field {name!r} is {now} now, and was {before}: the part files that are carried over are written again with it"
        for name, (before, now) in widened.items()
    ]
    kept = types.kept if types else job.types.final
    columns = [*job.part_schema("").names]
    return notes + engine_notes(kept, columns)
