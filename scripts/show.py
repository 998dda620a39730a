"""Show a snapshot with pyarrow: its counts, a few rows, and the rejected rows with their reasons.

python scripts/show.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from audioclip_beam.pipeline.terminal import printable


def show(output: Path) -> None:
    """Print the current snapshot of `output`."""
    pointer = json.loads((output / "current.json").read_text(encoding="utf-8"))
    manifest = json.loads((output / pointer["manifest"]).read_text(encoding="utf-8"))
    snapshot = output / "snapshots" / pointer["snapshot"]
    names = ("read", "embedded", "reused", "rejected", "truncated")
    counts = ", ".join(f"{manifest['counts'][name]} {name}" for name in names)
    print(f"{snapshot}\n  weights {manifest['weights']}; {counts}\n")

    rows = pq.read_table(sorted(snapshot.glob("part-*.parquet")))
    print(f"{rows.num_rows} rows, here the first of each shard; embedding: {rows.schema.field('embedding').type}")
    print(f"  {'id':<20} {'n_tokens':>8}  {'embedding':<28} text")
    shown = set()
    for row in rows.sort_by("id").select(["id", "shard", "n_tokens", "embedding", "text"]).to_pylist():
        if row["shard"] not in shown:
            shown.add(row["shard"])
            numbers = ", ".join(f"{number:+.3f}" for number in row["embedding"][:3])
            print(f"  {printable(row['id']):<20} {row['n_tokens']:>8}  [{numbers}, ...]  {printable(row['text'], 200)}")

    print("\nrejected rows")
    for path in sorted(snapshot.glob("rejected-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            line = f"{row['shard']}, row {row['row']}: {row['reason']} ({row['detail']})"
            print(f"  {printable(line, 200)}")


if __name__ == "__main__":
    show(Path(sys.argv[1]))
