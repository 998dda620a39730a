"""Files of the previous snapshot become files of the new one: as they are, or as copies of the rows that are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...model.head import Head
from ..errors import SnapshotError, convert_write_errors, first_line
from ..io.file_io import FileIO
from ..io.filesystem import copy_file, read
from ..io.paths import join
from ..io.retries import StoreError
from ..layout import COPY, PART, REJECTED, parquet_name
from ..readers.settle_types import SettledTypes, apply_types
from ..readers.shard import InputError
from ..schemas import CONTENT_HASH
from ..snapshots.commit import record_damage
from ..snapshots.listing import CarriedFile, read_dropped
from ..snapshots.manifest import FileInfo
from ..snapshots.snapshot import UNREADABLE, open_pages
from .parquet_file import REJECTED_OPTIONS, ParquetFileWriter, part_options
from .statistics import FileStats


@dataclass(frozen=True)
class KeptRows:
    """Rows of the previous snapshot that are rows of the new one: their file, or None, and how many rows were dropped."""

    file: FileInfo | None
    dropped: int


@dataclass(frozen=True)
class DroppedShards:
    """The shards whose rows a run drops, as the listing in its directory has them."""

    directory: str
    file_io: FileIO

    def in_segment(self, segment: int) -> bool:
        """Return whether a segment of the previous snapshot has such shards."""
        return segment in _dropped_names(self.directory, self.file_io)

    def kept(self, shards: pa.Array | pa.ChunkedArray, segment: int) -> NDArray[np.bool_]:
        """Return which rows of these shards are kept, bool [n]."""
        dropped = _dropped_names(self.directory, self.file_io).get(segment)
        if dropped is None:
            return np.ones(len(shards), bool)
        if isinstance(shards, pa.ChunkedArray):
            shards = shards.combine_chunks()
        found = shards.dictionary_encode()
        kept = np.array([name not in dropped for name in found.dictionary.to_pylist()], bool)
        rows: NDArray[np.bool_] = kept[found.indices.to_numpy()]
        return rows


@lru_cache(maxsize=1)
def _dropped_names(directory: str, file_io: FileIO) -> dict[int, frozenset[str]]:
    """Return the names of the shards whose rows a run drops, by the number of their segment; a process reads them once.

    Arrow's is_in would hash all of them at each call, which takes 0.3 s for a million names.
    """
    table = read_dropped(directory, file_io)
    return {
        number: frozenset(table.filter(pc.equal(table["segment"], number))["name"].to_pylist())
        for number in pc.unique(table["segment"]).to_pylist()
    }


@contextmanager
def open_kept(path: str, file_io: FileIO, *, record: bool = True) -> Iterator[IO[bytes]]:
    """Open a file of the previous snapshot whose rows are kept, for a block with the errors of reading_kept."""
    with reading_kept(path, record=record), file_io.open(path) as handle:
        yield handle


@contextmanager
def reading_kept(path: str, *, record: bool = True) -> Iterator[None]:
    """Convert errors of reading a file of the previous snapshot whose rows are kept.

    Raises:
        SnapshotError: It cannot be read. If it is damaged, that is noted beside it, unless `record` is False.
    """
    try:
        yield
    except (InputError, MemoryError):  # of what is made of the rows
        raise
    except UNREADABLE as error:
        if (
            record and not isinstance(error, StoreError) and getattr(error, "errno", None) is None
        ):  # its content is at fault
            record_damage(path, first_line(error))
        raise SnapshotError(
            f"{path}, whose rows are carried over, cannot be read ({first_line(error)}): run again; the shards with rows in "
            f"a damaged file are then read again"
        ) from error


class KeepRows(beam.DoFn):  # type: ignore[misc]
    """Groups of files of the previous snapshot to one KeptRows each, for the file that has their rows in the new one.

    A file of which every row is kept is linked or copied as it is. Else the rows are written to a new file, in the same
    order. Its name follows from the sources and from what is dropped, and a file of that name is taken as it is: a group
    that is processed twice makes nothing twice.

    Args:
        previous: The directory of the previous snapshot.
        directory: The run directory.
        head: The head that its rows were embedded with.
        dropped: The shards whose rows are dropped.
        encoding: That of the vectors, as --vector_encoding names it.
        file_io: How files are opened.
    """

    def __init__(
        self, previous: str, directory: str, *, head: Head, dropped: DroppedShards, encoding: str, file_io: FileIO
    ) -> None:
        self.previous, self.directory, self.head = previous, directory, head
        self.dropped, self.encoding, self.file_io = dropped, encoding, file_io

    def process(self, group: list[CarriedFile], types: SettledTypes | None = None) -> Iterator[KeptRows]:
        """Keep the rows of a group. `types` are those of the kept fields, if they were not known before the run."""
        masks = [self._mask(each) for each in group]
        rows = sum(each.file.rows for each in group)
        kept = sum(int(mask.sum()) for mask in masks)
        if not kept:
            yield KeptRows(None, rows)
        elif len(group) == 1 and kept == rows and not (types and types.widened and group[0].file.is_part):
            self._link(group[0].file)
            yield KeptRows(group[0].file, 0)
        else:
            yield KeptRows(self._copy(group, masks, types), rows - kept)

    def _mask(self, each: CarriedFile) -> NDArray[np.bool_]:
        """Return which rows of a file are kept, bool [rows]; a file of a segment that lost no shard is not opened."""
        if not self.dropped.in_segment(each.before):
            return np.ones(each.file.rows, bool)
        with open_kept(join(self.previous, each.file.name), self.file_io) as handle:
            shards = pq.ParquetFile(handle, page_checksum_verification=True).read(["shard"], use_threads=False)["shard"]
        return self.dropped.kept(shards, each.before)

    def _link(self, file: FileInfo) -> None:
        try:
            copy_file(join(self.previous, file.name), join(self.directory, file.name), file.bytes, file.sha256)
        except OSError as error:
            raise SnapshotError(
                f"{file.name} cannot be carried over from {self.previous} ({error.strerror or error}): run again, with "
                f"--force if it fails again; then every shard is read"
            ) from error

    def _copy(self, group: list[CarriedFile], masks: list[NDArray[np.bool_]], types: SettledTypes | None) -> FileInfo:
        first = group[0].file
        made_of = [(each.file.sha256, np.packbits(mask).tobytes()) for each, mask in zip(group, masks, strict=True)]
        widened = types.schema if types and types.widened and first.is_part else b""
        digits = hashlib.sha256(repr((made_of, self.encoding, widened)).encode()).hexdigest()[:16]
        name = parquet_name(PART if first.is_part else REJECTED, f"{digits}{COPY}")
        data = read(join(self.directory, name))  # of an earlier attempt
        if data is None:
            file = self._write(name, group, masks, types if widened else None)
        else:
            file = self._describe(name, data)
        if len(group) > 1:  # the publisher names this run
            return replace(file, segment=first.segment)
        return replace(file, segment=first.segment, made_by=first.made_by)

    def _write(
        self, name: str, group: list[CarriedFile], masks: list[NDArray[np.bool_]], types: SettledTypes | None
    ) -> FileInfo:
        """Write the rows of all files that their masks keep; row groups of the same bucket are joined."""
        writer: ParquetFileWriter | None = None
        stats = FileStats()
        try:
            for each, mask in zip(group, masks, strict=True):
                with open_kept(join(self.previous, each.file.name), self.file_io) as handle:
                    for rows in _kept_rows(open_pages(handle), mask):
                        batch = apply_types(rows, types) if types else rows
                        with convert_write_errors(self.directory):
                            writer = writer or self._start(name, batch.schema)
                            writer.add(batch)
                        stats.add_file_rows(batch, self.head)
            assert writer is not None  # some row is kept
            with convert_write_errors(self.directory):
                return stats.described(writer.finish())
        except BaseException:
            if writer:
                writer.discard()
            raise

    def _start(self, name: str, schema: pa.Schema) -> ParquetFileWriter:
        is_part, bits = name.startswith(PART), int((schema.metadata or {}).get(b"bucket_bits", b"0"))
        options = part_options(schema, self.encoding) if is_part else REJECTED_OPTIONS
        return ParquetFileWriter(self.directory, name, schema, options, bits=bits)

    def _describe(self, name: str, data: bytes) -> FileInfo:
        """Return what the list of files says of a finished copy."""
        source, stats, lowest = pq.ParquetFile(pa.BufferReader(data)), FileStats(), list[str]()
        for batch in source.iter_batches():
            stats.add_file_rows(batch, self.head)
            if CONTENT_HASH.name in batch.schema.names:
                lowest.append(pc.min(batch.column(CONTENT_HASH.name)).as_py().hex())
        rows = source.metadata.num_rows
        digest = hashlib.sha256(data).hexdigest()
        return stats.described(FileInfo(name, rows, len(data), digest, lowest_hash=min(lowest, default=None)))


def _kept_rows(source: pq.ParquetFile, mask: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file that the mask keeps, one row group at a time."""
    row = 0
    for number in range(source.num_row_groups):
        rows = source.metadata.row_group(number).num_rows
        kept = mask[row : row + rows]
        row += rows
        if kept.any():
            table = source.read_row_group(number, use_threads=False)
            table = table if kept.all() else table.filter(pa.array(kept))
            yield from table.combine_chunks().to_batches()
