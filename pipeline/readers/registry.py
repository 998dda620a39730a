"""READERS: the reader of each format by its name, and the suffixes that name a format."""

from __future__ import annotations

from ..flags import FORMATS
from .csv import CSV, TSV
from .jsonl import JSONL
from .parquet import ParquetReader
from .reader import Reader
from .text import TEXT

READERS: dict[str, Reader] = dict(zip(FORMATS, (TEXT, JSONL, CSV, TSV, ParquetReader()), strict=True))

FORMAT_SUFFIXES = {**{f".{name}": name for name in READERS}, ".ndjson": "jsonl"}
