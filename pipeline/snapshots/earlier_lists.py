"""The rows that a snapshot has of lists, for the run after it: only new and changed entries of a list are read then."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ...model.media import MediaHead
from ..errors import first_line
from ..io.file_io import FileIO
from ..io.paths import join
from ..readers.known_entries import KnownEntries, columns_of
from ..schemas import SHARD
from .commit import require_manifest
from .snapshot import UNREADABLE, Snapshot, open_pages

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotLists:
    """The rows of a snapshot that are of lists, as workers read them.

    Attributes:
        output: The directory of the snapshots.
        snapshot: The name of the snapshot.
        head: Its head.
        file_io: How its files are opened.
    """

    output: str
    snapshot: str
    head: MediaHead
    file_io: FileIO

    def load(self, names: Sequence[str]) -> KnownEntries:
        """Return what the rows of the lists with these names say of files.

        Rows of a file that cannot be read are not known: what they refer to is read again.
        """
        return KnownEntries(self.head, self._rows(names))

    def _rows(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of these lists."""
        self.file_io.set_options(self.output)
        snapshot = Snapshot(self.output, self.snapshot, require_manifest(self.output, self.snapshot))
        lists = pa.array(names, pa.string())
        is_listed = pc.is_in(snapshot.shards["name"], value_set=lists)
        segments = set(snapshot.shards["segment"].filter(is_listed).to_pylist())
        for file in snapshot.files:
            if not file.is_part or file.segment not in segments or file.name in snapshot.damaged:
                continue
            path = join(snapshot.path, file.name)
            try:
                with self.file_io.open(path) as handle:
                    for batch in open_pages(handle).iter_batches(columns=columns_of(self.head), use_threads=False):
                        yield batch.filter(pc.is_in(batch.column(SHARD.name), value_set=lists))
            except UNREADABLE as error:
                _LOGGER.warning(
                    "%s cannot be read (%s): files that its rows refer to are read again", path, first_line(error)
                )
