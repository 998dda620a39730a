"""Check the rows of a snapshot against its schema, its manifest and each other, a batch at a time."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...model.fingerprint import PROVENANCE_PARTS
from ...model.media import MediaHead, RowIdentity
from ...model.messages import plural
from ..content import content_hash, digests_of
from ..errors import SnapshotError, convert_temporary_errors, first_line
from ..io.paths import join
from ..io.timeout_reader import open_to_read
from ..schemas import CONTENT_HASH, FILE, kept_fields, reasons_of, rejected_schema
from ..search.top_k import vectors_of
from ..snapshots.manifest import FileInfo
from ..snapshots.snapshot import BATCH_ROWS, UNREADABLE, Snapshot
from ..writers.statistics import extent_of
from .checks import MAX_EXAMPLES, Check

# The largest difference between 1 and the length of a normalized vector: twice what rounding to half precision causes.
LENGTH_ERROR = {"float32": 1e-4, "float16": 2e-3}

CACHE_KIB = 32 * 1024  # memory of DuplicateFinder


class DuplicateFinder:
    """A collection that knows which values were added more than once. It is on the disk, so its memory is bounded."""

    def __init__(self) -> None:
        # A database without a name is a temporary file that has no directory entry: it ends with this process, however
        # that ends. So nothing needs to survive a crash, either.
        self._database = sqlite3.connect("", isolation_level=None)
        for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", f"cache_size=-{CACHE_KIB}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE added (value BLOB NOT NULL)")

    def add(self, values: Iterable[bytes]) -> None:
        """Add values. Raises SnapshotError, as `duplicates` does, if the disk has no space."""
        with convert_temporary_errors(sqlite3.Error):
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO added VALUES (?)", ((value,) for value in values))
            self._database.execute("COMMIT")

    def duplicates(self, examples: int) -> tuple[int, list[bytes]]:
        """Return how many values were added more than once, and the first few of them in sorted order."""
        with convert_temporary_errors(sqlite3.Error):
            self._database.execute(
                "CREATE TEMP TABLE duplicates AS SELECT value FROM added GROUP BY value HAVING count(*) > 1"
            )
            (count,) = self._database.execute("SELECT count(*) FROM duplicates").fetchone()
            rows = self._database.execute("SELECT value FROM duplicates ORDER BY value LIMIT ?", (examples,)).fetchall()
        return int(count), [bytes(value) for (value,) in rows]

    def close(self) -> None:
        """Delete the database."""
        self._database.close()


class RowChecks:
    """The checks of rows. Call `check_file` for each file of the snapshot, then `finish`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.manifest, self.head = snapshot, snapshot.manifest, snapshot.head
        self._columns = self.head.column_check(self.manifest["fingerprint_parts"])
        self.readable, self.schema, self.ids = Check("readable"), Check("schema"), Check("ids")
        self.vectors, self.hashes = Check("vectors"), Check("hashes")
        self.sizes, self.counts = Check(self.head.unit), Check("counts")
        self.sources = Check("sources")
        self._ids = DuplicateFinder()
        self._kept: pa.Schema | None = None  # kept fields of the first file
        self._reasons, self._contents = Counter[str](), Counter[str]()
        self._listed: pa.Table | None = (
            None  # None if the list of shards cannot be read, which is a fault of another check
        )
        with suppress(SnapshotError):
            self._listed = snapshot.shards
        self._of_shards = np.zeros(
            0 if self._listed is None else len(self._listed), np.int64
        )  # rows, by the place of the shard in the list
        self._rows = self._truncated = 0
        self._lengths = [np.inf, -np.inf]  # of the shortest and the longest vector

    def check_file(self, info: FileInfo) -> None:
        """Check all rows of a file."""
        try:
            with open_to_read(join(self.snapshot.path, info.name)) as handle:
                file = pq.ParquetFile(handle, page_checksum_verification=True)
                if info.is_part:
                    self._check_part(info, file)
                else:
                    self._check_rejected(info, file)
        except UNREADABLE as error:
            self.readable.add_fault(f"{info.name} cannot be read: {first_line(error)}")

    def finish(self) -> list[Check]:
        """Return all checks; to be called after the last file."""
        totals = self.manifest["totals"]
        self.readable.summary = plural(self._rows, "row")
        runs = {file.made_by.run for file in self.snapshot.files}
        self.schema.summary = "columns and provenance as in the list of files"
        if len(runs) > 1:
            self.schema.summary += f", which names {len(runs)} runs"
        if self._rows:
            self.vectors.summary = f"finite, of length {self._lengths[0]:.4g} to {self._lengths[1]:.4g}"
        items = self.head.items
        omitted = self.head.by_reference or self.head.content.name in self.snapshot.omitted
        self.hashes.summary = f"the snapshot has no {items} to compare with" if omitted else f"those of the {items}"
        faults, self.sizes.summary = self._columns.finish()
        self.sizes.add_faults(faults)
        self.counts.expect_equal("the number of truncated rows", self._truncated, totals["truncated"])
        self.counts.expect_equal("the amount of content", dict(self._contents), totals["contents"])
        self.counts.expect_equal("rejected rows by reason", dict(self._reasons), totals["rejected_by_reason"])
        unknown = sorted(set(self._reasons) - set(reasons_of(self.head)))
        if unknown:
            self.counts.add_fault(f"{', '.join(map(repr, unknown))} is not a reason for rejecting a row"[:300])
        if self._listed is not None:
            differ = np.flatnonzero(self._of_shards != self._listed["rows"].to_numpy())
            for place in differ[:MAX_EXAMPLES].tolist():
                name, rows = (self._listed[column][place].as_py() for column in ("name", "rows"))
                self.counts.add_fault(
                    f"the shard {name!r:.80} has {plural(self._of_shards[place], 'row')}, expected {rows}"
                )
        self.counts.summary = "as in the manifest and in the list of shards"
        self._check_ids()
        checks = [self.readable, self.schema, self.ids, self.vectors, self.hashes, self.sizes, self.counts]
        if self.head.by_reference:
            self.sources.summary = "references to files, and the ids and hashes that follow from them"
            checks.insert(-2, self.sources)
        return checks

    def _check_part(self, info: FileInfo, file: pq.ParquetFile) -> None:
        if not self._check_schema(info, file):
            return
        self.schema.expect_equal(f"{info.name}: rows", file.metadata.num_rows, info.rows)
        column = file.schema_arrow.names.index(CONTENT_HASH.name)
        lowest, shards = [], list[pa.Array]()
        for number in range(file.num_row_groups):
            hashes = []
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[number]):
                self._check_batch(batch)
                hashes.append(batch.column(CONTENT_HASH.name))
                shards.append(batch.column("shard"))
            if not hashes:
                continue
            ends = pc.min_max(pa.chunked_array(hashes)).as_py()
            lowest.append(ends["min"].hex())
            statistics = file.metadata.row_group(number).column(column).statistics
            if statistics is None or (statistics.min, statistics.max) != (ends["min"], ends["max"]):
                self.hashes.add_fault(f"{info.name}, row group {number}: other hashes than its statistics say")
        self.hashes.expect_equal(f"{info.name}: the lowest hash", min(lowest, default=None), info.lowest_hash)
        self._count_shards(info, shards)

    def _check_rejected(self, info: FileInfo, file: pq.ParquetFile) -> None:
        if not file.schema_arrow.equals(rejected_schema(self.head)):
            self.schema.add_fault(f"{info.name} has other columns than a file of rejected rows")
            return
        self.schema.expect_equal(f"{info.name}: rows", file.metadata.num_rows, info.rows)
        shards = list[pa.Array]()
        for batch in file.iter_batches(BATCH_ROWS, columns=["shard", "reason"]):
            self._reasons.update(batch.column("reason").to_pylist())
            shards.append(batch.column("shard"))
        self._count_shards(info, shards)

    def _count_shards(self, info: FileInfo, shards: list[pa.Array]) -> None:
        """Count the rows of each shard in a file, which must be of the file's segment."""
        listed = self._listed
        if listed is None:
            return
        counted = pc.value_counts(pa.chunked_array(shards, pa.string()))
        names, rows = counted.field("values"), counted.field("counts").to_numpy()
        places = pc.index_in(names, value_set=listed["name"].combine_chunks())
        known = places.is_valid().to_numpy(zero_copy_only=False)
        found = places.drop_null().to_numpy()
        self._of_shards[found] += rows[known]
        elsewhere = listed["segment"].to_numpy()[found] != info.segment
        unknown = [
            *names.filter(pa.array(~known)).to_pylist(),
            *names.filter(pa.array(known)).filter(pa.array(elsewhere)).to_pylist(),
        ]
        for name in unknown[:MAX_EXAMPLES]:
            self.counts.add_fault(f"{info.name} has rows of the shard {name!r:.80}, which is not listed in its segment")

    def _check_schema(self, info: FileInfo, file: pq.ParquetFile) -> bool:
        """Check columns and provenance of a part file; return whether its rows have the columns to be checked."""
        manifest, parts = self.manifest, self.manifest["fingerprint_parts"]
        schema = file.schema_arrow
        columns = self.snapshot.schema()
        if not pa.schema(list(schema)[: len(columns)]).equals(columns):
            self.schema.add_fault(f"{info.name} has columns {', '.join(f'{f.name} {f.type}' for f in schema)}"[:300])
            return False
        kept = kept_fields(schema)
        self._kept = kept if self._kept is None else self._kept
        if not kept.equals(self._kept):
            names = ", ".join(kept.names) or "none"
            self.schema.add_fault(f"{info.name} has other kept fields than the first file: {names}"[:300])
        expected = {
            "fingerprint": manifest["fingerprint"],
            "head": manifest["head"],
            "checkpoint": info.made_by.checkpoint,
            "checkpoint_sha256": info.made_by.checkpoint_sha256,
            "weights": manifest["weights"],
            "tool_version": info.made_by.tool_version,
            "dim": str(manifest["dim"]),
            "snapshot": info.made_by.run,
            **{name: parts[name] for name in (*PROVENANCE_PARTS, *self.head.provenance)},
        }
        metadata = schema.metadata or {}
        for key, value in expected.items():
            stored = metadata.get(key.encode(), b"").decode("utf-8", "replace")
            self.schema.expect_equal(f"{info.name}: {key}", stored, value)
        return True

    def _check_batch(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.num_rows
        self._ids.add(batch.column("id").cast(pa.binary()).to_pylist())
        self._check_vectors(batch)
        self._check_columns(batch)
        if self.head.content.name in batch.schema.names and not self.head.by_reference:
            again = content_hash(batch.column(self.head.content.name))
            differ = pc.not_equal(again, batch.column(CONTENT_HASH.name))
            _add_row_faults(self.hashes, batch, differ, f"has another hash than that of its {self.head.item}")

    def _check_vectors(self, batch: pa.RecordBatch) -> None:
        vectors = vectors_of(batch)  # [n, dim]
        lengths = np.sqrt((vectors * vectors).sum(axis=1))  # [n]
        finite = np.isfinite(lengths)
        _add_row_faults(self.vectors, batch, pa.array(~finite), "has a vector with NaN or infinity")
        _add_row_faults(self.vectors, batch, pa.array(lengths == 0), "has a vector of zeros")
        if not finite.any():
            return
        self._lengths = [min(self._lengths[0], lengths[finite].min()), max(self._lengths[1], lengths[finite].max())]
        parts = self.manifest["fingerprint_parts"]
        if parts["normalize"] == "true":
            far = finite & (lengths > 0) & (np.abs(lengths - 1) > LENGTH_ERROR[parts["stored"]])
            _add_row_faults(
                self.vectors, batch, pa.array(far), "has a vector that is not of length 1, with --normalize"
            )

    def _check_columns(self, batch: pa.RecordBatch) -> None:
        names = [column.name for column in (*self.head.content_columns, *self.head.model_columns)]
        columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}
        if self.head.cut_column:
            self._truncated += int(columns[self.head.cut_column].sum())
        self._contents.update(extent_of(batch, self.head))
        for faulty, what in self._columns.add(columns):
            _add_row_faults(self.sizes, batch, pa.array(faulty), what)
        if self.head.by_reference:
            self._check_sources(batch, columns)

    def _check_sources(self, batch: pa.RecordBatch, columns: Mapping[str, NDArray[Any]]) -> None:
        """Check the column `file`, and that ids and hashes are those of what it names."""
        head, file = cast(MediaHead, self.head), batch.column(self.head.content.name)
        uri, offset, size, kind, checksum = (file.field(field.name) for field in FILE)
        digests = digests_of(checksum)
        known = pc.is_in(kind, value_set=pa.array(sorted(set(head.types.values())), pa.string()))
        for faulty, what in (
            (pc.equal(uri, ""), "names no file"),
            (pc.less(pc.fill_null(size, 0), 1), "has a file without a size"),
            (pc.less(pc.fill_null(offset, 0), 0), "has an offset below 0"),
            (pc.and_(pc.is_valid(kind), pc.invert(known)), f"has a media type that {head.items} do not have"),
            (pa.array([digest is None for digest in digests]), "has a file without a checksum"),
        ):
            _add_row_faults(self.sources, batch, faulty, what)
        places = pa.array([place for place, digest in enumerate(digests) if digest is not None], pa.int64())
        rows = RowIdentity(
            batch.column("id").take(places).to_pylist(),
            batch.column(CONTENT_HASH.name).take(places).to_pylist(),
            [digest for digest in digests if digest is not None],
        )
        numbers = {name: values[places.to_numpy()] for name, values in columns.items()}
        for wrong, what in head.row_faults(rows, numbers, self.manifest["options"]):
            _add_row_faults(self.sources, batch.take(places), pa.array(wrong), what)

    def _check_ids(self) -> None:
        count, examples = self._ids.duplicates(MAX_EXAMPLES)
        self._ids.close()
        self.ids.summary = "each occurs once"
        options = self.manifest["options"]
        may_repeat = options.get("id_field") and not options.get("unique_ids")
        if count and not may_repeat:
            names = (f"{name.decode('utf-8', 'replace')!r:.80} occurs more than once" for name in examples)
            self.ids.add_fault(*names, count=count)
        elif count:
            self.ids.summary = f"{count:,} occur more than once, which the run did not forbid (--unique_ids)"


def _add_row_faults(check: Check, batch: pa.RecordBatch, faulty: pa.Array, what: str) -> None:
    """Add a fault for each row of `batch` for which the boolean array `faulty` is true."""
    places = np.flatnonzero(faulty.to_numpy(zero_copy_only=False))
    if len(places):
        ids = batch.column("id").take(pa.array(places[:MAX_EXAMPLES])).to_pylist()
        check.add_fault(*(f"row {name!r:.80} {what}" for name in ids), count=len(places))
