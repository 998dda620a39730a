"""Snapshots without a model: any vectors, and any damage, as files on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from audioclip_beam.model.fingerprint import SCHEME, fingerprint
from audioclip_beam.model.head import Work
from audioclip_beam.model.text.head import CANARY_TEXTS, TEXT
from audioclip_beam.pipeline.canary import make_canary
from audioclip_beam.pipeline.embedded_batch import EmbeddedBatch
from audioclip_beam.pipeline.schemas import part_schema
from audioclip_beam.pipeline.snapshots.commit import publish
from audioclip_beam.pipeline.snapshots.listing import LISTED_SCHEMA, read_file_list, write_file_list, write_shard_list
from audioclip_beam.pipeline.snapshots.manifest import FORMAT, FileInfo, Manifest, Provenance
from audioclip_beam.pipeline.snapshots.run_directory import run_path
from audioclip_beam.pipeline.snapshots.segments import Segment, add_rows
from audioclip_beam.pipeline.writers.write_files import WriteFiles

PARTS = {"scheme": SCHEME, "weights": "w", "head": "text", "vocabulary": "v", "prompt": "{}", "on_long": "truncate"}
PARTS |= {"normalize": "false", **TEXT.versions()}


SHARD = {"path": b"/a.jsonl", "name": "a.jsonl", "format": "jsonl", "bytes": 0, "version": "1"}


def batch_of(ids: list[str], texts: list[str], vectors: NDArray[np.floating]) -> pa.RecordBatch:
    """Return embedded rows; the vectors are stored in their own type."""
    schema = part_schema(TEXT, vectors.shape[1], pa.schema([]), stored=str(vectors.dtype))
    hashes = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    numbers = pa.array(np.ascontiguousarray(vectors).ravel())
    columns = [
        pa.array(ids, pa.string()),
        pa.array(hashes, pa.binary(16)),
        pa.array(["a.jsonl"] * len(ids), pa.string()),
        pa.array(texts, pa.string()),
        pa.array([len(text.split()) + 2 for text in texts], pa.int16()),
        pa.array([False] * len(texts)),
        pa.FixedSizeListArray.from_arrays(numbers, type=schema.field("embedding").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def random_batches(rows: int, dim: int, seed: int = 0, stored: str = "float32") -> Iterator[pa.RecordBatch]:
    """Yield `rows` rows of seeded normal vectors, 4,096 at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, rows, 4096):
        numbers = range(start, min(rows, start + 4096))
        vectors = random.standard_normal((len(numbers), dim), np.float32).astype(stored)
        yield batch_of([f"row {n}" for n in numbers], [f"text number {n}" for n in numbers], vectors)


