"""find_changes: the ids that were added, changed and removed between two snapshots, with the rows of the first two.

Files that both snapshots have, because their segment was carried over, are not read: the cost is that of the segments that
differ. Only if ids may repeat (--id_field without --unique_ids) the ids of the other files are read as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..canary import canaries_agree
from ..errors import SnapshotError, convert_temporary_errors
from ..io.paths import given_path
from ..schemas import CONTENT_HASH, content_fields, kept_fields
from ..snapshots.commit import read_manifest, require_current, require_manifest
from ..snapshots.manifest import FileInfo, Manifest, is_run_name
from ..snapshots.snapshot import BATCH_ROWS, Snapshot, iter_rows
from ..writers.parquet_file import part_options
from ..writers.result_directory import check_new_directory, new_directory, write_rows, write_summary
from .compare_rows import SplitById, bits_for, match_rows, require_unique

ADDED, CHANGED = 1, 2
FILE_ROWS = 131_072
SUMMARY = "changes.json"
_IDS = pa.schema([pa.field("id", pa.string(), nullable=False)])


@dataclass(frozen=True)
class Changes:
    """Numbers of ids that differ between the snapshots `before` (None: from nothing) and `now`, and the files with them."""

    before: str | None
    now: str
    added: int
    changed: int
    removed: int
    files: list[str] = field(default_factory=list)


def find_changes(
    output: str, before: str | None = None, now: str | None = None, *, target: str | None = None
) -> Changes:
    """Compare two snapshots of `output`: by default the current one with the one that was current when its run started.

    A row is changed if its content, the file of that or a kept field differs; every row is if fingerprint, canary or columns
    differ.
    With `target`, a new or empty directory, the rows are written there: added-*.parquet and changed-*.parquet with the
    columns of part files, removed-*.parquet with ids, at least one file of each, and then changes.json, which contains the
    result.

    Raises:
        SnapshotError: A snapshot does not exist or is damaged, or an id occurs more than once in one.
        ValueError: `target` is not a new or empty directory, or is among the snapshots of `output`.
    """
    output = given_path(output)
    if target is not None:
        target = check_new_directory(target, output)
    newer = _open(output, now or require_current(output))
    older = _open(output, before) if before else _open_previous(output, newer)
    with tempfile.TemporaryDirectory(prefix="audioclip-beam-") as scratch:
        comparison = _Comparison(older, newer)
        with convert_temporary_errors(OSError):  # those of reading a snapshot name its files already
            kinds, removed = comparison.compare(Path(scratch))
        changes = Changes(
            before=older.name if older else None,
            now=newer.name,
            added=int((kinds == ADDED).sum()),
            changed=int((kinds == CHANGED).sum()),
            removed=len(removed),
        )
        if target is None:
            return changes
        return _write(target, changes, comparison, kinds, removed)


def _open(output: str, name: str) -> Snapshot:
    return Snapshot(output, name, require_manifest(output, name))


def _open_previous(output: str, newer: Snapshot) -> Snapshot | None:
    """Return the snapshot that `newer` followed, or None if it is the first one; SnapshotError if it is gone."""
    name = newer.manifest["previous"]
    if name is None:
        return None
    manifest = read_manifest(output, name) if is_run_name(name) else None
    if manifest is None:
        raise SnapshotError(
            f"{output} has no snapshot {name} any more, which {newer.name} followed: name another one with --from; "
            f"audioclip log {output} lists them"
        )
    return Snapshot(output, name, manifest)


class _Comparison:
    """The part files in which two snapshots differ, and those that both have."""

    def __init__(self, older: Snapshot | None, newer: Snapshot) -> None:
        self.older, self.newer = older, newer
        before, now = (
            {file.name: file for file in snapshot.files if file.is_part} if snapshot else {}
            for snapshot in (older, newer)
        )
        shared = {name for name, file in now.items() if name in before and before[name].sha256 == file.sha256}
        self.shared = [now[name] for name in shared]
        self.before = [file for name, file in before.items() if name not in shared]
        self.now = [file for name, file in now.items() if name not in shared]
        self.kept = self._kept_fields()

    def _kept_fields(self) -> list[str] | None:
        """Return the columns that show, beside the content, whether a row changed; None if every row did.

        That is so if the vectors are those of another fingerprint or of an encoder that gave other ones (--force), or if
        there are other columns.
        """
        if self.older is None or not _same_model(self.older.manifest, self.newer.manifest):
            return None
        before, now = _schema(self.older, self.before), _schema(self.newer, self.now)
        if before is None or now is None:
            return []  # no row can have changed
        contents = [each.name for each in content_fields(self.newer.head)] if self.newer.head.by_reference else []
        return [*contents, *kept_fields(now).names] if now.equals(before) else None

    def schema(self) -> pa.Schema:
        """Return the schema of added and changed rows: of the newer snapshot, or of the older one if that has no rows."""
        for snapshot in (self.newer, self.older):
            schema = _schema(snapshot) if snapshot else None
            if schema is not None:
                return schema
        return self.newer.schema()

    def compare(self, scratch: Path) -> tuple[NDArray[np.int8], pa.ChunkedArray]:
        """Return ADDED, CHANGED or 0 for each row of the newer snapshot's own files, in order, and the removed ids."""
        other_files = self._shared_to_check()
        rows = [sum(file.rows for file in files) for files in (self.before, self.now, other_files)]
        bits = bits_for(max(rows))
        kinds, removed = np.zeros(rows[1], np.int8), list[pa.Array]()
        older = self._split(self.older, self.before, scratch / "before", bits)
        newer = self._split(self.newer, self.now, scratch / "now", bits)
        with SplitById(scratch / "shared", bits) as elsewhere:
            for batch in iter_rows(self.newer, ["id"], other_files):
                elsewhere.add(batch)
        for before, now, shared in zip(older, newer, elsewhere, strict=True):
            for snapshot, table in ((self.older, before), (self.newer, now)):
                if snapshot:
                    require_unique(snapshot.name, table["id"], shared["id"])
            added, changed, missing = match_rows(before, now)
            place = now["place"].to_numpy()
            kinds[place[added]] = ADDED
            kinds[place[~added if self.kept is None else changed]] = CHANGED
            removed.append(missing)
        return kinds, pa.chunked_array(removed, pa.string())

    def _shared_to_check(self) -> list[FileInfo]:
        """Return the shared files whose ids may also be in other ones."""
        snapshots = [snapshot for snapshot in (self.older, self.newer) if snapshot and (self.before or self.now)]
        options = [snapshot.manifest["options"] for snapshot in snapshots]
        return self.shared if any(one.get("id_field") and not one.get("unique_ids") for one in options) else []

    def _split(self, snapshot: Snapshot | None, files: Sequence[FileInfo], path: Path, bits: int) -> SplitById:
        """Write what is compared of these files into buckets; `place` is the number of a row among all rows of the files."""
        columns, split, place = ["id", CONTENT_HASH.name, *(self.kept or [])], SplitById(path, bits), 0
        # Kept fields may have any name, also "place": here they are numbered.
        names = ["id", CONTENT_HASH.name, *map(str, range(len(columns) - 2)), "place"]
        with split:
            for batch in iter_rows(snapshot, columns, files) if snapshot else ():
                places = pa.array(np.arange(place, place + batch.num_rows))
                split.add(pa.RecordBatch.from_arrays([*map(batch.column, columns), places], names))
                place += batch.num_rows
        return split


