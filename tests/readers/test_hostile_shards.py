"""A malicious corpus goes through the whole job: no crash, no hang, bounded memory, every row counted."""

from __future__ import annotations

import io
import json
import subprocess
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.versions import ListedFile
from audioclip_beam.pipeline.readers import parquet_limits
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support import hostile
from tests.support.corpus import embed, read, write_jsonl
from tests.support.preloaded import preloaded_programs
from tests.support.shards import infer_kept_schema, read_rows, read_shard, texts

ROOT = Path(__file__).parents[2]
# MiB that the job may take more than for one row. Lines have up to 1,024, archives 384; the tables' longest texts, which
# are in one bucket, have 700.
MEMORY = {"lines": 256, "packed": 256, "tables": 1300}

CHILD = """
import json, sys
from pathlib import Path
from tests.support.corpus import embed
from tests.support.memory import peak
from tests.support.shards import infer_kept_schema, read_shard
folder = Path(sys.argv[1])
(folder / "one.txt").write_text("one\\n")
embed(folder / "one.txt", folder / "warm")
before = peak()
manifest, _ = embed(f"{folder}/in/*", folder / "out", allow_damaged=1000)
print(json.dumps({"counts": manifest["counts"], "memory": (peak() - before) >> 10}))
"""


def in_a_child(folder: Path) -> dict[str, object]:
    """Return the counts of a job over `folder`/in and the rise of its peak of memory in MiB, run in a new process."""
    done = subprocess.run(
        [preloaded_programs() / "python", "-c", CHILD, str(folder)],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "packed", "tables"])
def test_a_hostile_corpus_is_embedded_row_by_row(tmp_path: Path, kind: str) -> None:
    """Each row is embedded or rejected for the right reason, in bounded memory."""
    shards = list(getattr(hostile, kind)())
    (tmp_path / "in").mkdir()
    for shard in shards:
        shard.write(tmp_path / "in" / shard.name)
    result = in_a_child(tmp_path)
    counts, memory = result["counts"], result["memory"]
    assert isinstance(counts, dict)
    assert counts["read"] == counts["embedded"] + counts["rejected"]
    good = [row_id.rpartition("#") for row_id in read(tmp_path / "out", columns=["id"])["id"].to_pylist()]
    bad = read(tmp_path / "out", "rejected")
    assert len(good) == len(set(good)) == counts["embedded"]
    assert len(bad) == counts["rejected"]
    embedded = Counter(name for name, _, _ in good)
    rejected = Counter(zip(bad["shard"].to_pylist(), bad["reason"].to_pylist(), strict=True))
    for shard in shards:
        actual = {reason: rows for (name, reason), rows in rejected.items() if name == shard.name}
        if shard.embedded >= 0:
            assert (shard.name, embedded[shard.name], actual) == (shard.name, shard.embedded, shard.rejected)
        else:
            assert embedded[shard.name] + sum(actual.values()) > 0
    assert isinstance(memory, int)
    print(f"{len(shards)} shards, {counts['read']} rows, {memory} MiB")
    assert memory < MEMORY[kind], f"{memory} MiB"


