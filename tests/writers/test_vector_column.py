"""The column of vectors: --vector_encoding, compression only if that helps, and --vector_dtype float16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.text.head import CANARY_TEXTS
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.model.text.shapes import text_shapes
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.snapshots.commit import read_manifest
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


DIM = 32


TEXTS = [
    "dog barking",
    "rain on a tin roof",
    "thunder",
    "glass breaking",
    "a choir singing",
    "slow piano music",
    "wind",
]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, tokenizer: ClipTokenizer) -> Path:
    """A text head whose vectors have numbers from 1e-9 to above 65,504; in one dimension one text alone is above."""
    torch.manual_seed(1)
    state = {name: torch.randn(shape) * 0.1 for name, shape in text_shapes(64, 2, dim=DIM).items()}
    path = tmp_path_factory.mktemp("head") / "head.pt"
    torch.save(state, path)
    texts = [*TEXTS, *CANARY_TEXTS]
    numbers = np.abs(
        TextEncoder(load_checkpoint(path), tokenizer, TextSettings("small", device="cpu")).encode(texts)
    )  # [n, dim]
    second, largest = np.sort(numbers, axis=0)[-2:]  # [dim]
    ratios = np.where(numbers.argmax(axis=0) < len(TEXTS), largest / second, 0)  # no text of the canary may be rejected
    chosen = ratios.argmax()
    assert ratios[chosen] > 1.01
    scales = np.logspace(-8, 4, DIM)
    scales[chosen] = 65504 * 2 / (second + largest)[chosen]
    state["text_projection"] *= torch.tensor(scales, dtype=torch.float32)
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_float16_is_float32_rounded(
    head: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All bits are those of numpy's rounding, in a column that search and validate read; no other dtype is reused.

    The summary of a run names the readers that have no float16.
    """
    shard = write_jsonl(tmp_path / "a.jsonl", [{"id": f"r{n}", "text": text} for n, text in enumerate(TEXTS)])
    tables = {}
    for stored in ("float32", "float16"):
        command = ["embed", "--input", str(shard), "--id_field", "id", "--vector_dtype", stored]
        command += ["--checkpoint", str(head), "--tokenizer_path", str(vocabulary)]
        assert main([*command, "--output", str(tmp_path / stored)]) == 0
        assert ("float16, which neither Spark nor BigQuery reads" in capsys.readouterr().out) == (stored == "float16")
        tables[stored] = read(tmp_path / stored)
    element = pa.float16()
    for path in directory_of(tmp_path / "float16").glob("part-*.parquet"):
        assert pq.read_schema(path).field("embedding").type == pa.list_(
            pa.field("element", element, nullable=False), DIM
        )
    wide, half = (
        table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), DIM) for table in tables.values()
    )
    assert wide.dtype == np.float32
    assert half.dtype == np.float16
    magnitudes = np.abs(wide[wide != 0])
    assert magnitudes.min() < 6e-8  # below the smallest number of half precision
    assert magnitudes.max() > 65504  # above the largest

    # The text whose vector does not fit is rejected with float16 alone.
    with np.errstate(over="ignore"):
        rounded = wide.astype(np.float16)
    (too_large,) = np.flatnonzero(~np.isfinite(rounded).all(axis=1))
    kept = np.arange(len(TEXTS)) != too_large
    assert tables["float16"]["id"].to_pylist() == [f"r{n}" for n in np.flatnonzero(kept)]
    assert half.tobytes() == rounded[kept].tobytes()
    assert len(tables["float32"]) == len(TEXTS)
    rejected = read(tmp_path / "float16", "rejected").to_pylist()
    assert [(row["id"], row["reason"]) for row in rejected] == [(f"r{too_large}", "non-finite vector")]
    assert "does not fit float16" in rejected[0]["detail"]

    # Neither reuses the other's vectors.
    assert main([*command, "--output", str(tmp_path / "float32")]) == 0
    manifest = read_manifest(str(tmp_path / "float32"), directory_of(tmp_path / "float32").name)
    assert manifest is not None
    assert (manifest["counts"]["embedded"], manifest["counts"]["reused"]) == (len(TEXTS) - 1, 0)
    assert read(tmp_path / "float32").equals(tables["float16"])

    # Both commands load the model again: validate embeds the canary, search a text.
    capsys.readouterr()
    out = str(tmp_path / "float16")
    assert main(["validate", out, "--tokenizer_path", str(vocabulary)]) == 0
    assert "the checkpoint gives the 16 vectors" in capsys.readouterr().out
    text = TEXTS[int(np.flatnonzero(kept)[0])]
    assert main(["search", out, text, "--json", "--top", "1"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["queries"][0]["hits"]
    assert hit["text"] == text
    assert hit["score"] == pytest.approx(1, abs=1e-3)
