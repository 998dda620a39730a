"""--vector_encoding: plain vectors by default, compressed only if that halves them; byte_stream_split on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.cli import main
from tests.support.corpus import embed, read, write_jsonl
from tests.support.snapshots import batch_of, directory_of, write_snapshot

ROWS = [{"id": f"r{n}", "text": f"caption number {n}"} for n in range(50)]


def columns_of(output: Path) -> dict[str, pq.ColumnChunkMetaData]:
    """Return what the first row group of the current snapshot says of each column."""
    (part,) = directory_of(output).glob("part-*.parquet")
    group = pq.ParquetFile(part).metadata.row_group(0)
    return {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}


@pytest.mark.parametrize(
    ("encoding", "name", "codec"),
    [("plain", "PLAIN", "UNCOMPRESSED"), ("byte_stream_split", "BYTE_STREAM_SPLIT", "ZSTD")],
)
def test_the_encoding_of_the_vectors(encoding: str, name: str, codec: str, tmp_path: Path) -> None:
    """All other columns, nested ones too, are plain and compressed with zstd; the manifest names an encoding on request."""
    rows = [{"id": f"r{n}", "text": f"text {n}", "tags": ["a", "b"], "at": {"x": n}, "a.b": n} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    options = {} if encoding == "plain" else {"vector_encoding": encoding}
    kept = ["tags", "at", "a.b"]
    manifest, _ = embed(tmp_path / "a.parquet", tmp_path / "out", keep_fields=kept, id_field="id", **options)
    assert manifest["options"].get("vector_encoding", "plain") == encoding
    columns = columns_of(tmp_path / "out")
    vectors = columns.pop("embedding.list.element")
    assert name in vectors.encodings
    assert vectors.compression == codec
    assert {"id", "text", "content_hash", "tags.list.element", "at.x", "a.b"} < columns.keys()
    for column in columns.values():
        assert column.compression == "ZSTD", column.path_in_schema
        assert "BYTE_STREAM_SPLIT" not in column.encodings
        assert "RLE_DICTIONARY" not in column.encodings


def test_both_encodings_give_the_same_rows(tmp_path: Path) -> None:
    """Every bit is the same, and vectors are reused whatever their encoding was."""
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id")
    plain = read(tmp_path / "out")
    manifest, texts = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", vector_encoding="byte_stream_split")
    assert "BYTE_STREAM_SPLIT" in columns_of(tmp_path / "out")["embedding.list.element"].encodings
    assert (manifest["counts"]["reused"], texts) == (len(ROWS), [])
    assert read(tmp_path / "out").equals(plain)


@pytest.mark.parametrize(
    ("dtype", "normalize", "stored", "codec"),
    [
        ("float32", "false", "float32", "UNCOMPRESSED"),
        ("float32", "false", "float16", "UNCOMPRESSED"),
        ("bfloat16", "false", "float32", "ZSTD"),
        ("float16", "false", "float32", "ZSTD"),
        ("bfloat16", "false", "float16", "ZSTD"),
        ("bfloat16", "true", "float32", "UNCOMPRESSED"),
    ],
)
def test_vectors_are_compressed_if_their_bits_are_zeros(
    dtype: str, normalize: str, stored: str, codec: str, tmp_path: Path
) -> None:
    """A model in half precision leaves bits of float32 zero, until a vector is scaled to length 1 in float32."""
    numbers = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    if dtype == "bfloat16":
        numbers = (numbers.view(np.uint32) & 0xFFFF0000).view(np.float32)
    elif dtype == "float16":
        numbers = numbers.astype(np.float16).astype(np.float32)
    if normalize == "true":
        numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    numbers = numbers.astype(stored)
    ids = [f"r{n}" for n in range(64)]
    write_snapshot(tmp_path, [batch_of(ids, ids, numbers)], 1024, stored=stored, dtype=dtype, normalize=normalize)
    column = columns_of(tmp_path)["embedding.list.element"]
    assert column.compression == codec
    # Compression is left out if it saves little, and only then.
    sink = pa.BufferOutputStream()
    pq.write_table(read(tmp_path).select(["embedding"]), sink, compression="zstd", use_dictionary=False)
    saved = 1 - sink.tell() / numbers.nbytes
    assert (saved > 0.2) == (codec == "ZSTD"), saved


def test_another_encoding_makes_a_run(
    small_head: str, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A snapshot has the encoding that its run asked for: the same command with another one runs again."""
    (tmp_path / "a.txt").write_text("dog\ncat\n")
    command = ["embed", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out")]
    command += ["--checkpoint", small_head, "--tokenizer_path", str(vocabulary)]
    assert main(command) == 0
    capsys.readouterr()
    for flags, outcome in (
        (["--vector-encoding", "plain"], "unchanged"),
        (["--vector-encoding", "byte_stream_split"], "rows"),
    ):
        assert main([*command, *flags]) == 0
        assert outcome in capsys.readouterr().out
    assert "BYTE_STREAM_SPLIT" in columns_of(tmp_path / "out")["embedding.list.element"].encodings
