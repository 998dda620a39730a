"""Small corpora on disk, runs over them, and their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audioclip_beam.model.text.head import CANARY_TEXTS
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.listing import read_file_list
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from audioclip_beam.pipeline.snapshots.run_directory import run_path
from tests.support.stub import ENCODERS, StubHead


def write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def embed(
    source: Path | str | Sequence[str], output: Path, head: StubHead | None = None, **options: object
) -> tuple[Manifest, list[str]]:
    """Run over `source` (one glob, or several) with the stub model; return the manifest and the texts that were embedded."""
    head = head or StubHead()
    encoder = head.encoder()
    encoder.calls.clear()
    inputs = [str(source)] if isinstance(source, Path | str) else list(source)
    chosen = EmbedOptions(input=inputs, output=str(output), **options)
    with closing(EmbedCorpus(chosen, head)) as corpus:
        run(corpus, chosen)
    manifest = read_manifest(str(output), str(corpus.snapshot))
    assert manifest is not None
    return manifest, [text for call in encoder.calls if call != list(CANARY_TEXTS) for text in call]


def read(output: Path, kind: str = "part", columns: list[str] | None = None) -> pa.Table:
    """Return all rows of the current snapshot, by id, from the files that the manifest names; all columns, or some."""
    name = current_name(str(output))
    manifest = read_manifest(str(output), str(name))
    assert manifest is not None
    files = [file.name for file in read_file_list(str(output), manifest) if file.name.startswith(kind)]
    tables = [pq.read_table(Path(run_path(str(output), str(name))) / file, columns=columns) for file in files]
    return pa.concat_tables(tables).sort_by("id") if tables else pa.table({"id": pa.array([], pa.string())})


def vectors(table: pa.Table) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    column = table["embedding"].combine_chunks()
    return column.values.to_numpy(zero_copy_only=False).reshape(len(table), -1)


__all__ = ["ENCODERS", "StubHead", "embed", "read", "vectors", "write_jsonl"]
