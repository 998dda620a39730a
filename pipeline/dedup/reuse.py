"""Which rows need the model: rows and earlier vectors meet by text hash, and what is known is taken from where it lies.

Rows go through one shuffle, in Arrow, by the first bits of their text hash, together with references to the row groups
of earlier part files that hold hashes of the same bucket. Vectors are never shuffled: whoever has a bucket opens the
row groups it refers to. Our own part files are written bucket by bucket, so an unchanged bucket is one or two of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..io.file_io import FileIO
from ..metrics import count
from ..schemas import EARLIER, MODEL_COLUMNS
from ..snapshots.manifest import RowGroup
from ..text_hash import hash_ranges
from ..writers.parquet_file import ROW_GROUP
from .buckets import BUCKETED, Buckets, read_pieces
from .spill import combine_batches

_LOGGER = logging.getLogger(__name__)


def refer_to_row_groups(file: tuple[str, list[RowGroup]], bits: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """An earlier file's (path, row groups) -> (bucket, EARLIER batch) for each bucket that its hashes fall into."""
    path, row_groups = file
    wanted: dict[int, list[int]] = {}
    for number, row_group in enumerate(row_groups):
        buckets: set[int] = set()
        for low, high in row_group["ranges"]:
            buckets.update(range(low >> (16 - bits), (high >> (16 - bits)) + 1))
        for bucket in buckets:
            wanted.setdefault(bucket, []).append(number)
    for bucket, numbers in wanted.items():
        yield bucket, pa.RecordBatch.from_pydict({"path": [path] * len(numbers), "row_group": numbers}, schema=EARLIER)


@beam.typehints.with_output_types(pa.RecordBatch)
class ReuseVectors(beam.DoFn):  # type: ignore[misc]
    """(bucket, its rows and references) -> embedded batches of known texts; hashed row batches of new ones on "new".

    Rows of equal text leave in one batch, so that the encoder sees each text once. An earlier file that cannot be read
    (gone, or its checksums do not hold) costs model time, nothing else. `columns` are those taken from earlier files.
    """

    def __init__(self, batch_texts: int, columns: tuple[str, ...] = MODEL_COLUMNS, file_io: FileIO = FileIO()) -> None:
        self.batch_texts, self.columns, self.file_io = batch_texts, columns, file_io
        self._open: dict[str, tuple[IO[bytes], pq.ParquetFile]] = {}

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]], reuse: bool = True
    ) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """`reuse` is the canary's word: where it is False, every row is new."""
        rows: list[pa.RecordBatch] = []
        references: list[pa.RecordBatch] = []
        for batch in read_pieces(element[1]):
            (references if batch.schema.equals(EARLIER) else rows).append(batch)
        if not rows:
            return
        batch = combine_batches(rows)
        batch = batch.take(pc.sort_indices(batch.column("text_hash")))
        for reference in references if reuse else []:
            for path, number in zip(*(column.to_pylist() for column in reference.columns), strict=True):
                if batch.num_rows:
                    known, batch = self._take(batch, path, number)
                    yield from known
        for piece in _by_texts(batch, self.batch_texts):
            yield beam.pvalue.TaggedOutput("new", piece)

    def _take(self, batch: pa.RecordBatch, path: str, number: int) -> tuple[list[pa.RecordBatch], pa.RecordBatch]:
        """(embedded batches of the rows whose hashes lie in that row group, the other rows)."""
        try:
            file = self._file(path)
            place = pc.index_in(batch.column("text_hash"), value_set=self._read(file, number, ["text_hash"])[0])
            found = pc.is_valid(place)
            if place.null_count == len(place):
                return [], batch
            columns = self._read(file, number, list(self.columns))
        except (OSError, pa.ArrowException, KeyError) as error:
            _LOGGER.warning("%s cannot be read (%s): its texts are embedded again", path, error)
            count("earlier_unreadable", 1)
            return [], batch
        rows, place = batch.filter(found), place.drop_null()
        known = []
        for start in range(0, rows.num_rows, ROW_GROUP):
            part, places = rows.slice(start, ROW_GROUP), place.slice(start, ROW_GROUP)
            taken = [column.take(places) for column in columns]
            names = [*part.schema.names, *self.columns]
            made = pa.RecordBatch.from_arrays([*part.columns, *taken], names=names)
            known.append(made.replace_schema_metadata({"reused": "1"}))
        return known, batch.filter(pc.invert(found))

    def _file(self, path: str) -> pq.ParquetFile:
        if path not in self._open:
            while len(self._open) >= 8:
                self._close(next(iter(self._open)))
            handle = self.file_io.open(path)
            self._open[path] = handle, pq.ParquetFile(handle, page_checksum_verification=True)
        return self._open[path][1]

    @staticmethod
    def _read(file: pq.ParquetFile, number: int, columns: list[str]) -> list[pa.Array]:
        table = file.read_row_group(number, columns=columns, use_threads=False)
        return [table[name].combine_chunks() for name in columns]

    def _close(self, path: str) -> None:
        handle, file = self._open.pop(path)
        file.close(force=True)
        handle.close()

    def teardown(self) -> None:
        """Close the earlier files."""
        for path in list(self._open):
            self._close(path)


