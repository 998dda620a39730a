"""A published snapshot, opened for reading: its manifest, and the rows of the part files that the manifest names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from ...model.head import Head
from ...model.heads import find_head
from ..errors import SnapshotError, first_line
from ..io.filesystem import list_folders, read
from ..io.paths import given_path, is_local, join, real_path, scheme_of
from ..io.timeout_reader import open_to_read
from ..layout import POINTER, SNAPSHOTS
from ..schemas import EMBEDDING, part_schema
from .commit import damaged_files, require_current, require_manifest
from .listing import read_file_list, read_shard_list
from .manifest import FileInfo, Manifest, is_run_name
from .run_directory import run_path

BATCH_ROWS = 1024  # in memory at a time: 8 MiB of 1024-vectors in float64

READ_BYTES = 1 << 20  # of a part file at a time

REMEDY = "audioclip validate lists all faults, and audioclip rollback goes back to the snapshot before"

# Errors of reading a damaged Parquet file: its names and metadata may not be UTF-8, and a column may have another name.
UNREADABLE = (OSError, pa.ArrowException, ValueError, LookupError)

_REQUIRED_COLUMNS = ("id", EMBEDDING)


@dataclass(frozen=True)
class Snapshot:
    """A finished run under `output`."""

    output: str
    name: str
    manifest: Manifest = field(repr=False)

    @property
    def path(self) -> str:
        """Return the path of its directory."""
        return run_path(self.output, self.name)

    @property
    def head(self) -> Head:
        """The head that it was embedded with."""
        return find_head(self.manifest["head"])

    @property
    def omitted(self) -> frozenset[str]:
        """The columns that its part files do not have."""
        return self.head.omitted(self.manifest["options"])

    def schema(self, kept: Iterable[pa.Field] = ()) -> pa.Schema:
        """Return the schema of its part files, with these kept fields."""
        stored = self.manifest["fingerprint_parts"]["stored"]
        return part_schema(self.head, self.manifest["dim"], kept, stored=stored, omitted=self.omitted)

    @cached_property
    def files(self) -> list[FileInfo]:
        """Return its files. Raises SnapshotError if their list is missing or damaged."""
        return read_file_list(self.output, self.manifest)

    @cached_property
    def shards(self) -> pa.Table:
        """Return its shards, of LISTED_SCHEMA. Raises SnapshotError if their list is missing or damaged."""
        return read_shard_list(self.output, self.manifest)

    @cached_property
    def damaged(self) -> frozenset[str]:
        """Return the names of its files that are missing, or that a run could not read, as damaged_files does."""
        return frozenset(damaged_files(self.path, self.files))

    def part_paths(self) -> list[str]:
        """Return the paths of its part files."""
        return [join(self.path, file.name) for file in self.files if file.is_part]


def check_not_nested(output: str) -> None:
    """Raise ValueError if `output` is inside of another directory of snapshots, or has one directly below it."""
    start = "" if is_local(output) else f"{scheme_of(output)}://"
    names = real_path(output).removeprefix(start).rstrip("/").split("/")
    for parent in filter(None, ("/".join(names[:end]) for end in range(len(names) - 1, 0, -1))):
        if _has_runs(f"{start}{parent}"):
            raise ValueError(
                f"--output {output} is inside of {start}{parent}, which has snapshots of its own: name a directory outside "
                f"of that"
            )
    below = list[str]()
    with suppress(OSError):  # a run reports it
        below = [join(output, name) for name in list_folders(output) if name != SNAPSHOTS]
    for directory in filter(_has_runs, below):
        raise ValueError(
            f"--output {output} contains {directory}, which has snapshots of its own: name a directory beside that"
        )


def _has_runs(directory: str) -> bool:
    """Return whether a directory is the output of runs; False if that cannot be seen."""
    with suppress(OSError):
        if is_local(directory):
            return any(map(is_run_name, list_folders(join(directory, SNAPSHOTS))))
        return read(join(directory, POINTER)) is not None
    return False


def open_snapshot(output: str) -> Snapshot:
    """Return the current snapshot of `output`; raise SnapshotError if it does not exist or has no valid manifest."""
    output = given_path(output)
    name = require_current(output)
    return Snapshot(output, name, require_manifest(output, name))


def iter_rows(
    snapshot: Snapshot, columns: Sequence[str] | None = None, files: Sequence[FileInfo] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the embedded rows, at most BATCH_ROWS per batch, with those of `columns` that the snapshot has.

    By default these are all columns, and the rows of all `files`.

    Raises:
        SnapshotError: A file is missing, damaged, or not the one that the manifest describes.
    """
    for info in filter(lambda file: file.is_part, snapshot.files if files is None else files):
        path = join(snapshot.path, info.name)
        with open_part(path, REMEDY) as handle:
            file = open_pages(handle)
            if not _is_described(snapshot, info, file):
                raise SnapshotError(f"{path} is not the file that the manifest describes: {REMEDY}")
            names = file.schema_arrow.names
            present = names if columns is None else [name for name in columns if name in names]
            yield from file.iter_batches(BATCH_ROWS, columns=present)


@contextmanager
def open_part(path: str, remedy: str) -> Iterator[IO[bytes]]:
    """Open a part file for the block, whose errors of reading become a SnapshotError that names the file and `remedy`."""
    try:
        with open_to_read(path) as handle:
            yield handle
    except UNREADABLE as error:
        raise SnapshotError(f"{path} cannot be read ({first_line(error)}): {remedy}") from error


def open_pages(handle: IO[bytes]) -> pq.ParquetFile:
    """Return a part file of which few pages at a time are read, and verified: Arrow's default is to read ahead all of it."""
    return pq.ParquetFile(handle, page_checksum_verification=True, buffer_size=READ_BYTES, pre_buffer=False)


def _is_described(snapshot: Snapshot, info: FileInfo, file: pq.ParquetFile) -> bool:
    """Return whether a part file has the fingerprint, the rows, the columns and their types that the manifest says."""
    fingerprint = (file.metadata.metadata or {}).get(b"fingerprint", b"").decode("utf-8", "replace")
    expected, found = ({field.name: field for field in each} for each in (snapshot.schema(), file.schema_arrow))
    return (
        fingerprint == snapshot.manifest["fingerprint"]
        and file.metadata.num_rows == info.rows
        and all(name in found and found[name] == expected[name] for name in _REQUIRED_COLUMNS)
        and all(found[name].type == field.type for name, field in expected.items() if name in found)
    )