@pytest.mark.slow
def test_ids_and_kept_fields_of_any_type(tmp_path: Path) -> None:
    """Texts and numbers are ids; rows whose id is of another type are rejected."""
    values: list[object] = [
        1,
        "a",
        1.5,
        None,
        True,
        [1],
        {"a": 1},
        2**63,
        10**30,
        "",
        "\x00",
        "x" * 5000,
        "<b>",
        "\u202e",
    ]
    rows = [{"id": value, "n": value, "text": f"text {number}"} for number, value in enumerate(values)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out", id_field="id", keep_fields=["n"], max_text_bytes=4096)
    counts = manifest["counts"]
    assert counts["read"] == len(values)
    assert counts["rejected_by_reason"] == {"missing field": 1, "wrong type": 3, "too long": 1}
    assert {"1", "1.5", str(2**63), str(10**30), "", "\x00"} <= set(read(tmp_path / "out")["id"].to_pylist())


@pytest.mark.slow
def test_a_column_may_change_its_type_between_shards(tmp_path: Path) -> None:
    """In text, id and kept field, between formats and within one, if each type can be a text and a kept field."""
    (tmp_path / "in").mkdir()
    kinds: dict[str, pa.Array] = {
        "a": pa.array(["1", "2"]), "b": pa.array([1, 2]), "c": pa.array([1.5, 2.5]), "d": pa.array([True, False]),
        "e": pa.array(["3", "4"]).dictionary_encode(), "f": pa.array([b"5", b"\xff"]), "g": pa.nulls(2),
        "h": pa.array(["7", "8"], pa.large_string()),
    }  # fmt: skip
    for name, column in kinds.items():
        kept = pa.nulls(2) if name == "f" else column
        texts_of = pa.array([f"text {name}"] * 2) if name in "bcd" else column
        table = pa.table({"text": texts_of, "n": kept, "id": [f"{name}{row}" for row in range(2)]})
        pq.write_table(table, tmp_path / f"in/{name}.parquet")
    write_jsonl(tmp_path / "in/i.jsonl", [{"text": "9", "n": {"a": 1}, "id": 1}, {"text": 9, "n": 1, "id": "x"}])
    manifest, _ = embed(f"{tmp_path}/in/*", tmp_path / "out", id_field="id", keep_fields=["n"])
    assert manifest["counts"]["read"] == 18
    good = {"1", "2", "3", "4", "5", "7", "8", "9", "text b", "text c", "text d"}
    assert set(read(tmp_path / "out")["text"].to_pylist()) == good
    assert manifest["counts"]["rejected_by_reason"] == {"wrong type": 1, "null text": 2, "not UTF-8": 1}
    for name in "bcd":
        pq.write_table(pa.table({"text": kinds[name]}), tmp_path / "y.parquet")
        with pytest.raises(InputError, match="y.parquet: field 'text' is .*, which cannot be a text"):
            embed(tmp_path / "y.parquet", tmp_path / "out")
    pq.write_table(pa.table({"text": ["x"], "n": [b"x"], "id": ["z"]}), tmp_path / "in/z.parquet")
    with pytest.raises(InputError, match="'n' has types without a common one: .*binary.*; leave it out"):
        embed(f"{tmp_path}/in/*", tmp_path / "out", id_field="id", keep_fields=["n"])


def shard_of(table: pa.Table, path: Path, text: str, **options: object) -> tuple[list[str], list[str]]:
    """Return (texts, reasons) of a table written to `path`, with `text` as its text field."""
    pq.write_table(table, path, **options)
    shards = find_shards([str(path)])
    fields = Fields(text)
    texts, reasons = list[str](), list[str]()
    for rows, rejected in read_shard(shards[0], fields, infer_kept_schema(shards, fields)):
        assert rows.nbytes < 64 << 20
        texts += rows.column("text").to_pylist()
        reasons += rejected.column("reason").to_pylist()
    return texts, reasons


@pytest.mark.slow
@pytest.mark.parametrize("where", ["m.text", "l[]", "s[].text", "m.l[]"])
def test_a_value_stored_once_inside_of_lists_and_structs_is_not_expanded_at_once(tmp_path: Path, where: str) -> None:
    """A text of 1 MB that 1,000 rows share is read in batches of bounded size, however it is nested."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 1000, pa.int32()), pa.array(["x" * 1_000_000, "good"]))
    struct = pa.StructArray.from_arrays([shared], ["text"])
    offsets = pa.array(range(2001), pa.int32())
    column = {
        "m.text": ("m", struct),
        "l[]": ("l", pa.ListArray.from_arrays(offsets, shared)),
        "s[].text": ("s", pa.ListArray.from_arrays(offsets, struct)),
        "m.l[]": ("m", pa.StructArray.from_arrays([pa.ListArray.from_arrays(offsets, shared)], ["l"])),
    }[where]
    texts, reasons = shard_of(pa.table({column[0]: column[1]}), tmp_path / "a.parquet", where)
    assert (len(texts), reasons) == (2000, [])
    assert Counter(map(len, texts)) == {1_000_000: 1000, 4: 1000}


def test_a_wrong_footer_does_not_hide_the_values_of_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The headers of the pages count, not the footer."""
    zeros = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x"]))
    table = pa.table({"l": pa.ListArray.from_arrays([0, 100_000], zeros)})
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=False)
    data = (tmp_path / "a.parquet").read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    values = b"\xc0\x9a\x0c"  # 100,000 in Thrift's zigzag
    assert values in data[footer:]
    wrong = data[:footer] + data[footer:].replace(values, b"\x82\x80\x00")  # 1, in as many bytes
    (tmp_path / "b.parquet").write_bytes(wrong)
    monkeypatch.setattr(parquet_limits, "NESTED_VALUES", 50_000)
    (shard,) = find_shards([str(tmp_path / "b.parquet")])
    found = list(read_shard(shard, Fields("l[]"), pa.schema([])))
    assert sum(rows.num_rows for rows, _ in found) == 0
    assert "has 100,000 values" in found[-1][1].column("detail")[0].as_py()


def test_the_columns_of_parquet_are_fetched_once(tmp_path: Path) -> None:
    """The check of the pages costs no second read of a column."""
    table = pa.table({"text": [f"{number:06} some text" for number in range(100_000)], "other": ["y" * 50] * 100_000})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    sizes = list[int]()

    class CountingFile(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
            data = super().read(size) or b""
            sizes.append(len(data))
            return data

    class CountingIO(FileIO):
        def open_version(self, file: ListedFile) -> AbstractContextManager[IO[bytes]]:
            return cast("IO[bytes]", CountingFile(file.path))

    rows, _ = read_rows(tmp_path / "a.parquet", kept=pa.schema([]), file_io=CountingIO())
    assert len(rows) == 100_000
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(0).total_compressed_size
    assert column <= sum(sizes) < 1.2 * column


@pytest.mark.parametrize("suffix", hostile.PACK)
def test_concatenated_streams_of_high_compression_end(tmp_path: Path, suffix: str) -> None:
    """The end of a stream in the middle of a piece, with more output to come, is handled once."""
    member = hostile.PACK[suffix]((b"a" * 1023 + b"\n") * 4096)
    for between in (b"", bytes(3)):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes((member + between) * 3)
        rows, rejected = read_rows(path)
        assert texts(rows) == ["a" * 1023] * (3 * 4096)
        assert rejected == []


@pytest.mark.slow
def test_any_bit_of_a_footer_of_lists_may_flip(tmp_path: Path) -> None:
    """A fuzzer found a histogram with an entry too many, for which pyarrow ended the process."""
    pq.write_table(pa.table({"m": [{"l": ["a", "b"]}, {"l": None}]}), tmp_path / "a.parquet", store_schema=False)
    data = (tmp_path / "a.parquet").read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path = tmp_path / "b.parquet"
    for bit in range(8 * footer, 8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        (shard,) = find_shards([str(path)])
        for rows, rejected in read_shard(shard, Fields("m.l[]"), pa.schema([])):
            assert rows.num_rows <= 2
            assert rejected.num_rows <= 2
