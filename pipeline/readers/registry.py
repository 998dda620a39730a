"""Records out of a shard's bytes, one format a function: blocks of (first row's number, records or why they are none).

A record is a dict of fields; a line of txt is a str. Rows count from 0, bad ones included; blank lines of jsonl and csv
are no rows. Whatever the bytes, a reader goes on to the next record, and ends with DamagedShard where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from .base import Records
from .csv import read_delimited
from .fields import Fields
from .jsonl import read_jsonl
from .parquet import read_parquet
from .text import read_txt

READERS: dict[str, Callable[[IO[bytes], str | None, Fields, int], Records]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_delimited(","),
    "tsv": read_delimited("\t"),
    "parquet": read_parquet,
}
