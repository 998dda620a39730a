"""A published snapshot, opened to be read: its manifest, and the rows of the part files that the manifest names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from ..errors import SnapshotError
from ..io.timeout_reader import open_to_read
from ..schemas import embedded_schema
from .commit import current_name, read_manifest
from .manifest import FileInfo, Manifest
from .run_directory import run_path

# Rows that are in memory at a time: 8 MiB of 1024-vectors in float64.
BATCH_ROWS = 1024

REMEDY = "audioclip-text validate says what else is wrong, and audioclip-text rollback goes back to the snapshot before"


@dataclass(frozen=True)
class Snapshot:
    """A finished run under `output`."""

    output: str
    name: str
    manifest: Manifest = field(repr=False)

    @property
    def path(self) -> str:
        """Its directory."""
        return run_path(self.output, self.name)

    def files(self, kind: str) -> list[FileInfo]:
        """The manifest's files of a kind, "part" or "rejected"."""
        return [file for file in self.manifest["files"] if file["name"].startswith(f"{kind}-")]


def open_snapshot(output: str) -> Snapshot:
    """The current snapshot of `output`; SnapshotError where there is none, or its manifest is gone."""
    name = current_name(output)
    if name is None:
        raise SnapshotError(f"{output} has no current snapshot: nothing was ever published there (no current.json)")
    manifest = read_manifest(output, name)
    if manifest is None:
        raise SnapshotError(
            f"current.json in {output} names {name}, and there is no manifest in {run_path(output, name)}: go back to "
            f"another snapshot with audioclip-text rollback, or embed again"
        )
    return Snapshot(output, name, manifest)


def iter_rows(snapshot: Snapshot, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All embedded rows, a batch of at most BATCH_ROWS at a time: those of `columns` that the snapshot has.

    Raises SnapshotError where a file is missing, damaged, or of another snapshot than its manifest says.
    """
    for info in snapshot.files("part"):
        path = FileSystems.join(snapshot.path, info["name"])
        try:
            with open_to_read(path) as handle:
                file = pq.ParquetFile(handle, page_checksum_verification=True)
                if not _is_described(snapshot.manifest, info, file):
                    raise SnapshotError(f"{path} is not the file that the manifest describes: {REMEDY}")
                there = [name for name in columns if name in file.schema_arrow.names]
                yield from file.iter_batches(BATCH_ROWS, columns=there)
        except (OSError, pa.ArrowException) as error:
            raise SnapshotError(f"{path} cannot be read ({_first_line(error)}): {REMEDY}") from error


def _is_described(manifest: Manifest, info: FileInfo, file: pq.ParquetFile) -> bool:
    made_by = (file.metadata.metadata or {}).get(b"fingerprint", b"").decode("utf-8", "replace")
    stored = manifest["fingerprint_parts"].get("stored", "float32")
    needed = [
        field for field in embedded_schema(manifest["dim"], pa.schema([]), stored=stored) if field.name in _NEEDED
    ]
    fields = [field for field in file.schema_arrow if field.name in _NEEDED]
    return made_by == manifest["fingerprint"] and file.metadata.num_rows == info["rows"] and fields == needed


_NEEDED = ("id", "embedding")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
