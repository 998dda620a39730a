"""What is content of a row: its hash, by which equal contents meet, and the reference to a picture or sound in a file.

The hash of a content is blake2b-128 of its bytes; a window of a recording has one of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..model.head import Head
from ..model.media import MediaHead
from .schemas import CONTENT_HASH, SOURCE

DIGEST = "BLAKE2B-128"  # of bytes, as `checksum` names it

NOT_LISTED = -1

EXTENT = "extent_"  # begins the names of counts of content
_CHECKSUM = re.compile(f"{DIGEST}:([0-9a-f]{{32}})")


def content_hash(contents: pa.Array) -> pa.FixedSizeBinaryArray:
    """Return the hash of each content, strings as UTF-8."""
    digest = hashlib.blake2b
    values = contents.to_pylist()
    if pa.types.is_string(contents.type):
        hashes = b"".join([digest(value.encode(), digest_size=16).digest() for value in values])
    else:
        hashes = b"".join([digest(value, digest_size=16).digest() for value in values])
    return pa.FixedSizeBinaryArray.from_buffers(CONTENT_HASH.type, len(values), [None, pa.py_buffer(hashes)])


def add_content_hash(batch: pa.RecordBatch, content: str) -> pa.RecordBatch:
    """Return the row batch with the hashes of its column `content` as last column."""
    hashes = content_hash(batch.column(content))
    return pa.RecordBatch.from_arrays([*batch.columns, hashes], schema=batch.schema.append(CONTENT_HASH))


def hash_words(hashes: pa.FixedSizeBinaryArray) -> NDArray[np.uint32]:
    """Return each content hash as four numbers of 32 bits, [n, 4], that sort as the hashes do."""
    words = np.frombuffer(hashes.buffers()[1], ">u4").reshape(-1, 4)
    return words[hashes.offset : hashes.offset + len(hashes)]


def count_extent(rows: pa.RecordBatch, head: Head, count: Callable[[str, int], object]) -> None:
    """Count how much content rows have that refer to files: what `extent` of the head has, under EXTENT and its name."""
    if head.by_reference:
        columns = {each.name: rows.column(each.name).to_numpy(zero_copy_only=False) for each in head.content_columns}
        numbers = hash_words(rows.column(CONTENT_HASH.name))[:, 3]  # of parts in their recordings
        units = rows.column(SOURCE.name).field("units").to_numpy(zero_copy_only=False)
        for name, amount in cast(MediaHead, head).planned_extent(columns, numbers, units).items():
            count(f"{EXTENT}{name}", amount)


def extent_in(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the extent among other counts."""
    return {name.removeprefix(EXTENT): amount for name, amount in counts.items() if name.startswith(EXTENT)}


class Source(NamedTuple):
    """Bytes of one version of a file: those of a content.

    Attributes:
        path: The file, which may be a spill file of the run.
        bytes: The size of the whole file; 0 for a spill file of the run, NOT_LISTED if an earlier run has read the bytes and
            this one has not looked.
        version: Its version when it was listed; "" if it was not.
        offset: Where the content begins.
        size: The bytes of the content.
        units: What the model reads of it, in the head's unit.
    """

    path: str
    bytes: int
    version: str
    offset: int
    size: int
    units: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the content is the whole file."""
        return not self.offset and self.size == self.bytes

    def as_row(self) -> dict[str, Any]:
        """Return the value of the column SOURCE."""
        return {**self._asdict(), "path": os.fsencode(self.path)}

    @classmethod
    def of_row(cls, value: Mapping[str, Any]) -> Source:
        """Return the source in a value of the column SOURCE."""
        return cls(**{**value, "path": os.fsdecode(value["path"])})


class MediaContent(NamedTuple):
    """The content of one row, by reference.

    Attributes:
        file: The value of the column FILE.
        values: Those of the head's content columns.
        source: Where its bytes are.
        hash: The content hash.
    """

    file: Mapping[str, Any]
    values: tuple[Any, ...]
    source: Source
    hash: bytes


def file_value(
    path: str, *, offset: int | None, size: int | None, content_type: str | None, digest: bytes | None
) -> dict[str, Any]:
    """Return the value of the column FILE.

    Args:
        path: The file that a user knows.
        offset: Where the content begins in it; None if it is the whole file, or cannot be read by itself.
        size: The bytes of the content, if they are known.
        content_type: Its media type, as its name has it.
        digest: That of its bytes, if they were read.
    """
    checksum = None if digest is None else checksum_of(digest)
    return {"uri": uri_of(path), "offset": offset, "size": size, "content_type": content_type, "checksum": checksum}


def digest_in(checksum: str) -> bytes:
    """Return the digest in the value of a checksum of file_value."""
    return bytes.fromhex(checksum.removeprefix(f"{DIGEST}:"))


def checksum_of(digest: bytes) -> str:
    """Return the checksum, as the column FILE has it, of bytes with that digest."""
    return f"{DIGEST}:{digest.hex()}"


def digests_of(checksums: pa.Array) -> list[bytes | None]:
    """Return the digests in checksums of the column FILE; None for what is not one."""
    return [
        bytes.fromhex(found[1]) if value is not None and (found := _CHECKSUM.fullmatch(value)) else None
        for value in checksums.to_pylist()
    ]


def uri_of(path: str) -> str:
    """Return a path as part files have it: as it is, or as a file: URI if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"file://{quote(os.fsencode(path))}"
    return path


def content_type_of(name: str, types: Mapping[str, str]) -> str | None:
    """Return the media type that the suffix of a name says, or None."""
    return types.get(os.path.splitext(name)[1].lower())
