"""CarryOverFiles: files of the previous snapshot whose segments did not change become files of the new one, unread."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam

from ..errors import SnapshotError
from ..io.file_io import FileIO
from ..io.filesystem import copy_file, join
from ..snapshots.listing import CARRIED
from ..snapshots.manifest import FileInfo
from ..snapshots.read_listing import ReadListing


@dataclass(frozen=True)
class CarriedFile:
    """A file of the previous snapshot that is a file of the new one, too."""

    file: FileInfo


class CarryOverFiles(beam.PTransform):  # type: ignore[misc]
    """The files that the listing CARRIED in `directory` names, linked or copied there from `previous`, as CarriedFiles."""

    def __init__(self, previous: str, directory: str, file_io: FileIO) -> None:
        super().__init__()
        self.previous, self.directory, self.file_io = previous, directory, file_io

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Read the listing, and carry the files over."""
        files = pbegin | "ListCarriedFiles" >> ReadListing(self.directory, CARRIED, self.file_io)
        return files | "LinkOrCopy" >> beam.Map(_carry_over, self.previous, self.directory)


def _carry_over(file: FileInfo, previous: str, directory: str) -> CarriedFile:
    """Raises SnapshotError if the file cannot be carried over."""
    try:
        copy_file(join(previous, file.name), join(directory, file.name), file.bytes, file.sha256)
    except OSError as error:
        raise SnapshotError(
            f"{file.name} cannot be carried over from {previous} ({error.strerror or error}): run again, with --force if "
            f"it fails again; then every shard is read"
        ) from error
    return CarriedFile(file)