def _by_texts(batch: pa.RecordBatch, texts: int) -> Iterator[pa.RecordBatch]:
    """Cut a batch sorted by hash so that each piece holds at most `texts` different texts and no text is cut."""
    if not batch.num_rows:
        return
    hashes = batch.column("text_hash").dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(hashes, prepend=-1))[::texts].tolist()
    for start, end in zip(starts, [*starts[1:], batch.num_rows], strict=True):
        yield batch.slice(start, end - start)


class JoinWithEarlierVectors(beam.PTransform):  # type: ignore[misc]
    """Hashed row batches -> what `reuse` makes of them: `.known`, embedded from earlier vectors, and `.new`.

    `earlier` are files as (path, row groups). Rows meet them in 2**bits buckets of text hashes; `spill` is as for
    Buckets, and `same` the canary's word as a side input, where the rows are to be embedded.
    """

    def __init__(
        self,
        earlier: Sequence[tuple[str, list[RowGroup]]],
        reuse: ReuseVectors,
        bits: int,
        spill: str | None,
        same: beam.pvalue.AsSideInput | None = None,
    ) -> None:
        super().__init__()
        self.earlier, self.reuse, self.bits, self.spill, self.same = earlier, reuse, bits, spill, same

    def expand(self, rows: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """One shuffle, of rows and of references."""
        references = (
            rows.pipeline
            | "ListEarlierFiles" >> beam.Create(self.earlier)
            | "ReferToRowGroups" >> beam.FlatMap(refer_to_row_groups, self.bits).with_output_types(BUCKETED)
        )
        reuse = beam.ParDo(self.reuse, *([self.same] if self.same else []))
        met = rows | "MeetInBuckets" >> Buckets("text_hash", self.bits, self.spill, references)
        return met | "ReuseVectors" >> reuse.with_outputs("new", main="known")


def leftover_row_groups(path: str, fingerprint: str, file_io: FileIO = FileIO()) -> list[RowGroup] | None:
    """Return the row groups of a part file of a run that never finished.

    Returns None if the file is incomplete or its vectors have another fingerprint.
    """
    row_groups: list[RowGroup] = []
    try:
        with file_io.open(path) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            if (file.metadata.metadata or {}).get(b"fingerprint", b"").decode() != fingerprint:
                return None
            for number in range(file.num_row_groups):
                hashes = file.read_row_group(number, columns=["text_hash"])["text_hash"].combine_chunks()
                row_groups.append({"rows": len(hashes), "ranges": hash_ranges(hashes)})
    except (OSError, pa.ArrowException, KeyError) as error:
        _LOGGER.warning("%s, left by an unfinished run, cannot be read (%s): it is not reused", path, error)
        return None
    return row_groups
