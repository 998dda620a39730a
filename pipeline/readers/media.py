"""Reader of pictures and sounds: each file is a shard, whose rows are the picture, or the windows of the recording."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import IO, Any, BinaryIO, NamedTuple, cast

from ...model.head import BadRow
from ...model.media import DIGEST_BYTES, MediaHead, Part
from ..content import MediaContent, Source, content_type_of, file_value
from ..io.byte_ranges import read_exactly
from ..remote.decoder_watch import decoding
from .batch_builder import BatchBuilder
from .fields import Fields
from .reader import FieldSummary
from .shard import Batches, Shard

HASHED_BYTES = 1 << 20  # of a large file in memory at a time


class Item(NamedTuple):
    """A picture or sound that a reader has found.

    Attributes:
        path: The file that a user knows.
        name: Its name, whose suffix says what it is.
        size: Its bytes.
        offset: Where it begins in the file, if it can be read there by itself and is not the whole.
        source: Where its bytes are read; None if it cannot be read by itself, and is copied.
    """

    path: str
    name: str
    size: int
    offset: int | None = None
    source: Source | None = None


class MediaReader:
    """Reader of a file that is one picture or one recording."""

    has_fields = compressible = has_delimiter = has_row_groups = False
    quoting: str | None = None
    group_bytes = 256 << 20

    def read(self, handle: IO[bytes], builder: BatchBuilder) -> Batches:
        """Add the rows of the file to `builder`, and yield its batches as they fill up."""
        yield from add_item(builder, builder.shard.name, item_of(builder.shard), cast(BinaryIO, handle))

    def describe_fields(self, handle: IO[bytes], shard: Shard, fields: Fields, summary: FieldSummary) -> None:
        """Add nothing: a file has no fields."""


def item_of(shard: Shard) -> Item:
    """Return the picture or sound that a shard is."""
    return Item(shard.path, shard.path, shard.bytes, source=Source(*shard.listed, 0, shard.bytes))


class Found(NamedTuple):
    """What a look at an item has shown.

    Attributes:
        file: The value of the column FILE.
        source: Where its bytes are read; None if it has a fault.
        parts: What its rows embed.
        fault: Why it is rejected.
    """

    file: dict[str, Any]
    source: Source | None = None
    parts: Sequence[Part] = ()
    fault: BadRow | None = None


def add_item(builder: BatchBuilder, name: str, item: Item, opened: BinaryIO, kept: Sequence[Any] = ()) -> Batches:
    """Add the rows of a picture or recording, or its rejection, to `builder`; yield the batches that this completes.

    Args:
        builder: The rows of the shard.
        name: The id of the item, which those of its windows begin with.
        item: What and where it is.
        opened: Its bytes, at their beginning; of an item that is copied they are read once, in order.
        kept: The values of the kept fields.
    """
    yield from add_found(builder, name, look_at(builder, item, opened), kept)


def look_at(builder: BatchBuilder, item: Item, opened: BinaryIO) -> Found:
    """Return what a picture or recording is, whose bytes are read for that; arguments as add_item has them."""
    head, settings, size = cast(MediaHead, builder.settings.head), builder.settings.encoder, item.size
    assert settings is not None
    source, digest, reports = item.source, None, builder.settings.reports
    try:
        if size > builder.limit:
            with decoding(item.path, reports):
                head.examine(opened, size, settings)  # raises the rejection
        if source is None and size > head.max_held:
            source = builder.spill.copy(opened, size)
            opened = cast(BinaryIO, builder.spill.open(source))
        if builder.settings.headers_only and item.source:
            in_memory, digest = None, digest_of(repr(item.source).encode())
            parts = head.parts_of(head.glance(opened, size, settings), digest, settings)
        else:
            in_memory, digest = hash_content(opened, size, head.max_held)
            with decoding(item.path, reports):
                parts = head.parts(in_memory or opened, size, digest, settings)
        if source is None and in_memory:
            source = builder.spill.add(in_memory.getvalue())
    except BadRow as bad:
        return Found(_file(item, head, digest), fault=bad)
    return Found(_file(item, head, digest), source, parts)


def add_found(builder: BatchBuilder, name: str, found: Found, kept: Sequence[Any] = ()) -> Batches:
    """Add the rows of an item that was looked at, or its rejection; arguments as add_item has them."""
    if found.source is None:
        assert found.fault is not None
        found.fault.id = name
        yield from builder.reject_next(found.fault, (found.file,))
        return
    for part in found.parts:
        source = found.source._replace(units=part.units)
        content = MediaContent(found.file, part.values, source, part.hash)
        yield from builder.add_content(f"{name}{part.fragment}", content, kept)


def _file(item: Item, head: MediaHead, digest: bytes | None) -> dict[str, Any]:
    content_type = content_type_of(item.name, head.types)
    return file_value(item.path, offset=item.offset, size=item.size, content_type=content_type, digest=digest)


def hash_content(opened: BinaryIO, size: int, max_held: int) -> tuple[io.BytesIO | None, bytes]:
    """Return the bytes of a file, as a file, if memory takes them, and their digest."""
    if size <= max_held:
        data = read_exactly(opened, size)
        return io.BytesIO(data), digest_of(data)
    digest, left = hashlib.blake2b(digest_size=DIGEST_BYTES), size
    while left and (block := opened.read(min(left, HASHED_BYTES))):
        digest.update(block)
        left -= len(block)
    return None, digest.digest()


def digest_of(data: bytes) -> bytes:
    """Return the digest of a content."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


MEDIA = MediaReader()
