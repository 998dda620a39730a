"""ShardTable: shards as rows of an Arrow table, for there may be millions, and which of them did not change.

Whether a night changes nothing is decided with it, and pyarrow imports pandas when it makes an array or a scalar of Python
objects, which takes longer than the rest: the arrays here are made of buffers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..io.versions import ANY_LOCAL_VERSION, SIZE_AND_MTIME
from .shard import Shard

SHARD_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),  # absolute; on a disk a path need not be UTF-8
        pa.field("name", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("compression", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("delimiter", pa.string()),
        pa.field("quoting", pa.string()),
        pa.field("escape", pa.string()),
    ]
)

_STRING = pa.string()

_BATCH = 1024  # shards that are made at a time

_CHUNK = 1 << 18  # values of a chunk: Arrow's offsets in it have 31 bits


class ShardTable(Sequence[Shard]):
    """Shards as rows of `table`, of SHARD_SCHEMA; a Shard is made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> ShardTable:
        """Return a table of these shards, in their order."""
        columns = [
            [getattr(shard, name) for shard in shards] for shards in [list(shards)] for name in SHARD_SCHEMA.names
        ]
        return cls(
            pa.Table.from_arrays(
                [
                    integers(values) if field.name == "bytes" else strings(values, field.type)
                    for field, values in zip(SHARD_SCHEMA, columns, strict=True)
                ],
                schema=SHARD_SCHEMA,
            )
        )

    def __len__(self) -> int:
        """Return the number of shards."""
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Shard]:
        """Yield the shards, each made when it is reached."""
        for batch in self.table.to_batches(_BATCH):
            for path, *values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Shard(os.fsdecode(path), *values)

    @overload
    def __getitem__(self, at: int) -> Shard: ...

    @overload
    def __getitem__(self, at: slice) -> ShardTable: ...

    def __getitem__(self, at: int | slice) -> Shard | ShardTable:
        """Return a shard, or the table of some of them."""
        places = range(len(self))[at]  # raises IndexError
        if isinstance(places, range):
            return self.take(places)
        return next(iter(ShardTable(self.table.slice(places, 1))))

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same shards in the same order."""
        if isinstance(other, ShardTable):
            return bool(self.table.equals(other.table))
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the number of the shards."""
        return f"ShardTable of {len(self):,} shards"

    def take(self, places: Iterable[int]) -> ShardTable:
        """Return the table of the shards at these places, in that order."""
        return ShardTable(self.table.take(integers(places)))

    def with_formats(self, formats: Iterable[str]) -> ShardTable:
        """Return the table of the shards that have one of these formats."""
        return ShardTable(self.table.filter(pc.is_in(self.table["format"], value_set=strings(list(formats)))))

    def sorted(self) -> ShardTable:
        """Return the table of the shards by path."""
        path = self.table["path"]
        if len(path) < 2 or pc.all(pc.less_equal(path.slice(0, len(path) - 1), path.slice(1))).as_py():
            return self
        return ShardTable(self.table.take(pc.sort_indices(path)))


def unchanged_places(now: pa.Table, before: pa.Table, compare: str = "version") -> pa.Array:
    """Return for each row of `now` the row of `before` that is the same shard in the same state, or null, as int32.

    Args:
        now: Shards, with the columns of SHARD_SCHEMA and any others.
        before: Other ones, each path once.
        compare: What decides whether a local file changed, as --compare has it.
    """
    places = pc.index_in(now["path"], value_set=before["path"])
    unchanged = pc.is_valid(places)
    for name in SHARD_SCHEMA.names[1:]:
        column, earlier = now[name], before[name].take(places)
        if name == "version" and compare == "size_mtime":
            column, earlier = (
                pc.replace_substring_regex(each, ANY_LOCAL_VERSION, SIZE_AND_MTIME) for each in (column, earlier)
            )
        both_null = pc.and_(pc.is_null(column), pc.is_null(earlier))
        unchanged = pc.and_kleene(unchanged, pc.or_kleene(pc.equal(column, earlier), both_null))
    return pc.if_else(unchanged, places, pa.nulls(len(now), pa.int32())).combine_chunks()


def known_names(names: Mapping[str, str]) -> pa.Table:
    """Return names of shards by their absolute paths as a table with the columns `path` and `name`."""
    return pa.Table.from_arrays(
        [strings(list(names), pa.binary()), strings(list(names.values()))], names=["path", "name"]
    )


def integers(values: Iterable[int], bits: int = 64) -> pa.Array:
    """Return integers as an array of that many bits."""
    kind, dtype = {32: (pa.int32(), np.int32), 64: (pa.int64(), np.int64)}[bits]
    data = np.array(values if isinstance(values, range | np.ndarray) else list(values), dtype)
    return pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(data)])


def strings(values: Sequence[str | None], kind: pa.DataType = _STRING) -> pa.ChunkedArray:
    """Return strings or paths, or None for a null, as an array of `kind`."""
    chunks = [_chunk(values[start : start + _CHUNK], kind) for start in range(0, len(values), _CHUNK)]
    return pa.chunked_array(chunks, kind)


def _chunk(values: Sequence[str | None], kind: pa.DataType) -> pa.Array:
    valid, joined = None, "".join(filter(None, values))
    if joined.isascii() and None not in values:  # many times faster
        sizes, data = map(len, values), joined.encode()  # type: ignore[arg-type]
    else:
        encode = os.fsencode if kind == pa.binary() else str.encode
        encoded = [encode(value or "") for value in values]
        sizes, data = map(len, encoded), b"".join(encoded)
        valid = pa.py_buffer(np.packbits([value is not None for value in values], bitorder="little"))
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(sizes, np.int32, len(values)), out=offsets[1:])
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(offsets), pa.py_buffer(data)])
