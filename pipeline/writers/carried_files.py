"""Files of the previous snapshot whose segments did not change become files of the new one, unread."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SnapshotError
from ..io.filesystem import copy_file
from ..io.paths import join
from ..snapshots.manifest import FileInfo


@dataclass(frozen=True)
class CarriedFile:
    """A file of the previous snapshot that is a file of the new one, too."""

    file: FileInfo


def copy_from_snapshot(file: FileInfo, previous: str, directory: str) -> CarriedFile:
    """Link or copy a file of the snapshot in the directory `previous` into `directory`.

    Raises SnapshotError if it cannot be carried over.
    """
    try:
        copy_file(join(previous, file.name), join(directory, file.name), file.bytes, file.sha256)
    except OSError as error:
        raise SnapshotError(
            f"{file.name} cannot be carried over from {previous} ({error.strerror or error}): run again, with --force if "
            f"it fails again; then every shard is read"
        ) from error
    return CarriedFile(file)
