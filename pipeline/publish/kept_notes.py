"""The types of the kept fields of a snapshot, and notes on them for its manifest, the summary of `embed`, and `plan`."""

from __future__ import annotations

from ..prepare.job import Job
from ..readers.settle_types import SettledTypes
from ..writers.engine_limits import engine_notes


def kept_types(job: Job, types: SettledTypes | None) -> dict[str, str]:
    """Return the types of the kept fields by name, "null" for one without any value.

    `types` is None if they were known before the run.
    """
    if types is None:
        return {each.name: str(each.type) for each in job.types.schema}
    return {each.name: "null" if each.name in types.without_values else str(each.type) for each in types.kept}


def kept_notes(job: Job, types: SettledTypes | None) -> list[str]:
    """Return what users should know of the types of kept fields; `types` as for kept_types."""
    before, notes = job.previous.get("kept", {}) if job.previous else {}, []
    for name, kind in kept_types(job, types).items():
        if name in before and before[name] != kind:
            again = types is not None and name in types.widened
            rest = ": the part files that are carried over are written again with it" if again else ""
            notes.append(f"kept field {name!r} is {kind} now, and was {before[name]} in the previous snapshot{rest}")
    kept = types.kept if types else job.types.final
    return notes + engine_notes(
        kept, job.part_schema("").names, {field.name: field.path for field in job.reading.fields.kept}
    )
