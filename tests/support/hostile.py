"""Malicious shards, small on disk, each with the expected result."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
GOOD = b'{"text": "good"}\n'


_REASONS = {"not_utf8": "not UTF-8"}


@dataclass
class Hostile:
    """A shard: its name, its writer, the expected number of embedded rows (-1: any), and of rejected ones."""

    name: str
    write: Callable[[Path], object]
    embedded: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


def _bytes(name: str, content: bytes, embedded: int = 0, **rejected: int) -> Hostile:
    reasons = {_REASONS.get(reason, reason.replace("_", " ")): rows for reason, rows in rejected.items()}
    return Hostile(name, lambda path: path.write_bytes(content), embedded, reasons)


def _table(name: str, columns: dict[str, object], embedded: int = 0, **rejected: int) -> Hostile:
    reasons = {_REASONS.get(reason, reason.replace("_", " ")): rows for reason, rows in rejected.items()}
    return Hostile(name, lambda path: pq.write_table(pa.table(columns), path), embedded, reasons)


def lines() -> Iterator[Hostile]:
    """Yield text, JSON and CSV shards that break parsers."""
    deep = b"[" * 10_000 + b"]" * 10_000
    yield _bytes("deep.jsonl", GOOD + b'{"text": %s}\n' % deep + GOOD, 2, malformed_record=1)
    yield _bytes(
        "deep-objects.jsonl", b'{"text":' * 10_000 + b'"x"' + b"}" * 10_000 + b"\n" + GOOD, 1, malformed_record=1
    )
    yield _bytes("nul.txt", b"a\0b\n\0\n", 2)
    yield _bytes("nul.jsonl", GOOD + b"\0" * 100 + b"\n" + GOOD, 2, malformed_record=1)
    yield _bytes("surrogate.jsonl", GOOD + b'{"text": "\\ud800"}\n{"text": "\\udc00\\ud800"}\n' + GOOD, 2, not_utf8=2)
    yield _bytes("bom.txt", b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", 2)
    yield _bytes("bom.jsonl", b"\xef\xbb\xbf" + GOOD, 1)
    yield _bytes("bom.csv", b"\xef\xbb\xbftext\na\n", 1)
    for order in ("utf-16-le", "utf-16-be"):
        bom = b"\xff\xfe" if order == "utf-16-le" else b"\xfe\xff"
        yield _bytes(f"{order}.txt", bom + "hund\nkatze\n".encode(order), damaged_shard=1)
        yield _bytes(f"{order}.jsonl", bom + GOOD.decode().encode(order), damaged_shard=1)
    yield _bytes("ends.txt", b"a\r\nb\nc\rd\r\n\r\ne", 4, empty_text=1)
    yield _bytes("ends.jsonl", GOOD + b'{"text": "b"}\r\n\r\n\n{"text": "c"}', 3)
    yield _bytes("twice.jsonl", b'{"text": "a", "text": "b"}\n{"text": "a", "text": 1}\n', 1, wrong_type=1)
    yield _bytes("types.jsonl", b"".join(b'{"text": %s}\n' % v for v in (b"1", b"true", b"{}", b"[1]", b"null", b"1e999")),
                 wrong_type=4, null_text=1, malformed_record=1)  # fmt: skip
    huge = b'{"text": "a", "n": %s}\n{"text": %s}\n'
    yield _bytes("huge.jsonl", huge % (b"9" * 300, b"9" * 300), 1, wrong_type=1)
    yield _bytes("infinite.jsonl", GOOD + huge % (b"9" * 100_000, b"1e999"), 1, malformed_record=2)
    yield _bytes("open.csv", b'text,n\na,1\n"open,2\nb,3\nc,4\n', 3, malformed_record=1)
    yield _bytes("quotes.csv", b'text\n"a""b"\n"a"b\n"\n', 1, malformed_record=2)
    yield _bytes("latin.csv", b"text\ncaf\xe9\ngood\n", 1, not_utf8=1)
    yield _bytes("gzip.jsonl", gzip.compress(GOOD * 5, mtime=0), damaged_shard=1)
    yield _bytes("zeros.tsv", bytes(5000), damaged_shard=1)
    yield Hostile("gigabyte.txt", lambda path: _sparse(path, 1 << 30), 2, {"too long": 1})


def _sparse(path: Path, size: int) -> None:
    """Write a line of `size` zero bytes between two good ones, as a sparse file."""
    with path.open("wb") as handle:
        handle.write(b"good\n")
        handle.seek(size, 1)
        handle.write(b"\ngood\n")


def packed() -> Iterator[Hostile]:
    """Yield shards for each compression: bombs of one line and of many, truncated, damaged, and not compressed."""
    whole = b"".join(b'{"text": "text %d"}\n' % number for number in range(2000))
    for suffix, pack in PACK.items():
        mega = pack(b"a" * (16 << 20))  # consecutive members are one file
        line = pack(b'{"text": "first"}\n{"text": "') + mega * (24 if suffix == ".gz" else 8) + pack(b'"}\n' + GOOD)
        yield _bytes(f"line.jsonl{suffix}", line, 2, too_long=1)
        yield _bytes(f"rows.txt{suffix}", pack(b"good\n" + b"\n" * 9_000), 1, empty_text=9_000)
        yield _bytes(f"no.jsonl{suffix}", GOOD * 3, damaged_shard=1)
        yield _bytes(f"cut.jsonl{suffix}", pack(whole)[: len(pack(whole)) // 2], -1)
        flipped = bytearray(pack(whole))
        flipped[len(flipped) // 2] ^= 64
        yield _bytes(f"flip.jsonl{suffix}", bytes(flipped), -1)
        yield _bytes(f"twice.jsonl{suffix}", pack(pack(GOOD)), -1)


def tables() -> Iterator[Hostile]:
    """Yield Parquet shards: types, bombs of dictionaries, lists, pages and schemas, and false metadata."""
    words = pa.array(["good", None, "also good"])
    for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()):
        yield _table(f"{kind}.parquet", {"text": words.cast(kind)}, 2, null_text=1)
    yield _table("dictionary.parquet", {"text": words.dictionary_encode()}, 2, null_text=1)
    days = pa.array([1, 2], pa.date32())
    wrong = (pa.array([1, 2]), pa.array([Decimal(1)] * 2), days, pa.array([[[1]], [[2]]]), pa.array([[("a", "b")]] * 2,
             pa.map_(pa.string(), pa.string())))  # fmt: skip
    for number, column in enumerate(wrong):
        yield _table(f"wrong-{number}.parquet", {"text": column}, wrong_type=2)
    yield _table("nulls.parquet", {"text": pa.nulls(2)}, null_text=2)
    yield _table("fixed.parquet", {"text": pa.array([b"abc", b"ab\xff"], pa.binary(3))}, 1, not_utf8=1)
    values = pa.array(["x" * 300_000, "good"])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 1000, pa.int32()), values)
    yield _table("named-often.parquet", {"text": column}, 2000)
    yield _table("wide.parquet", {"text": pa.array(["x"] * 3), **{f"c{n}": pa.nulls(3) for n in range(5000)}}, 3)
    huge = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), pa.array(["x" * (20 << 20), "good"]))
    yield _table("huge-value.parquet", {"text": huge}, 1, too_long=2)
    zeros = pa.DictionaryArray.from_arrays(pa.array(np.zeros(12_000_000, np.int32)), pa.array(["x"]))
    yield _table("list-in-a-row.parquet", {"text": pa.ListArray.from_arrays([0, 12_000_000], zeros)}, too_long=1)
    more = pa.DictionaryArray.from_arrays(pa.array(np.zeros(40_000_000, np.int8)), pa.array(["x"]))
    yield _table("list-of-many.parquet", {"text": pa.ListArray.from_arrays([0, 40_000_000], more)}, damaged_shard=1)
    yield Hostile("deep-schema.parquet", lambda path: path.write_bytes(deep_schema(50_000)), 0, {"damaged shard": 1})
    yield Hostile("delta.parquet", lambda path: _encoded(path, "DELTA_BYTE_ARRAY"), 1000)
    yield Hostile("lengths.parquet", lambda path: _encoded(path, "DELTA_LENGTH_BYTE_ARRAY"), 1000)
    yield Hostile("page.parquet", _page, 0, {"damaged shard": 1})


def _encoded(path: Path, encoding: str) -> None:
    """Write a thousand texts of 200 KB, each encoded as "like the one before" if `encoding` can: some hundred bytes."""
    table = pa.table({"text": pa.array(["x" * 200_000] * 1000)})
    pq.write_table(table, path, use_dictionary=False, column_encoding={"text": encoding}, compression="zstd")


def _page(path: Path) -> None:
    """Write one page of 300 MB."""
    text = pa.array(["x" * (300 << 20)], pa.large_string())
    pq.write_table(pa.table({"text": text}), path, use_dictionary=False, compression="zstd", write_statistics=False)


def deep_schema(depth: int) -> bytes:
    """Return a Parquet file without rows whose column is nested `depth` groups deep, in Thrift's compact protocol."""

    def number(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    root = b"\x48\x06schema\x15\x02\x00"  # name, number of children
    group = b"\x35\x02\x18\x01a\x15\x02\x00"  # optional, name, number of children
    leaf = b"\x15\x0c\x25\x02\x18\x01x\x00"  # BYTE_ARRAY, optional, name
    footer = b"\x15\x02\x19\xfc" + number(depth + 2) + root + group * depth + leaf + b"\x16\x00\x19\x0c\x00"
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
