"""What a run keeps of the previous snapshot: files as they are, some of their rows, or their rows in the new segment."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...model.head import Head
from ...model.messages import plural
from ..errors import SnapshotError, first_line
from ..flags import MAX_FILE_ROWS
from ..io.file_io import FileIO
from ..io.paths import join
from ..readers.fields import Fields
from ..readers.infer_schema import KeptTypes, infer_kept_types
from ..readers.settle_types import can_widen
from ..readers.shard_table import SHARD_SCHEMA, ShardTable, unchanged_places
from ..schemas import CONTENT_HASH, PASSING_REASONS
from ..snapshots.listing import DROPPED_SCHEMA, LISTED_SCHEMA, CarriedFile
from ..snapshots.manifest import FileInfo, Lookup, Manifest
from ..snapshots.segments import Remainder, choose_segments
from ..snapshots.snapshot import Snapshot
from ..writers.kept_files import open_kept
from .unchanged import deciding_options

# Bytes per row, for estimates of shards of which no run has read similar ones: of a line or record; of a key
# of a tar, or a record of Parquet, which may contain a picture or name one; and of a file that is one content.
ROW_BYTES, CONTENT_ROW_BYTES, FILE_ROW_BYTES = 100, 10_000, 400_000

COMPRESSION_RATIO = 4

HASH_BYTES = CONTENT_HASH.type.byte_width


@dataclass(frozen=True)
class CarryOver:
    """What a run keeps of the previous snapshot, and what it reads.

    Attributes:
        inputs: All shards, by segment and path, of LISTED_SCHEMA: the rows of those that are read are null.
        new_rows: About how many rows those that are read have.
        files: The files of the previous snapshot with rows that are kept.
        dropped: The shards whose rows in these files are not, of DROPPED_SCHEMA.
        dropped_rows: How many rows these have in these files.
        written: For each segment that is kept how many rows it had when it was made; their numbers come first.
        damaged: How many shards that are not read could not be read to their end.
        notes: What users should know.
    """

    inputs: pa.Table
    new_rows: int
    files: list[CarriedFile] = field(default_factory=list)
    dropped: pa.Table = field(default_factory=DROPPED_SCHEMA.empty_table)
    dropped_rows: int = 0
    written: list[int] = field(default_factory=list)
    damaged: int = 0
    notes: list[str] = field(default_factory=list)

    @cached_property
    def read(self) -> ShardTable:
        """The shards that are read."""
        return ShardTable(self.inputs.filter(pc.is_null(self.inputs["rows"])).select(SHARD_SCHEMA.names))

    @property
    def rows(self) -> int:
        """The rows of the shards that are not read."""
        return pc.sum(self.inputs["rows"]).as_py() or 0


def estimate_rows(shards: pa.Table, head: Head, before: pa.Table | None = None) -> int:
    """Return about how many rows the shards of a table have: as many per byte as those of the same form in `before`."""
    measured = dict[tuple[str, str | None], float]()
    if before is not None:
        for form, compression, size, _, rows in _sizes_by_form(before):
            if size and rows:
                measured[form, compression] = rows / size
    total = 0.0
    for form, compression, size, number, _ in _sizes_by_form(shards):
        if (form, compression) in measured:
            total += size * measured[form, compression]
        elif form == "media":
            total += number + size / FILE_ROW_BYTES
        elif head.by_reference and form in ("tar", "parquet"):
            total += size / CONTENT_ROW_BYTES
        else:
            total += size * (COMPRESSION_RATIO if compression else 1) / ROW_BYTES
    return round(total)


def _sizes_by_form(shards: pa.Table) -> Iterator[tuple[str, str | None, int, int, int | None]]:
    """Yield (format, compression, bytes, number of shards, rows if they are known) for each form of shards."""
    rows = shards["rows"] if "rows" in shards.column_names else pa.nulls(len(shards), pa.int64())
    table = pa.table(
        [shards["format"], shards["compression"], shards["bytes"], rows], ["form", "packing", "bytes", "rows"]
    )
    sums = table.group_by(["form", "packing"]).aggregate([("bytes", "sum"), ("bytes", "count"), ("rows", "sum")])
    columns = ("form", "packing", "bytes_sum", "bytes_count", "rows_sum")
    yield from zip(*(sums[name].to_pylist() for name in columns), strict=True)


def reasons_to_read_all(previous: Manifest, options: Mapping[str, object]) -> list[str]:
    """Return why a run with these options reads every shard, although the model is that of a snapshot."""
    given = [name for name in ("force", "no_dedupe") if options[name]]
    now, before = deciding_options(options), previous["deciding"]
    changed = sorted(name for name in {*now, *before} - {*given} if now.get(name) != before.get(name))
    reasons = [f"--{name} is given" for name in given]
    return [*reasons, f"{', '.join(changed)} changed since {previous['snapshot']}"] if changed else reasons


def decide_carry_over(
    previous: Snapshot | None,
    shards: ShardTable,
    head: Head,
    fields: Fields,
    file_io: FileIO,
    *,
    compare: str,
    retry_rejected: bool = False,
) -> tuple[CarryOver, KeptTypes]:
    """Return what is kept of the snapshot `previous`, and the types of the kept fields.

    Nothing is kept if values of new or changed shards are known to need types that its own cannot become. `compare` and
    `retry_rejected` are the flags of these names.
    """
    if not previous:
        return _read_all(shards, head), infer_kept_types(shards, head, fields, file_io)
    carry_over = _compare(previous, shards, head, compare, retry_rejected=retry_rejected)
    if len(carry_over.read) == len(shards):
        return carry_over, infer_kept_types(shards, head, fields, file_io)
    known = stored_schema(previous.manifest)
    without_values = {name for name, kind in previous.manifest.get("kept", {}).items() if kind == "null"}
    known_values = pa.schema([each.with_type(pa.null()) if each.name in without_values else each for each in known])
    types = infer_kept_types(carry_over.read, head, fields, file_io, known_values)
    if can_widen(known, types.final, without_values):
        return carry_over, replace(types, stored=known)
    note = "every shard is read: new or changed ones give the kept fields types that the current snapshot's cannot get"
    return _read_all(shards, head, note), infer_kept_types(shards, head, fields, file_io)


def stored_schema(manifest: Mapping[str, object]) -> pa.Schema:
    """Return the columns of the kept fields in the part files of a snapshot.

    Raises:
        SnapshotError: The manifest does not have them.
    """
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(str(manifest["kept_schema"]))))
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise SnapshotError(
            f"the manifest of {manifest['snapshot']} does not have the types of the kept fields ({first_line(error)}): "
            f"run again with --force, which reads every shard"
        ) from None


def _read_all(shards: ShardTable, head: Head, *notes: str) -> CarryOver:
    """Return that all shards are read, into one segment."""
    nulls = {
        name: pa.nulls(len(shards), LISTED_SCHEMA.field(name).type) for name in ("rows", "without_texts", "damaged")
    }
    segment = pa.array(np.zeros(len(shards), np.int32))
    rows = estimate_rows(shards.table, head)
    return CarryOver(_listed(shards.table, {"segment": segment, **nulls}), rows, notes=list(notes))


def _listed(shards: pa.Table, more: Mapping[str, pa.Array]) -> pa.Table:
    """Return shards with the other columns of LISTED_SCHEMA, by segment and path."""
    table = pa.table({**dict(zip(shards.column_names, shards.columns, strict=True)), **more}).cast(LISTED_SCHEMA)
    return table.sort_by([("segment", "ascending"), ("path", "ascending")])


def _compare(snapshot: Snapshot, shards: ShardTable, head: Head, compare: str, *, retry_rejected: bool) -> CarryOver:
    """Return what a run with these shards keeps of a snapshot that was made with equal options.

    Raises:
        SnapshotError: A list of that snapshot, or a file of a segment that lacks another, is missing or damaged.
    """
    before, segments = snapshot.shards, snapshot.manifest["segments"]
    places = unchanged_places(shards.table, before, compare)
    kept = np.zeros(len(before), bool)
    kept[places.drop_null().to_numpy()] = True
    lost = snapshot.damaged
    notes = list[str]()
    if retry_rejected:
        kept &= ~_to_retry(snapshot, lost)
    if lost:
        kept &= ~_incomplete(snapshot, lost)
        notes.append(
            f"{plural(len(lost), 'file')} of {snapshot.name} missing, damaged or of another size: the shards with rows in "
            f"{'it' if len(lost) == 1 else 'them'} are read again"
        )
    places = pc.if_else(pa.array(kept).take(places), places, pa.scalar(None, pa.int32()))

    of_segment, rows = before["segment"].to_numpy(), before["rows"].to_numpy()
    left_rows, left_shards = (
        np.bincount(of_segment[kept], weights, len(segments)).astype(np.int64) for weights in (rows[kept], None)
    )
    remainders = [
        Remainder(max(left), segment["written"])
        for *left, segment in zip(left_rows.tolist(), left_shards.tolist(), segments, strict=True)
    ]
    read = shards.table.filter(pc.is_null(places))
    lost_rows = int(rows[~kept].sum())
    new_rows = estimate_rows(read, head, before)
    numbers = choose_segments(remainders, max(new_rows, len(read)), max(lost_rows, int((~kept).sum())))
    moved = np.full(len(segments), len(numbers), np.int32)  # to the new number of each segment
    moved[numbers] = np.arange(len(numbers))

    previous = before.take(places)
    segment = pc.fill_null(pa.array(moved).take(previous["segment"].combine_chunks()), len(numbers))
    columns = {name: previous[name] for name in ("rows", "without_texts", "damaged")}
    alive = np.array([remainder.size > 0 for remainder in remainders], bool)
    is_dropped = pa.array(~kept & alive[of_segment])
    files = [file for file in snapshot.files if alive[file.segment]]
    return CarryOver(
        inputs=_listed(shards.table, {"segment": segment, **columns}),
        new_rows=new_rows,
        files=_group([file for file in files if file.name not in lost], moved, len(numbers)),
        dropped=before.filter(is_dropped).select(DROPPED_SCHEMA.names),
        dropped_rows=int(rows[is_dropped.to_numpy(zero_copy_only=False)].sum())
        - sum(file.rows for file in files if file.name in lost),
        written=[remainders[number].written for number in numbers],
        damaged=len(previous) - previous["damaged"].null_count,
        notes=notes,
    )


def _to_retry(snapshot: Snapshot, lost: Collection[str]) -> NDArray[np.bool_]:
    """Return which shards of a snapshot have rows that were rejected for reasons that may pass, bool [shards]."""
    names = set[str]()
    for file in snapshot.files:
        if file.name not in lost and any(file.rejected_by_reason.get(reason) for reason in PASSING_REASONS):
            table = _read_columns(snapshot, file, ["shard", "reason"])
            passing = table.filter(pc.is_in(table["reason"], value_set=pa.array(PASSING_REASONS)))
            names.update(passing["shard"].to_pylist())
    found: NDArray[np.bool_] = pc.is_in(
        snapshot.shards["name"], value_set=pa.array(sorted(names), pa.string())
    ).to_numpy()
    return found


def _read_columns(snapshot: Snapshot, file: FileInfo, columns: list[str]) -> pa.Table:
    """Return columns of a file of a snapshot. Raises SnapshotError if it cannot be read, as reading_kept does."""
    with open_kept(join(snapshot.path, file.name), FileIO()) as handle:
        return pq.ParquetFile(handle, page_checksum_verification=True).read(columns, use_threads=False)


def _incomplete(snapshot: Snapshot, lost: Collection[str]) -> NDArray[np.bool_]:
    """Return which shards of a snapshot have rows in its lost files, bool [shards], by what the other files have of them."""
    before = snapshot.shards
    incomplete = {file.segment for file in snapshot.files if file.name in lost}
    present = np.zeros(len(before), np.int64)
    for file in snapshot.files:
        if file.segment in incomplete and file.name not in lost:
            counted = pc.value_counts(_read_columns(snapshot, file, ["shard"])["shard"])
            places = pc.index_in(counted.field("values"), value_set=before["name"].combine_chunks())
            found = pc.is_valid(places).to_numpy(zero_copy_only=False)
            np.add.at(present, places.drop_null().to_numpy(), counted.field("counts").to_numpy()[found])
    fewer: NDArray[np.bool_] = present < before["rows"].to_numpy()
    return fewer & np.isin(before["segment"].to_numpy(), list(incomplete))


def _group(files: Sequence[FileInfo], moved: NDArray[np.int32], new: int) -> list[CarriedFile]:
    """Return files with their new segments: each alone if its segment is kept, and those that move to the segment `new`.

    Of these, part files have no group, and rejected ones share groups of about MAX_FILE_ROWS rows.
    """
    carried = list[CarriedFile]()
    group, rows = 0, MAX_FILE_ROWS
    for file in files:
        if file.is_part and moved[file.segment] == new:
            carried.append(CarriedFile(replace(file, segment=new), file.segment, None))
    for file in files:
        if not file.is_part and moved[file.segment] == new:
            group, rows = (group + 1, 0) if rows + file.rows > MAX_FILE_ROWS else (group, rows)
            rows += file.rows
            carried.append(CarriedFile(replace(file, segment=new), file.segment, group))
    for file in files:
        if moved[file.segment] != new:
            group += 1
            carried.append(CarriedFile(replace(file, segment=int(moved[file.segment])), file.segment, group))
    return carried


def files_to_search(carry_over: CarryOver, snapshot: Snapshot, max_bytes: float) -> tuple[list[str], Lookup, list[str]]:
    """Return the part files of `snapshot` in which the contents that are read are looked up, what that reads, and notes.

    Those of segments that lose rows, or move, always are. Looking up contents in another segment reads the hash of each of
    its rows; the smallest come first, for as long as that is at most `max_bytes` in all.
    """
    present = {file.file.name for file in carry_over.files}
    touched = {file.before for file in carry_over.files if file.group is None}
    touched.update(pc.unique(carry_over.dropped["segment"]).to_pylist())
    rows = dict[int, int]()  # of the segments that are kept as they are
    for each in carry_over.files:
        if each.file.is_part and each.before not in touched:
            rows[each.before] = rows.get(each.before, 0) + each.file.rows
    left_out, size, reads = set[int](), 0, len(carry_over.read) > 0
    for number in sorted(rows, key=lambda number: (rows[number], number)):
        size += HASH_BYTES * rows[number]
        if size > max_bytes or not reads:
            left_out.add(number)
    lost = snapshot.damaged
    searched = [
        file
        for file in snapshot.files
        if file.is_part and reads and file.name not in lost and not (file.name in present and file.segment in left_out)
    ]
    found, skipped = sum(file.rows for file in searched), sum(rows[number] for number in left_out)
    lookup: Lookup = {"rows": found, "bytes": HASH_BYTES * found, "left_out": skipped}
    notes = []
    if skipped and reads:
        notes.append(
            f"what is read is not looked up in {plural(skipped, 'row that is', 'rows that are')} carried over: reading "
            f"their hashes, {HASH_BYTES * skipped:,} bytes, would take longer than embedding it again"
        )
    return [join(snapshot.path, file.name) for file in searched], lookup, notes
