"""Parts: what a worker reads in one step, many small shards together and a large Parquet shard by its row groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from .compression import DamagedShard
from .input_files import open_shard
from .parquet import MAX_ROWS, row_group_sizes
from .read_settings import ReadSettings
from .registry import READERS
from .shard import Part, Shard

GROUP_SHARDS = 1000  # small ones that are read in one step

PART_BYTES = 64 << 20  # of row groups in one part of a Parquet shard


def group_shards(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    """Yield the shards in order, in groups of up to GROUP_SHARDS and the group_bytes of their format, or of a larger one."""
    group, size = list[Shard](), 0
    for shard in shards:
        if group and (len(group) >= GROUP_SHARDS or size + shard.bytes > READERS[shard.format].group_bytes):
            yield group
            group, size = [], 0
        group.append(shard)
        size += shard.bytes
    if group:
        yield group


def is_large(shard: Shard) -> bool:
    """Return whether a shard may be read in several parts."""
    return READERS[shard.format].has_row_groups and shard.bytes > PART_BYTES


def any_is_large(shards: pa.Table) -> bool:
    """Return whether one of the shards of a table may be."""
    formats = pa.array([name for name, reader in READERS.items() if reader.has_row_groups])
    large = pc.and_(pc.is_in(shards["format"], value_set=formats), pc.greater(shards["bytes"], PART_BYTES))
    return bool(pc.any(large).as_py())


def split_group(shards: list[Shard], settings: ReadSettings) -> Iterator[list[Part]]:
    """Yield the parts of a group of shards, as they are read in one step: all together, or one of a large Parquet shard.

    Raises OSError or InputError as open_shard does.
    """
    if len(shards) == 1 and is_large(shards[0]):
        yield from ([part] for part in _row_group_parts(shards[0], settings))
    else:
        yield [Part(shard, shard.bytes) for shard in shards]


def _row_group_parts(shard: Shard, settings: ReadSettings) -> list[Part]:
    """Return the parts of a Parquet shard, or the whole if its footer is damaged: then reading it reports the damage."""
    try:
        with open_shard(shard, settings.file_io, settings.reports) as handle:
            sizes = row_group_sizes(handle)
    except DamagedShard:
        sizes = []
    if not sizes or min(map(min, sizes)) < 0 or sum(rows for rows, _, _ in sizes) >= MAX_ROWS:
        return [Part(shard, shard.bytes)]
    parts, first, row, rows, size = list[Part](), 0, 0, 0, 0
    for number, (group_rows, group_bytes, _) in enumerate(sizes, 1):
        rows, size = rows + group_rows, size + group_bytes
        if size >= PART_BYTES or number == len(sizes):
            parts.append(Part(shard, size, len(parts), 0, first, number, row, sizes[first][2]))
            first, row, rows, size = number, row + rows, 0, 0
    return [replace(part, parts=len(parts)) for part in parts]
