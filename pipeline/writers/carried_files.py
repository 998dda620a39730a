"""Files of the previous snapshot whose segments did not change become files of the new one, unread."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pyarrow as pa

from ..errors import SnapshotError, convert_write_errors
from ..io.filesystem import copy_file
from ..io.paths import join
from ..layout import PART, parquet_name
from ..readers.settle_types import SettledTypes, apply_types
from ..snapshots.manifest import FileInfo
from ..snapshots.snapshot import open_pages, open_part
from .parquet_file import ParquetFileWriter, part_options


@dataclass(frozen=True)
class CarriedFile:
    """A file of the previous snapshot that is a file of the new one, too."""

    file: FileInfo


def copy_from_snapshot(
    file: FileInfo, previous: str, directory: str, encoding: str = "plain", types: SettledTypes | None = None
) -> CarriedFile:
    """Link or copy a file of a snapshot, or write its rows again if their kept fields have other types now.

    Args:
        file: The file.
        previous: The directory of the snapshot.
        directory: The run directory.
        encoding: That of the vectors, as --vector_encoding names it.
        types: The types of the kept fields, if they were not known before the run.

    Raises:
        SnapshotError: The file cannot be carried over.
    """
    if types is not None and types.widened and file.is_part:
        return CarriedFile(_write_again(file, join(previous, file.name), directory, encoding, types))
    try:
        copy_file(join(previous, file.name), join(directory, file.name), file.bytes, file.sha256)
    except OSError as error:
        raise SnapshotError(
            f"{file.name} cannot be carried over from {previous} ({error.strerror or error}): run again, with --force if "
            f"it fails again; then every shard is read"
        ) from error
    return CarriedFile(file)


def _write_again(file: FileInfo, path: str, directory: str, encoding: str, types: SettledTypes) -> FileInfo:
    """Write the rows of a part file with the types of their kept fields, in the same row groups; return the new file."""
    remedy = "run again, with --force if it fails again; then every shard is read"
    with open_part(path, remedy) as handle:
        source = open_pages(handle)
        old = source.schema_arrow
        no_rows = pa.RecordBatch.from_arrays([pa.nulls(0, column.type) for column in old], schema=old)
        schema, name = apply_types(no_rows, types).schema, parquet_name(PART, uuid.uuid4().hex[:16])
        with convert_write_errors(directory):
            writer = ParquetFileWriter(directory, name, schema, part_options(schema, encoding), file.segment)
        try:
            for number in range(source.num_row_groups):
                table = source.read_row_group(number, use_threads=False)
                rows = [apply_types(batch, types) for batch in table.combine_chunks().to_batches()]
                with convert_write_errors(directory):
                    for batch in rows:
                        writer.add(batch)
                    writer.flush()
            with convert_write_errors(directory):
                return writer.finish()
        except BaseException:
            writer.discard()
            raise
