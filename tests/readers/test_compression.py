"""Compressed shards: whole, cut short, damaged, and small files that expand to very much."""

from __future__ import annotations

import gzip
import subprocess
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.support.preloaded import preloaded_programs
from tests.support.shards import COMPRESS, encode_rows, read_rows, reasons, texts


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_concatenated_streams_and_padding_are_one_file(tmp_path: Path, suffix: str) -> None:
    """Concatenated compressed files are one file, zeros after a stream are skipped, and only zeros are damage."""
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(
        COMPRESS[suffix](b"one\ntw") + COMPRESS[suffix](b"") + bytes(8) + COMPRESS[suffix](b"o\n") + bytes(4)
    )
    assert texts(read_rows(path)[0]) == ["one", "two"]
    path.write_bytes(bytes(100))
    assert reasons(read_rows(path)[1]) == [("0", "damaged shard")]


BOMB = """
import sys
from audioclip_beam.pipeline.readers.fields import Fields

from audioclip_beam.pipeline.readers.input_files import find_shards

from tests.support.memory import peak
from tests.support.shards import infer_kept_schema, read_shard
for path in sys.argv[1:]:
    shards = find_shards([path])
    before = peak()
    found = [(rows.num_rows, rejected.column("reason").to_pylist())
             for rows, rejected in read_shard(shards[0], Fields(), infer_kept_schema(shards, Fields()))]
    print(sum(n for n, _ in found), sum((r for _, r in found), []), (peak() - before) >> 10)
"""


@pytest.mark.slow
def test_a_bomb_of_one_long_line_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """300 MB in one line, compressed by a factor of a thousand, is one rejected row and takes tens of MB of memory."""
    packer = zlib.compressobj(1, wbits=31)
    piece = b"a" * (1 << 20)
    packed = packer.compress(b'{"text": "first"}\n') + b"".join(packer.compress(piece) for _ in range(300))
    packed += packer.compress(b'\n{"text": "last"}\n') + packer.flush()
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    zst = zstandard.ZstdCompressor().compressobj()
    content = zst.compress(b"first\n") + b"".join(zst.compress(piece) for _ in range(300))
    (tmp_path / "b.txt.zst").write_bytes(content + zst.compress(b"\nlast\n") + zst.flush())
    for outcome, memory in peaks(tmp_path / "a.jsonl.gz", tmp_path / "b.txt.zst"):
        assert outcome == "2 ['too long']"
        assert memory < 150, f"{memory} MiB"


@pytest.mark.slow
def test_a_bomb_of_one_value_in_many_rows_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A Parquet file that stores a text of 600 KB once for 2,000 rows is read some rows at a time."""
    values = pa.array(["x" * 600_000, "y"])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 2000, pa.int32()), values)
    for name, text in (("a", column), ("b", column.dictionary_decode())):
        pq.write_table(pa.table({"text": text}), tmp_path / f"{name}.parquet")
        assert (tmp_path / f"{name}.parquet").stat().st_size < 1_000_000
    for outcome, memory in peaks(tmp_path / "a.parquet", tmp_path / "b.parquet"):
        assert outcome == "4000 []"
        assert memory < 300, f"{memory} MiB"


def peaks(*paths: Path) -> list[tuple[str, int]]:
    """Return (rows and reasons, rise of the peak of memory in MiB) of each shard, read in turn in a new process."""
    command = [preloaded_programs() / "python", "-c", BOMB, *map(str, paths)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(paths)
    return [(outcome, int(memory)) for outcome, _, memory in (line.rpartition(" ") for line in lines)]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_a_shard_cut_short_anywhere_gives_its_complete_rows(tmp_path: Path, form: str, suffix: str) -> None:
    """Rows before the cut are read, the last, incomplete line is not a row, and one rejected row reports the damage."""
    content = encode_rows(form, [{"id": str(n), "text": f"text {n} {zlib.crc32(bytes([n])):x}"} for n in range(40)])
    expected = [f"text {n} {zlib.crc32(bytes([n])):x}" for n in range(40)]
    whole = COMPRESS[suffix](content)
    path = tmp_path / f"a.{form}{suffix}"
    best = 0
    for cut in range(1, len(whole), 1 if form == "txt" else 7):
        path.write_bytes(whole[:cut])
        rows, rejected = read_rows(path)
        assert texts(rows) == expected[: len(rows)]
        assert reasons(rejected) == [(str(len(rows)), "damaged shard")]
        best = max(best, len(rows))
    assert best >= (40 if suffix == ".gz" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_damage_in_the_middle_keeps_the_rows_before_it(tmp_path: Path, suffix: str) -> None:
    """The rows of the blocks before the damage are read, then one rejected row reports it."""
    data = "".join(f"{zlib.crc32(str(n).encode())} {zlib.adler32(str(n).encode())}\n" for n in range(100_000)).encode()
    packed = bytearray(COMPRESS[suffix](data))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed)
    rows, rejected = read_rows(path)
    assert rejected[-1]["reason"] == "damaged shard"
    lines = data.decode().splitlines()
    same = sum(row["text"] == line for row, line in zip(rows, lines, strict=False))
    assert len(rows) >= same > 20_000


def test_a_wrong_suffix_gives_rejected_rows(tmp_path: Path) -> None:
    """Plain text named .gz, gzip named .jsonl and text named .parquet are rejected, not embedded."""
    for name, content in (
        ("a.jsonl.gz", b'{"text": "a"}\n'),
        ("a.jsonl", gzip.compress(b'{"text": "a"}\n' * 9)),
        ("a.parquet", b'{"text": "a"}\n' * 9),
    ):
        (tmp_path / name).write_bytes(content)
        rows, rejected = read_rows(tmp_path / name)
        assert rows == []
        assert rejected
