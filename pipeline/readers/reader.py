"""What all readers share: the Reader protocol, the reader of text formats, and rules for lines."""

from __future__ import annotations

import difflib
import itertools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Protocol, TypeAlias

from ...model.head import BadRow
from .batch_builder import BatchBuilder
from .fields import MISSING, Fields, has_value_at, lookup
from .kept_types import Kind, kind_of
from .notes import ShardNotes
from .shard import RECORD_BYTES, Batches, Records, Shard

Blocks: TypeAlias = "Callable[[IO[bytes], Shard, Fields, int, ShardNotes], Records]"

GROUP_BYTES = 8 << 20

PEEKED_RECORDS = 1000  # per shard, to find out which fields there are

SHOWN_NAMES, EXCERPT = 10, 100  # names of fields in a message, and characters of each


@dataclass
class FieldSummary:
    """The fields that shards have, as far as readers have looked.

    Attributes:
        encoding: The error of the first shard that is not UTF-8, or "".
        names: The fields at the top level, in order.
        paths: The job's paths that exist.
        kinds: The kinds of values that its kept fields have, each with its first place.
        has_more: Whether there are records that were not looked at, which may have other fields.
    """

    encoding: str = ""
    names: dict[str, None] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)
    kinds: dict[str, dict[Kind, str]] = field(default_factory=dict)
    has_more: bool = False

    def add_record(self, record: dict[str, object], fields: Fields, shard: Shard, row: int) -> None:
        """Add the fields of a record of text or JSON."""
        self.names.update(dict.fromkeys(record))
        self.paths.update(path for path in fields.columns if path not in self.paths and has_value_at(record, path))
        for path in fields.kept_paths:
            value = lookup(record, path)
            if value is not MISSING and value is not None:
                self.add_kind(path, kind_of(value), f"{shard.path}, row {row}")

    def add_kind(self, path: str, kind: Kind, place: str) -> None:
        """Add a kind of values of a kept field."""
        self.kinds.setdefault(path, {}).setdefault(kind, place)


class Reader(Protocol):
    """Reader of one format.

    Rows count from 0, rejected ones included. Whatever the bytes are, a reader continues with the next record. It raises
    DamagedShard, after all rows that it could read, if others are missing.
    """

    @property
    def has_fields(self) -> bool:
        """Whether records have named fields."""

    @property
    def compressible(self) -> bool:
        """Whether the file as a whole may be compressed."""

    @property
    def has_delimiter(self) -> bool:
        """Whether the delimiter of a shard may be chosen."""

    @property
    def quoting(self) -> str | None:
        """How values are quoted by default, "minimal" or "none"; None if the format has no quotes to choose."""

    @property
    def has_row_groups(self) -> bool:
        """Whether a large shard is read in several parts, by its row groups."""

    @property
    def group_bytes(self) -> int:
        """The most bytes of small shards that are read in one step."""

    def read(self, handle: IO[bytes], builder: BatchBuilder) -> Batches:
        """Add every row of `builder.part` to `builder`, and yield its batches as they fill up."""

    def describe_fields(self, handle: IO[bytes], shard: Shard, fields: Fields, summary: FieldSummary) -> None:
        """Add the fields of a shard to `summary`, as its beginning shows them."""


@dataclass(frozen=True)
class RecordReader:
    """Reader of a text format; `blocks` yields the records of a file."""

    blocks: Blocks
    has_fields: bool = True
    compressible: bool = True
    has_delimiter: bool = False
    quoting: str | None = None
    has_row_groups: bool = False
    group_bytes: int = GROUP_BYTES

    def read(self, handle: IO[bytes], builder: BatchBuilder) -> Batches:
        """Add every record of the shard to `builder`, a block at a time."""
        for first, block in self.blocks(handle, builder.shard, builder.fields, builder.limit, builder.notes):
            yield from builder.add_block(first, block)

    def describe_fields(self, handle: IO[bytes], shard: Shard, fields: Fields, summary: FieldSummary) -> None:
        """Add the fields of the first records to `summary`."""
        blocks = self.blocks(handle, shard, fields, RECORD_BYTES, ShardNotes())
        records = itertools.chain.from_iterable(block for _, block in blocks)
        for row, record in enumerate(itertools.islice(records, PEEKED_RECORDS)):
            if isinstance(record, dict):
                summary.add_record(record, fields, shard, row)
        summary.has_more |= not self.has_delimiter and next(records, None) is not None


def too_long(limit: int, what: str = "record") -> BadRow:
    """Return the rejection of a record of over `limit` bytes."""
    return BadRow("too long", f"the {what} is over {limit:,} bytes")


def check_utf8(line: bytes) -> BadRow | None:
    """Return the rejection of a line that is not UTF-8, or None."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return BadRow("not UTF-8", f"byte {error.start} of the line cannot be decoded", excerpt=excerpt(line))
    return None


def excerpt(line: bytes) -> str:
    """Return the beginning of a line, bytes that are not UTF-8 spelled out."""
    return line[:1000].decode("utf-8", "backslashreplace")


def some_of(names: Sequence[str], like: Sequence[str] = ()) -> str:
    """Return names of fields in quotes for a message: all, or some and their number, first those that are similar to `like`.

    Those that look like one of `like` without being it are explained.
    """
    hints = "".join(_hint(name, names) for name in like)
    short = [name if len(name) <= EXCERPT else f"{name[:EXCERPT]}..." for name in names]
    if len(short) <= SHOWN_NAMES:
        return f"{', '.join(map(quote, short))}{hints}"
    near = itertools.chain.from_iterable(difflib.get_close_matches(name, short) for name in like)
    first = list(dict.fromkeys([*near, *short[:SHOWN_NAMES]]))[:SHOWN_NAMES]
    return f"{', '.join(map(quote, first))}, ... ({len(names):,} in all){hints}"


def quote(name: str) -> str:
    """Return a name in quotes, with what cannot be seen or typed as escapes."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def _hint(sought: str, names: Sequence[str]) -> str:
    """Return what an error adds if a name looks like the one that is sought."""
    for name in names:
        if name != sought and _visible(name) == _visible(sought):
            if '"' in name and '"' not in sought:
                return f"; the quotes belong to the name {quote(name)}: give --quoting minimal if they should not"
            return f"; spaces and invisible characters belong to a name: {quote(name)} is not {quote(sought)}"
    return ""


def _visible(name: str) -> str:
    """Return what one sees of a name: without quotes around it, spaces and invisible characters."""
    plain = unicodedata.normalize("NFKC", name)
    return "".join(character for character in plain if character.isprintable() and character != " ").strip("\"'")


def decode_lines(block: list[bytes | None]) -> list[str] | None:
    """Return the lines as text, or None if one is too long or not UTF-8."""
    try:
        return b"\n".join(block).decode().split("\n")  # type: ignore[arg-type]  # None raises the TypeError
    except (UnicodeDecodeError, TypeError):
        return None
