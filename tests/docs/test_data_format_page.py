"""docs/data-format.md: its tables name the columns, keys and reasons that the code writes."""

from __future__ import annotations

import re
from typing import get_type_hints

import pyarrow as pa

from audioclip_beam.model.heads import HEADS, find_head
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.schemas import part_schema, reasons_of
from audioclip_beam.pipeline.snapshots.manifest import FORMAT, Counts, Manifest
from tests.support.pages import read_page, sections
from tests.support.shards import REJECTED

SECTIONS = sections(read_page("docs/data-format.md"))


def first_column(section: str) -> list[str]:
    """Return the names in the first column of a section's table."""
    return re.findall(r"^\| `([^`]+)` \|", SECTIONS[section], re.MULTILINE)


def test_columns_of_part_files() -> None:
    """Compare the table with the schema of part files, names and types."""
    schema = part_schema(TEXT, 1024, pa.schema([]))
    types = re.findall(r"^\| `\w+` \| ([^|]+) \|", SECTIONS["Part files"], re.MULTILINE)
    assert first_column("Part files") == schema.names
    assert types == [str(field.type) for field in schema]


def test_columns_and_reasons_of_rejected_rows() -> None:
    """Compare the columns with the schema, and the table with the reasons."""
    assert all(f"`{name}`" in SECTIONS["Rejected rows"] for name in REJECTED.names)
    reasons = dict.fromkeys(reason for name in HEADS for reason in reasons_of(find_head(name)))
    assert set(first_column("Rejected rows")) == set(reasons)


def test_columns_of_sounds_and_pictures() -> None:
    """Each column that only these heads have is in the table, with its type and heads."""
    rows = re.findall(
        r"^\| (`[^|]+`) \| (\w+) \| ([^|]+) \|", SECTIONS["Part files of sounds and pictures"], re.MULTILINE
    )
    named = {
        (name, kind, head) for names, kind, heads in rows for name in names.split(", ") for head in heads.split(", ")
    }
    common = set(part_schema(TEXT, 1024).names)
    expected = {
        (f"`{field.name}`", str(field.type).partition("<")[0], name)
        for name in ("audio", "image")
        for field in part_schema(find_head(name), 1024)
        if field.name not in common
    }
    assert named == expected


def test_keys_of_the_manifest() -> None:
    """Compare the table with the manifest's type, and the counts with theirs."""
    assert set(first_column("Manifest")) == set(get_type_hints(Manifest))
    counts = SECTIONS["Manifest"].split("`counts` has ")[1]
    assert all(f"`{name}`" in counts for name in get_type_hints(Counts))
    assert f"format version {FORMAT}:" in SECTIONS["Manifest"]
    assert f"`format` in the manifest is {FORMAT}." in SECTIONS["Format version"]
