"""What a check of a snapshot found: its verdict for a scheduler, and the first few faults for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

MAX_EXAMPLES = 5  # as many faults as a check names

Status = Literal["ok", "FAILED", "not checked"]


@dataclass
class Check:
    """One thing that must hold. `summary` tells what was looked at; `skipped` why nothing was."""

    name: str
    summary: str = ""
    skipped: str = ""
    faults: int = 0
    examples: list[str] = field(default_factory=list)

    def add_fault(self, *found: str, times: int = 1) -> None:
        """Note a fault that was found `times` times; more names than MAX_EXAMPLES are only counted."""
        self.faults += times
        self.examples = [*self.examples, *found][:MAX_EXAMPLES]

    def add(self, faults: Sequence[str]) -> None:
        """Note these faults."""
        self.add_fault(*faults, times=len(faults))

    def expect_equal(self, what: str, is_so: object, must_be: object) -> bool:
        """A fault where the two differ; gives whether they agree."""
        if is_so != must_be:
            self.add_fault(f"{what} is {is_so!r:.120}, and must be {must_be!r:.120}")
        return is_so == must_be

    @property
    def status(self) -> Status:
        """The verdict."""
        return "FAILED" if self.faults else "not checked" if self.skipped else "ok"


@dataclass(frozen=True)
class ValidationResult:
    """All that was checked of the snapshot at `path`, in order."""

    path: str
    checks: Sequence[Check]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; what could not be checked is not counted as wrong."""
        return not any(check.faults for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "snapshot": self.path,
            "sound": self.sound,
            "checks": [
                {
                    "check": check.name,
                    "status": check.status,
                    "summary": check.skipped if check.status == "not checked" else check.summary,
                    "faults": check.faults,
                    "examples": check.examples,
                }
                for check in self.checks
            ],
        }

    def as_lines(self) -> list[str]:
        """Lines for people; what stands in them came from files, and is still to be made printable."""
        lines = [f"snapshot  {self.path}"]
        for check in self.checks:
            said = check.skipped if check.status == "not checked" else check.summary
            if check.faults:
                said = f"{check.faults:,} fault{'s' * (check.faults > 1)}"
            lines.append(f"{check.name:<10}{check.status:<12}{said}".rstrip())
            lines += [f"{'':<10}- {fault}" for fault in check.examples]
            if check.faults > len(check.examples) > 0:
                lines.append(f"{'':<10}- and {check.faults - len(check.examples):,} more")
        failed = [check.name for check in self.checks if check.faults]
        lines.append(f"NOT SOUND: {', '.join(failed)}" if failed else "sound")
        return lines
