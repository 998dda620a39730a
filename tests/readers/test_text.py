"""Lines of txt, and what all text formats share."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.shards import COMPRESS, encode_rows, ids, read_rows, read_shard, reasons, texts, write_lines

TEXTS = ["dog barking", "Regen, auf dem “Dach” 🌧", "a\ttab and  spaces ", 'she said "hi", twice', "back\\slash"]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "tsv"])
def test_every_format_and_compression_gives_the_same_rows(tmp_path: Path, form: str, suffix: str) -> None:
    """The rows do not depend on the format or the compression of a file."""
    rows = [{"id": f"k{number}", "text": text} for number, text in enumerate(TEXTS)]
    path = tmp_path / f"part.{form}{suffix}"
    path.write_bytes(COMPRESS[suffix](encode_rows(form, rows)))
    cases = [(None, [f"part.{form}{suffix}#{n}" for n in range(5)])]
    cases += [("id", [row["id"] for row in rows])] if form != "txt" else []
    for field, expected in cases:
        found, rejected = read_rows(path, id=field, quoting="minimal" if form == "tsv" else None)
        assert texts(found) == TEXTS
        assert [row["row"] for row in found] == [0, 1, 2, 3, 4]
        assert ids(found) == expected
        assert rejected == []


def test_row_numbers_count_rejected_rows(tmp_path: Path) -> None:
    """A rejected row has a number too, so that the ids after it do not depend on it."""
    (tmp_path / "a.txt").write_bytes(b"one\n\n  \n\xff\nfive\n")
    rows, rejected = read_rows(tmp_path / "a.txt")
    assert ids(rows) == ["a.txt#0", "a.txt#4"]
    assert reasons(rejected) == [("1", "empty text"), ("2", "empty text"), ("3", "not UTF-8")]
    assert rejected[2]["text"] == "\\xff"


def test_nul_bytes_are_characters(tmp_path: Path) -> None:
    """They do not end a text."""
    (tmp_path / "a.txt").write_bytes(b"a\0b\n")
    assert texts(read_rows(tmp_path / "a.txt")[0]) == ["a\0b"]
    assert texts(read_rows(write_lines(tmp_path / "a.jsonl", {"text": "a\0b"}))[0]) == ["a\0b"]


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_byte_order_marks(tmp_path: Path, form: str) -> None:
    """That of UTF-8 is skipped; a UTF-16 file is a damaged shard, not garbage."""
    path = tmp_path / f"a.{form}"
    content = encode_rows(form, [{"id": "1", "text": "a"}])
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert texts(read_rows(path)[0]) == ["a"]
    path.write_bytes(content.decode().encode("utf-16"))
    rows, rejected = read_rows(path, kept=pa.schema([]))
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])
    assert "UTF-16" in str(rejected[0]["detail"])


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_a_file_of_a_byte_order_mark_alone_has_no_rows(tmp_path: Path, form: str) -> None:
    """It is as empty as a file of no bytes."""
    for content in (b"", b"\xef\xbb\xbf"):
        (tmp_path / f"a.{form}").write_bytes(content)
        assert read_rows(tmp_path / f"a.{form}") == ([], [])


def test_mixed_line_ends(tmp_path: Path) -> None:
    """A line ends with \\n or \\r\\n; the last line needs no end; \\r alone is a character."""
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\nc\rd\ne\r")
    assert texts(read_rows(tmp_path / "a.txt")[0]) == ["a", "b", "c\rd", "e"]
    rows, _ = read_rows(write_lines(tmp_path / "a.jsonl", b'{"text": "a"}\r', b'{"text": "b"}', b'{"text": "c"}\r'))
    assert texts(rows) == ["a", "b", "c"]
    (tmp_path / "a.csv").write_bytes(b'text\r\na\nb\r\n"c\r\nd"\r\ne')
    assert texts(read_rows(tmp_path / "a.csv")[0]) == ["a", "b", "c\r\nd", "e"]


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "parquet"])
def test_a_text_over_the_limit_is_too_long(tmp_path: Path, form: str) -> None:
    """The limit is a number of bytes of UTF-8, and a text of exactly as many is not over it."""
    path = tmp_path / f"a.{form}"
    values = ["x" * 100, "ä" * 50, "x" * 101, "ä" * 51, "fine"]
    if form == "parquet":
        pq.write_table(pa.table({"text": values}), path)
    else:
        path.write_bytes(encode_rows(form, [{"id": "1", "text": value} for value in values]).replace(b"\n", b"\r\n"))
    rows, rejected = read_rows(path, limit=100)
    assert texts(rows) == [values[0], values[1], values[4]]
    assert reasons(rejected) == [("2", "too long"), ("3", "too long")]


def test_long_lines_cost_only_themselves(tmp_path: Path) -> None:
    """A line over the limit is rejected, and the lines around it are read, the last one without its end too."""
    (tmp_path / "a.txt").write_bytes(b"ok\n" + b"x" * 50 + b"\nlast")
    for limit, expected in ((10, ["ok", "last"]), (50, ["ok", "x" * 50, "last"])):
        rows, rejected = read_rows(tmp_path / "a.txt", limit)
        assert texts(rows) == expected
        assert reasons(rejected) == [("1", "too long")][: 3 - len(rows)]


def test_empty_shards_have_no_rows(tmp_path: Path) -> None:
    """No bytes, compressed nothing, only a header, a table without rows."""
    for form in ("txt", "jsonl", "csv", "tsv"):
        for suffix, pack in COMPRESS.items():
            for content in (b"", pack(b""), pack(b"id,text\n" if form == "csv" else b"")):
                (tmp_path / f"a.{form}{suffix}").write_bytes(content)
                assert read_rows(tmp_path / f"a.{form}{suffix}") == ([], [])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == ([], [])


def test_a_missing_shard_raises_an_error_with_its_path(tmp_path: Path) -> None:
    """A shard that cannot be read at all is not rejected as damaged: it is an error that names it."""
    for name in ("a.txt", "a.parquet", "a.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(b"")
        (shard,) = find_shards([str(path)])
        path.unlink()
        with pytest.raises(InputError, match=f"{path} existed when it was listed and cannot be read now"):
            list(read_shard(shard, Fields(), pa.schema([])))
        path.mkdir()
        with pytest.raises(OSError, match=f"{path} cannot be read: Is a directory"):
            list(read_shard(shard, Fields(), pa.schema([])))