def write_snapshot(
    output: Path,
    batches: Iterable[pa.RecordBatch],
    dim: int,
    *,
    stored: str = "float32",
    dtype: str = "float32",
    normalize: str = "false",
    max_rows: int = 32768,
    encoding: str = "plain",
) -> Manifest:
    """Write and publish a snapshot of these batches with the project's own writer."""
    parts = {**PARTS, "dtype": dtype, "stored": stored, "normalize": normalize}
    name = f"20260101T000000Z-{fingerprint(parts)[:8]}"
    metadata = {
        "fingerprint": fingerprint(parts),
        "head": "text",
        "checkpoint": "made.pt",
        "checkpoint_sha256": "0" * 64,
    }
    metadata |= {"weights": "trained", "tool_version": "0", "dim": str(dim), "snapshot": name}
    metadata |= {key: parts[key] for key in ("dtype", "normalize", "prompt", "on_long")}
    schema = part_schema(TEXT, dim, pa.schema([]), stored=stored).with_metadata(metadata)
    Path(run_path(str(output), name)).mkdir(parents=True)
    write = WriteFiles(run_path(str(output), name), TEXT, schema, max_rows, encoding=encoding)
    write.setup()
    write.start_bundle()
    written = [one for batch in batches for one in write.process(EmbeddedBatch(batch))]
    written += [windowed.value for windowed in write.finish_bundle()]
    files = [one.file for one in written if one.file is not None]
    rows = sum(info.rows for info in files)
    totals = add_rows([])
    totals["read"] = totals["vectors"] = rows
    segment: Segment = {"shards": 1, "bytes": 0, "damaged": 0, "written": rows, "rows": totals}
    shard = {**SHARD, "segment": 0, "rows": rows, "without_texts": 0}
    made_by = Provenance(name, "made.pt", "0" * 64, "0")
    files = [replace(file, made_by=made_by) for file in files]
    counts = {"read": rows, "embedded": rows, "reused": 0, "rejected": 0, "truncated": 0, "rejected_by_reason": {}}
    counts["model"] = Work(rows, rows).counts()
    manifest: Manifest = {
        "format": FORMAT,
        "snapshot": name,
        "created": "2026-01-01T00:00:00+00:00",
        "tool_version": "0",
        "head": "text",
        "fingerprint": metadata["fingerprint"],
        "fingerprint_parts": parts,
        "weights": "trained",
        "checkpoint": {"name": "made.pt", "sha256": "0" * 64},
        "dim": dim,
        "limit": 77,
        "options": {"checkpoint": "gone/made.pt"},
        "deciding": {},
        "counts": counts,  # type: ignore[typeddict-item]
        "lookup": {"rows": 0, "bytes": 0, "left_out": 0},
        "totals": totals,
        "segments": [segment],
        "sizes": {},
        "norm_bins": {},
        "seconds": {"total": 1.0},
        "files": write_file_list(run_path(str(output), name), files),
        "shards": write_shard_list(run_path(str(output), name), pa.Table.from_pylist([shard], LISTED_SCHEMA)),
        "model_files": [],
        "canary": make_canary(list(CANARY_TEXTS), np.ones((len(CANARY_TEXTS), dim))),
        "previous": None,
        "notes": [],
    }
    publish(str(output), manifest)
    return manifest


def directory_of(output: Path) -> Path:
    """Return the directory of the current snapshot."""
    return Path(run_path(str(output), json.loads((output / "current.json").read_text())["snapshot"]))


def edit_manifest(output: Path, change: Callable[[Manifest], object]) -> None:
    """Change the current manifest in place, as with an editor."""
    path = directory_of(output) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def files_of(output: Path | str, manifest: Manifest) -> list[FileInfo]:
    """Return the files of a snapshot."""
    return read_file_list(str(output), manifest)


def edit_files(output: Path, change: Callable[[list[FileInfo]], list[FileInfo]]) -> None:
    """Change the list of files of the current snapshot, and let the manifest describe the changed list."""
    directory = directory_of(output)
    manifest = json.loads((directory / "manifest.json").read_text())
    files = change(read_file_list(str(output), manifest))
    (directory / manifest["files"]["name"]).unlink()
    edit_manifest(output, lambda edited: edited.update(files=write_file_list(str(directory), files)))


def rewrite(
    output: Path, change: Callable[[pa.Table], pa.Table], *, sign: bool = True, count: bool = True, kind: str = "part"
) -> None:
    """Change the rows of the first file of a kind, part or rejected.

    With `sign` the list of files describes the changed file, except its number of rows without `count`.
    """
    directory = directory_of(output)
    files = read_file_list(str(output), json.loads((directory / "manifest.json").read_text()))
    info = next(file for file in files if file.name.startswith(kind))
    path = directory / info.name
    table = change(pq.read_table(path)).combine_chunks()
    pq.write_table(table, path, use_dictionary=False, row_group_size=1 << 20)
    if sign:
        data = path.read_bytes()
        hashes = table["content_hash"] if "content_hash" in table.column_names and len(table) else None
        lowest = pc.min(hashes).as_py().hex() if hashes is not None else info.lowest_hash
        digest, rows = hashlib.sha256(data).hexdigest(), len(table) if count else info.rows
        signed = replace(info, rows=rows, bytes=len(data), sha256=digest, lowest_hash=lowest)
        edit_files(output, lambda files: [signed if file.name == info.name else file for file in files])
