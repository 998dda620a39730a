"""What readers make of a corpus of fixtures: another output needs another READERS_VERSION, or old and new rows would mix."""

from __future__ import annotations

import datetime
import decimal
import gzip
import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from audioclip_beam.pipeline.readers.shard import READERS_VERSION
from tests.support.shards import read_rows

# Of the rows, and of the rejected rows with their reasons, of all fixtures. Change them only together.
VERSION, DIGEST = 2, "4126b10b98bf691d"

LONG = "x" * 70_000


def _parquet(**columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


# (name, content, how it is read)
FIXTURES: list[tuple[str, bytes, dict[str, object]]] = [
    ("plain.txt", b"a dog\r\nbarks\n\n  \nlast without end", {}),
    ("old.txt", b"one\rtwo\rthree\r", {}),
    ("bytes.txt", b"\xef\xbb\xbfcaf\xc3\xa9\n\xff\xfe not utf-8\nnul \0 inside\n" + LONG.encode() + b"\n", {}),
    ("wide.txt", "kurz\nlänger\n".encode("utf-16"), {}),
    ("cut.txt.gz", gzip.compress(b"whole\nlines\n" * 20, compresslevel=0, mtime=0)[:60], {}),
    ("two.txt.gz", gzip.compress(b"first\n", mtime=0) + gzip.compress(b"second\n", mtime=0), {}),
    (
        "rows.jsonl",
        b'{"id": 1, "text": "a", "n": 1, "s": "02134"}\n{"id": "1", "text": "", "n": null}\n{"id": 1.0, "text": null}\n'
        b'{"text": "no id"}\n{"id": "x"}\nnot json\n[1]\n{"id": true, "text": 7}\n{"id": "d", "id": "e", "text": "twice"}\n'
        b'{"id": 12345678901234567890, "text": "\\ud83d\\ude00", "n": 2}\n{"id": "z", "text": NaN}\n',
        {"id": "id", "keep": ("n", "s")},
    ),
    (
        "numbers.jsonl",
        b'{"text": "a", "n": 1.0}\n{"text": "b", "n": "1.0"}\n{"text": "c", "n": 1}\n{"text": "d", "n": [1.0]}\n',
        {"keep": ("n",)},
    ),
    (
        "nested.jsonl",
        b'{"a": {"b": [{"text": "x", "id": 1}, {"text": "y"}]}}\n{"a": {"b": []}}\n{"a": 1}\n',
        {"text": "a.b[].text"},
    ),
    (
        "quoted.csv",
        b'id,text,n\r\n1,"a ""quoted"" text",1\r\n2,"over\r\nlines",\r\n3,plain,x,more\r\n4\r\n5,"open\r\n',
        {"id": "id", "keep": ("n",)},
    ),
    ("sep.csv", b"sep=;\nid;text\n1;a,b\n", {"id": "id"}),
    ("none.tsv", b'id\ttext\n1\t"kept as it is\n2\ta\\tb\n', {"id": "id"}),
    (
        "types.parquet",
        _parquet(
            id=pa.array([1, 2, 3, None]),
            text=pa.array(["a", "", None, "d"], pa.large_string()),
            when=pa.array([datetime.datetime(2026, 1, 31, 12)] * 4),
            price=pa.array([decimal.Decimal("1.50")] * 4),
            tags=pa.array([["x", None], [], None, ["y"]]),
        ),
        {"id": "id", "keep": ("when", "price", "tags")},
    ),
    (
        "spelled.parquet",
        _parquet(text=["a"], when=[datetime.datetime(2026, 1, 31, 12)], score=pa.array([1.0], pa.float32())),
        {"keep": ("when:string", "score:string")},
    ),
    (
        "views.parquet",
        _parquet(text=pa.array(["a", "b", "a"]).dictionary_encode(), id=pa.array([b"x", b"\xff", b"z"])),
        {"id": "id"},
    ),
    ("cut.parquet", _parquet(text=["a"] * 100)[:-20], {}),
]


def test_what_readers_make_of_the_fixtures(tmp_path: Path) -> None:
    """If this fails because a reader was changed on purpose: raise READERS_VERSION, and put both values here."""
    digest = hashlib.sha256()
    for name, content, how in FIXTURES:
        path = tmp_path / name
        path.write_bytes(content)
        rows, rejected = read_rows(path, **how)  # type: ignore[arg-type]
        assert rows or rejected, name
        for row in rejected:
            del row["detail"]  # words may change
        digest.update(repr((name, rows, rejected)).encode())
    assert (READERS_VERSION, digest.hexdigest()[:16]) == (VERSION, DIGEST)
