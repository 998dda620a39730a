"""A sample of a snapshot's rows, read back from its part files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from ..io.timeout_reader import open_to_read

SAMPLE = 256

SAMPLE_GROUPS = 4  # row groups that are read for the sample


def sample(directory: str, files: Sequence[Mapping[str, object]]) -> pa.Table:
    """Up to SAMPLE rows of part files with the lowest text hashes: columns id, text (null where left out), embedding.

    `files` are those of a manifest. Files are written bucket by bucket, so the lowest hashes lie in few row groups; of
    files in another order (--no_dedupe) it is the lowest of those few.
    """
    groups = []
    for file in files:
        if str(file["name"]).startswith("part-"):
            for number, group in enumerate(file["row_groups"]):  # type: ignore[arg-type, var-annotated]
                lowest = min((low for low, _ in group["ranges"]), default=0)
                groups.append((lowest, str(file["name"]), number))
    tables = [
        _row_group(FileSystems.join(directory, name), number) for _, name, number in sorted(groups)[:SAMPLE_GROUPS]
    ]
    if not tables:
        return pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string()), "embedding": []})
    table = pa.concat_tables(tables).sort_by("text_hash").slice(0, SAMPLE)
    return table.select(["id", "text", "embedding"])


def _row_group(path: str, number: int) -> pa.Table:
    with open_to_read(path) as handle:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        there = [name for name in ("id", "text", "text_hash", "embedding") if name in file.schema_arrow.names]
        table = file.read_row_group(number, columns=there, use_threads=False)
    if "text" not in there:
        table = table.append_column("text", pa.nulls(len(table), pa.string()))
    return table.cast(pa.schema([field.remove_metadata() for field in table.schema]))
