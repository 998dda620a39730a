"""The result of checking a snapshot: a status per check for a scheduler, and the first few faults for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...model.messages import plural

MAX_EXAMPLES = 5  # faults that a check describes

Status = Literal["ok", "FAILED", "not checked"]


@dataclass
class Check:
    """One property that a snapshot must have.

    Attributes:
        name: Its name in the output.
        summary: What was checked.
        skipped: Why nothing was checked, or "".
        faults: How many were found.
        examples: The first few, described.
    """

    name: str
    summary: str = ""
    skipped: str = ""
    faults: int = 0
    examples: list[str] = field(default_factory=list)

    def add_fault(self, *examples: str, count: int = 1) -> None:
        """Add `count` faults, some of which are described."""
        self.faults += count
        self.examples = [*self.examples, *examples][:MAX_EXAMPLES]

    def add_faults(self, faults: Sequence[str]) -> None:
        """Add faults, each with its description."""
        self.add_fault(*faults, count=len(faults))

    def expect_equal(self, what: str, value: object, expected: object) -> None:
        """Add a fault if the two values differ."""
        if value != expected:
            self.add_fault(f"{what} is {value!r:.120}, expected {expected!r:.120}")

    @property
    def status(self) -> Status:
        """Return the status of the check."""
        return "FAILED" if self.faults else "not checked" if self.skipped else "ok"


@dataclass(frozen=True)
class ValidationResult:
    """All checks of the snapshot at `path`, in order."""

    path: str
    checks: Sequence[Check]

    @property
    def valid(self) -> bool:
        """Return whether no check has a fault. A check that was skipped has none."""
        return not any(check.faults for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """Return the result as an object for programs."""
        return {
            "snapshot": self.path,
            "valid": self.valid,
            "checks": [
                {
                    "check": check.name,
                    "status": check.status,
                    "summary": _summary(check),
                    "faults": check.faults,
                    "examples": check.examples,
                }
                for check in self.checks
            ],
        }

    def as_lines(self) -> list[str]:
        """Return the result as lines for people. They contain strings from files, which is not escaped yet."""
        lines = [f"snapshot  {self.path}"]
        for check in self.checks:
            summary = plural(check.faults, "fault") if check.faults else _summary(check)
            lines.append(f"{check.name:<10}{check.status:<12}{summary}".rstrip())
            lines += [f"{'':<10}- {fault}" for fault in check.examples]
            if check.faults > len(check.examples) > 0:
                lines.append(f"{'':<10}- and {check.faults - len(check.examples):,} more")
        failed = [check.name for check in self.checks if check.faults]
        lines.append(f"NOT VALID: {', '.join(failed)}" if failed else "valid")
        return lines


def _summary(check: Check) -> str:
    return check.skipped if check.status == "not checked" else check.summary
