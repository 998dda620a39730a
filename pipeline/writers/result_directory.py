"""Directories of results, as `changes` and `search` write them with --output: new ones, local ones whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa

from ..errors import WRITE_REMEDY, convert_write_errors
from ..io.filesystem import list_directory, temporary_name, write_atomically
from ..io.paths import check_directory, given_path, is_local, join, real_path
from ..layout import SNAPSHOTS
from .parquet_file import ParquetFileWriter

RESULT_OPTIONS: dict[str, object] = {"compression": "zstd"}


def check_new_directory(target: str, *outputs: str) -> str:
    """Return the path of a new or empty directory of results, as given_path does.

    Raises ValueError if none can be written to `target`, or if it is among the snapshots of `outputs`.
    """
    target = given_path(target)
    path = real_path(target)
    for output in map(given_path, outputs):
        if f"{path}/".startswith(f"{real_path(join(output, SNAPSHOTS))}/"):
            raise ValueError(f"--output {target} is among the snapshots of {output}: name a directory outside of them")
    check_directory(target)
    if not is_local(target):
        empty = not list_directory(target, recursive=True)
    else:
        empty = not os.path.isdir(path) or not os.listdir(path)
    if not empty:
        raise ValueError(f"--output {target} is not empty: name a new directory")
    if os.path.ismount(path) or (os.path.isdir(path) and os.path.samefile(path, os.curdir)):
        raise ValueError(
            f"--output {target} is the current directory or a mount point, which cannot be replaced by the finished "
            f"directory: name a new directory in it"
        )
    return target


@contextmanager
def new_directory(target: str) -> Iterator[str]:
    """Yield the directory to write into: for a local `target` a temporary one, which is renamed at the end of the block."""
    path = real_path(target)  # a link stays one
    directory = temporary_name(path) if is_local(target) else target
    try:
        with convert_write_errors(target, WRITE_REMEDY):
            yield directory
            if is_local(target):
                os.makedirs(directory, exist_ok=True)
                os.replace(directory, path)
    finally:
        if is_local(target):
            shutil.rmtree(directory, ignore_errors=True)


def write_summary(directory: str, name: str, summary: Mapping[str, object]) -> None:
    """Write the JSON file that is the last one of a directory of results."""
    data = json.dumps(summary, indent=1).encode()
    if is_local(directory):
        os.makedirs(directory, exist_ok=True)
    write_atomically(join(directory, name), data, "application/json", sync=True)


def write_rows(
    directory: str,
    kind: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    file_rows: int = 1 << 20,
    options: dict[str, object] = RESULT_OPTIONS,
) -> Iterator[str]:
    """Write rows into Parquet files, at least into one, and yield their names.

    Args:
        directory: Where they are written.
        kind: What their names begin with.
        schema: That of the rows.
        batches: The rows.
        file_rows: The rows after which another file begins.
        options: Those of pyarrow for the files.
    """
    writer, number = ParquetFileWriter(directory, f"{kind}-00000.parquet", schema, options), 0
    try:
        for batch in batches:
            if writer.rows >= file_rows:
                yield writer.finish().name
                number += 1
                writer = ParquetFileWriter(directory, f"{kind}-{number:05}.parquet", schema, options)
            writer.add(batch)
    except BaseException:
        writer.discard()
        raise
    yield writer.finish().name
