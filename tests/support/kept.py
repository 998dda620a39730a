"""The kept fields of shards as a run reads and settles them, without Beam."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from audioclip_beam.model.text.head import MAX_TEXT_BYTES, TEXT
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.readers.batch_builder import BatchBuilder
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.infer_schema import infer_kept_types
from audioclip_beam.pipeline.readers.input_files import find_shards, open_shard
from audioclip_beam.pipeline.readers.read_settings import ReadSettings
from audioclip_beam.pipeline.readers.registry import READERS
from audioclip_beam.pipeline.readers.settle_types import apply_types, merge_kinds, settle_types
from audioclip_beam.pipeline.readers.shard import Part


def read_kept(folder: Path, *keep: str) -> pa.Table:
    """Return the rows of all shards in a folder, in order, with the settled types of their kept fields; none is rejected."""
    fields, shards = Fields(keep=keep), find_shards([f"{folder}/*"])
    types = infer_kept_types(shards, TEXT, fields)
    settings = ReadSettings(
        TEXT,
        fields,
        types.schema if types.open else types.final,
        MAX_TEXT_BYTES,
        FileIO(),
        open=frozenset(types.open),
    )
    batches, kinds = list[pa.RecordBatch](), []
    for shard in shards:
        builder = BatchBuilder(Part(shard, shard.bytes), settings)
        with open_shard(shard, settings.file_io) as handle:
            found = [*READERS[shard.format].read(handle, builder), builder.flush()]
        assert sum(rejected.num_rows for _, rejected in found) == 0
        batches += [rows for rows, _ in found]
        kinds.append({kind: f"{shard.path}, row {row}" for kind, row in builder.kinds.items()})
    (settled,) = settle_types(merge_kinds(kinds), fields, types)
    return pa.Table.from_batches([apply_types(batch, settled) for batch in batches])
