"""READERS: the reader of each format by its name, and the suffixes that name a format."""

from __future__ import annotations

from ..flags import FORMATS
from .csv import CSV, TSV
from .jsonl import JSONL
from .media import MEDIA
from .parquet import ParquetReader
from .reader import Reader
from .tar import TAR
from .text import TEXT

READERS: dict[str, Reader] = dict(zip(FORMATS, (TEXT, JSONL, CSV, TSV, ParquetReader(), MEDIA, TAR), strict=True))

# The formats of which the records may name or contain pictures and sounds.
LIST_FORMATS = frozenset({"jsonl", "csv", "tsv", "parquet"})

FORMAT_SUFFIXES = {**{f".{name}": name for name in READERS if name != "media"}, ".ndjson": "jsonl"}
