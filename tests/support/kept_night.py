"""A night whose files are linked, copied without some rows, and merged, over three nights before it."""

from __future__ import annotations

from pathlib import Path

from tests.support.corpus import embed, write_jsonl

OPTIONS = {"id_field": "id", "max_file_rows": 5, "unique_ids": True}
NEW = ["text 0 of e", "text 1 of e"]


def write_shard(folder: Path, name: str, rows: int, padding: int = 0) -> None:
    """Write a shard whose last row is rejected."""
    good = [{"id": f"{name}{row}", "text": f"text {row} of {name}", "more": "x" * padding} for row in range(rows)]
    write_jsonl(folder / "in" / f"{name}.jsonl", [*good, {"id": f"bad {name}", "text": ""}])


def prepare_night(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Embed folder/in into folder/out three times, then change the corpus; return {id: text} of before and after."""
    rows = dict[str, str]()
    for shards in ({"a": 12, "b": 12}, {"c": 10}, {"d": 3}):
        for name, number in shards.items():
            write_shard(folder, name, number)
            rows |= {f"{name}{row}": f"text {row} of {name}" for row in range(number)}
        embed(folder / "in" / "*.jsonl", folder / "out", **OPTIONS)
    (folder / "in" / "b.jsonl").unlink()
    write_shard(folder, "e", 2, padding=350)  # as many bytes as let the run merge the segment of d, and no other
    kept = {name: text for name, text in rows.items() if not name.startswith("b")}
    return rows, kept | {f"e{row}": text for row, text in enumerate(NEW)}