def _same_model(before: Manifest, now: Manifest) -> bool:
    """Return whether the vectors of two snapshots can be compared: by their fingerprints and their canaries."""
    same = before["fingerprint"] == now["fingerprint"]
    return same and canaries_agree(now["canary"], before["canary"], now["fingerprint_parts"].get("dtype", "float32"))


def _write(
    target: str, changes: Changes, comparison: _Comparison, kinds: NDArray[np.int8], removed: pa.ChunkedArray
) -> Changes:
    """Write the rows and the summary into `target`, a local directory whole or not at all."""
    with new_directory(target) as directory:
        schema = comparison.schema()
        files = [
            *write_rows(
                directory, "removed", _IDS, pa.table({"id": removed}, _IDS).to_batches(BATCH_ROWS), file_rows=FILE_ROWS
            )
        ]
        options = part_options(schema, "plain")
        for kind, name in ((ADDED, "added"), (CHANGED, "changed")):
            rows = _rows(comparison, kinds == kind)
            files += write_rows(directory, name, schema, rows, file_rows=FILE_ROWS, options=options)
        changes = replace(changes, files=files)
        write_summary(directory, SUMMARY, asdict(changes))
    return changes


def _rows(comparison: _Comparison, chosen: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the newer snapshot's own files that are chosen."""
    place = 0
    for file in comparison.now:
        if chosen[place : place + file.rows].any():
            first = place
            for batch in iter_rows(comparison.newer, files=[file]):
                yield batch.filter(pa.array(chosen[first : first + batch.num_rows]))
                first += batch.num_rows
        place += file.rows


def _schema(snapshot: Snapshot, files: Sequence[FileInfo] | None = None) -> pa.Schema | None:
    """Return the schema of the part files of a snapshot, or of some of them; None if these have no rows."""
    batch = next(iter_rows(snapshot, files=files), None)
    return batch and batch.schema
