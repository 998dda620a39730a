"""A shard, its records, and the batches that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from ...model.head import BadRow
from ...model.messages import OneLineError
from ..io.versions import ListedFile

# A record is a dict of fields; a line of txt is a str.
Record: TypeAlias = "dict[str, object] | str"
# (number of the first row, records of that row and of those after it)
Records: TypeAlias = "Iterator[tuple[int, list[Record | BadRow]]]"
# (row batch, rejected batch)
Batches: TypeAlias = "Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]"

# The version of what readers make of the bytes of a shard: rows of a snapshot that another version made are read again.
READERS_VERSION = 2

# A record of jsonl or csv may contain much besides its content; a longer one is never held whole.
RECORD_BYTES = 16 << 20

# The rows of a batch take about this much at most.
BATCH_BYTES = 16 << 20


class InputError(OneLineError, ValueError):
    """An input that cannot be read as it was given; the message says why and names a remedy."""


@dataclass(frozen=True)
class Shard:
    """One input file.

    Attributes:
        path: Where it is.
        name: Its path below the fixed part of the glob, as ids contain it.
        format: Its format, as in READERS.
        compression: Its compression, or None.
        bytes: Its size when it was listed.
        version: Its version when it was listed; a read of another version fails.
        delimiter: The separator of csv, if it was given.
        quoting: That of csv and tsv, "minimal" or "none"; None for other formats.
        escape: The escape character of csv and tsv, if it was given.
        number: Its place among all shards of a run.
    """

    path: str
    name: str
    format: str
    compression: str | None
    bytes: int
    version: str
    delimiter: str | None = None
    quoting: str | None = None
    escape: str | None = None
    number: int = 0

    @property
    def listed(self) -> ListedFile:
        """The file as it was listed."""
        return ListedFile(self.path, self.bytes, self.version)


@dataclass(frozen=True)
class Part:
    """What is read of a shard at once: all of it, or the row groups from `first` to before `end` of a Parquet shard.

    Attributes:
        shard: The shard.
        bytes: About how many the part takes in the file.
        number: Its number among the `parts` of the shard, from 0.
        parts: How many the shard has.
        first: The first row group.
        end: The one behind the last, or None for all of the shard.
        row: The number of its first row.
        place: Where the footer describes its first row group, in bytes.
    """

    shard: Shard
    bytes: int
    number: int = 0
    parts: int = 1
    first: int = 0
    end: int | None = None
    row: int = 0
    place: int = 0
