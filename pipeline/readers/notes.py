"""ShardNotes: what readers notice in shards and no rejected row says, for `plan`, the summary and the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ...model.messages import plural

_MAX_PLACES = 5  # named in a note


class Notice(StrEnum):
    """What readers notice."""

    NO_ROW = "no row"
    PAGE = "page"
    QUOTED = "quoted"
    SWALLOWED = "swallowed"
    RETURN = "return"
    PASSED = "passed"
    CONCATENATED = "concatenated"
    DAMAGED = "damaged"


class Place(NamedTuple):
    """Where something was noticed: a shard, its first and last line (from 1; 0 for the whole shard), and what it is."""

    shard: str
    first: int = 0
    last: int = 0
    words: str = ""

    def __str__(self) -> str:
        lines = f", line {self.first}" if self.first == self.last else f", lines {self.first} to {self.last}"
        return f"{self.shard}{lines if self.first else ''}{f': {self.words}' if self.words else ''}"


@dataclass
class _Finding:
    """How often something was noticed, in how many shards, and its first places."""

    times: int = 0
    shards: int = 0
    places: list[Place] = field(default_factory=list)

    def add(self, times: int, shards: int, places: list[Place]) -> None:
        self.times, self.shards = self.times + times, self.shards + shards
        self.places = sorted({*self.places, *places})[:_MAX_PLACES]

    def __str__(self) -> str:
        return "; ".join([*map(str, self.places), *(["..."] if self.shards > len(self.places) else [])])


_MESSAGES: dict[Notice, Callable[[_Finding], str]] = {
    Notice.NO_ROW: lambda found: f"no row was read from {plural(found.shards, 'shard')}: {found}",
    Notice.PAGE: lambda found: (
        f"{plural(found.shards, 'shard begins', 'shards begin')} like a page of HTML or XML, which servers send in place of "
        f"a file: {found}"
    ),
    Notice.QUOTED: lambda found: (
        f"{plural(found.times, 'field looks', 'fields look')} quoted in {plural(found.shards, 'shard')}, and the quotes are "
        f"read as text: {found}; for files that Excel or pandas wrote, give --quoting minimal"
    ),
    Notice.SWALLOWED: lambda found: (
        f"{plural(found.times, 'quoted field spans', 'quoted fields span')} lines that each have as many separators as the "
        f"header, as if a stray quote had swallowed records: {found}; if quotes are text there, give --quoting none"
    ),
    Notice.RETURN: lambda found: (
        f"{plural(found.times, 'line contains', 'lines contain')} a carriage return (CR) that no line feed (LF) follows, "
        f"which is text and ends no line: {found}"
    ),
    Notice.PASSED: lambda found: (
        f"{plural(found.times, 'member')} of {plural(found.shards, 'tar')} {'was' if found.times == 1 else 'were'} passed "
        f"over as a directory, a link, a device, or without a suffix: {found}"
    ),
    Notice.CONCATENATED: lambda found: (
        f"{plural(found.shards, 'tar goes', 'tars go')} on behind end blocks, as concatenated ones do: {found}"
    ),
    Notice.DAMAGED: lambda found: f"{plural(found.shards, 'shard')} cannot be read to the end: {found}",
}


@dataclass
class ShardNotes:
    """What was noticed in one shard, or in several if notes are merged.

    Attributes:
        shard: The name of the shard.
        head: The first bytes of the shard.
        line_end: What ends the lines of the shard.
        lone_returns: Whether a line contains a carriage return that is text.
    """

    shard: str = ""
    head: bytes = b""
    line_end: str = "\n"
    lone_returns: bool = False
    findings: dict[Notice, _Finding] = field(default_factory=dict)

    def add(self, notice: Notice, first: int = 0, last: int = 0, words: str = "", times: int = 1) -> None:
        """Add something noticed in the shard."""
        found = self.findings.setdefault(notice, _Finding(shards=1))
        found.add(times, 0, [Place(self.shard, first, last or first, words)])

    def merge(self, other: ShardNotes) -> ShardNotes:
        """Add the notes of other shards; return these."""
        for notice, found in other.findings.items():
            self.findings.setdefault(notice, _Finding()).add(found.times, found.shards, found.places)
        return self

    def describe(self) -> list[str]:
        """Return a note for each thing that was noticed."""
        return [_MESSAGES[notice](self.findings[notice]) for notice in Notice if notice in self.findings]


def merge_notes(parts: Iterable[ShardNotes]) -> ShardNotes:
    """Return the notes of several shards as one."""
    merged = ShardNotes()
    for part in parts:
        merged.merge(part)
    return merged


def damage_note(shard: str, reason: str) -> ShardNotes:
    """Return the note that a shard cannot be read to its end."""
    notes = ShardNotes(shard)
    notes.add(Notice.DAMAGED, words=reason)
    return notes
