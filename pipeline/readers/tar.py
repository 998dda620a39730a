"""Reader of tars as WebDataset has them: the members of a key follow each other, and one of them is its picture or sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, cast

from ...model.head import BadRow
from ...model.media import MediaHead
from ..content import Source, file_value
from ..io.byte_ranges import read_exactly
from .batch_builder import BatchBuilder
from .compression import DamagedShard
from .fields import Fields, as_id, lookup
from .jsonl import parse_as_written
from .media import Found, Item, add_found, look_at
from .notes import Notice, ShardNotes
from .reader import FieldSummary, too_long
from .shard import RECORD_BYTES, Batches, Shard
from .tar_archive import Archive
from .tar_headers import Member

FIELDS = ("txt", "json")  # members that have fields

PEEKED_BYTES = 16 << 20  # of a tar, to find out which fields there are

HOLE_BYTES = 4 << 30  # a sparse member whose holes have more is not read


class TarReader:
    """Reader of tars, in which a key has a row for its picture, or one for each window of its recording."""

    has_fields = compressible = True
    has_delimiter = has_row_groups = False
    quoting: str | None = None
    group_bytes = 256 << 20

    def read(self, handle: IO[bytes], builder: BatchBuilder) -> Batches:
        """Add the rows of every key to `builder`, and yield its batches as they fill up."""
        archive = Archive(handle, builder.shard, builder.notes)
        keys, current = set[bytes](), None
        fields = _fields_of(builder.fields)
        try:
            for member in archive.members():
                names = _key_and_suffix(member)
                if names is None:
                    builder.notes.add(Notice.PASSED)
                    continue
                key, suffix = names
                if current is None or current.key != key:
                    if current:
                        yield from current.rows()
                    current = _Sample(key, builder, archive, fields, is_duplicate=key in keys)
                    keys.add(key)
                current.add(member, suffix)
        except DamagedShard:
            if current and current.found and not fields:  # else a member with fields may be missing
                yield from current.rows()
            raise
        if current:
            yield from current.rows()

    def describe_fields(self, handle: IO[bytes], shard: Shard, fields: Fields, summary: FieldSummary) -> None:
        """Add the fields of the first keys to `summary`."""
        summary.paths.add(MediaHead.content.name)
        names = _fields_of(fields)
        if not names:
            return
        archive = Archive(handle, shard, ShardNotes())
        for number, member in enumerate(archive.members()):
            if archive.position > PEEKED_BYTES:
                summary.has_more = True
                return
            _, suffix = _key_and_suffix(member) or (b"", "")
            if suffix not in names:
                continue
            value = _read_field(member, suffix, archive)
            if not isinstance(value, BadRow):
                summary.add_record({suffix: value}, fields, shard, number)
                inner = value if isinstance(value, dict) else {}
                summary.names.update(dict.fromkeys(f"{suffix}.{name}" for name in inner))


@dataclass
class _Sample:
    """The members of one key.

    Attributes:
        key: The key, as bytes of the tar.
        builder: Gets its rows.
        archive: The tar.
        fields: The suffixes of the members whose fields are read.
        is_duplicate: Whether members of the key came before others.
        found: Its picture or sound, if it was found.
        record: The values of its members with fields, by suffix.
    """

    key: bytes
    builder: BatchBuilder
    archive: Archive
    fields: Sequence[str]
    is_duplicate: bool
    found: Found | None = None
    record: dict[str, object] = field(default_factory=dict)

    def add(self, member: Member, suffix: str) -> None:
        """Add a member, whose bytes are read if they are needed."""
        head = cast(MediaHead, self.builder.settings.head)
        if self.is_duplicate:
            return
        if self.found is None and os.path.splitext(f"-.{suffix}")[1] in head.types:
            self.found = self._look_at(member)
        elif suffix in self.fields and suffix not in self.record:
            self.record[suffix] = _read_field(member, suffix, self.archive)

    def rows(self) -> Batches:
        """Add the rows of the key, or its rejection, to the builder; yield the batches that this completes."""
        builder, fields = self.builder, self.builder.fields
        name = f"{builder.shard.name}#{_as_utf8(self.key)}"
        try:
            if self.is_duplicate:
                raise BadRow("duplicate key", "members of the key come before others: only these are read")
            if self.found is None:
                raise BadRow("missing field", f"no member of the key is {self._words()} by its suffix")
            for value in self.record.values():
                if isinstance(value, BadRow):
                    raise value
            if fields.id is not None:
                name = as_id(lookup(self.record, fields.id), fields.id, RECORD_BYTES)
            kept = builder.kept_values(builder.next_row, self.record) if builder.settings.columns else ()
        except BadRow as bad:
            bad.id = name
            file = self.found.file if self.found else _tar_value(builder.shard)
            yield from builder.reject_next(bad, (file,))
            return
        yield from add_found(builder, name, self.found, kept)

    def _look_at(self, member: Member) -> Found:
        shard, offset, source = self.builder.shard, None, None
        if self.archive.is_readable_alone(member):
            offset, source = member.offset, Source(shard.path, shard.bytes, shard.version, member.offset, member.size)
        item = Item(shard.path, _as_utf8(member.name), member.size, offset, source)
        fault = member.fault
        if member.size - member.stored > HOLE_BYTES:
            fault = f"the member has {member.stored:,} bytes and holes of over {HOLE_BYTES:,}"
        if fault:
            return Found(_tar_value(shard, member.size), fault=BadRow("not decodable", fault))
        return look_at(self.builder, item, self.archive.open(member))

    def _words(self) -> str:
        item = self.builder.settings.head.item
        return f"{'an' if item[0] in 'aeiou' else 'a'} {item}"


def _key_and_suffix(member: Member) -> tuple[bytes, str] | None:
    """Return the key of a file and its suffix: what is before and after the first dot of its base name; None without."""
    start = member.name.rfind(b"/") + 1
    dot = member.name.find(b".", start)
    if member.kind != "file" or dot <= start or dot == len(member.name) - 1:
        return None
    return member.name[:dot], _as_utf8(member.name[dot + 1 :]).lower()


def _fields_of(fields: Fields) -> list[str]:
    """Return the suffixes of the members in which fields are looked up."""
    return [name for name in FIELDS if any(f"{path}.".startswith(f"{name}.") for path in fields.columns)]


def _read_field(member: Member, suffix: str, archive: Archive) -> object:
    """Return what a member with fields has, a string or a value of JSON, or why it is rejected."""
    if member.size > RECORD_BYTES:
        return too_long(RECORD_BYTES, suffix)
    if member.fault:
        return BadRow("malformed record", member.fault)
    data = read_exactly(archive.open(member), member.size)
    try:
        return data.decode() if suffix == "txt" else parse_as_written(data.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError as error:
        return BadRow("not UTF-8", f"byte {error.start} of the {suffix} cannot be decoded")
    except (ValueError, RecursionError) as error:
        return BadRow("not UTF-8" if "surrogate" in str(error) else "malformed record", f"{suffix}: {error}")


def _as_utf8(name: bytes) -> str:
    """Return a name as a string; what is not UTF-8 is spelled out."""
    return name.decode("utf-8", "backslashreplace")


def _tar_value(shard: Shard, size: int | None = None) -> dict[str, object]:
    return file_value(shard.path, offset=None, size=size, content_type=None, digest=None)


TAR = TarReader()
