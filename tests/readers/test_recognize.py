"""Content that is not what its suffix says: named, with the remedy, and never read as rows."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import feather, orc

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.corpus import embed, read
from tests.support.shards import read_rows, reasons, texts

TEXT = b"id,text\n1,a dog\n2,a cat\n"
TABLE = pa.table({"id": ["1"], "text": ["a dog"]})


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def zipped(name: str, content: bytes = TEXT) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("a.csv")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT))
    return out.getvalue()


def arrow_stream() -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return bytes(out.getvalue())


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (id, text)")
    return connection.serialize()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"0" * 64)
KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "gzip": (lambda: gzip.compress(TEXT), "is gzip, not {form}: rename it to a.{form}.gz"),
    "zstd": (lambda: zstandard.compress(TEXT), "is zstd, not {form}: rename it to a.{form}.zst"),
    "xz": (lambda: lzma.compress(TEXT), "is xz, not {form}: rename it to a.{form}.xz"),
    "bzip2": (lambda: bz2.compress(TEXT), "is bzip2, not {form}: rename it to a.{form}.bz2"),
    "empty bzip2": (lambda: bz2.compress(b""), "is bzip2, not {form}"),
    "lz4": (lambda: b"\x04\x22\x4d\x18\x64\x40\xa7" + TEXT, "compress it as gzip or zstd"),
    "zip": (lambda: zipped("a.csv"), "is a zip archive, not {form}: unpack it"),
    "xlsx": (lambda: zipped("xl/workbook.xml"), "is an Excel workbook (a zip archive), not {form}: save it as CSV UTF-8"),
    "ods": (lambda: zipped("mimetype", b"application/vnd.oasis.opendocument.spreadsheet"), "save it as CSV UTF-8"),
    "tar": (tarred, "is a tar archive, not {form}: unpack it"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\0\4" + bytes(40), "is a 7z or RAR archive"),
    "parquet": (lambda: written(lambda out: pq.write_table(TABLE, out)), "is Parquet, not {form}: rename it to a.parquet"),
    "feather": (lambda: written(lambda out: feather.write_feather(TABLE, out)), "is an Arrow or Feather file"),
    "arrow": (arrow_stream, "is an Arrow or Feather file"),
    "avro": (lambda: b'Obj\x01\x04\x16avro.schema\x08"string"' + bytes(20), "is Avro, not {form}: write it as Parquet"),
    "orc": (lambda: written(lambda out: orc.write_table(TABLE, out)), "is ORC, not {form}"),
    "sqlite": (database, "is an SQLite database, not {form}: export its table"),
    "pdf": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "is PDF, not {form}: extract its text"),
    "xls": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "is an old Excel or Word file"),
    "numpy": (lambda: written(lambda out: np.save(out, np.zeros(3))), "is an HDF5, NetCDF or NumPy file"),
    "pickle": (lambda: pickle.dumps({"id": 1}), "is a Python pickle"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(30), "is an image"),
    "wav": (lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), "is audio or video"),
    "AppleDouble": (lambda: b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60), "is AppleDouble (metadata of macOS)"),
    "Git LFS": (lambda: POINTER, "is a pointer of Git LFS, not {form}: fetch the file, as in git lfs pull"),
    "git-annex": (lambda: b"/annex/objects/SHA256E-s10--00.csv\n", "fetch the file, as in git annex get"),
    "UTF-16": (lambda: TEXT.decode().encode("utf-16"), "the text is UTF-16 and must be UTF-8"),
    "UTF-16LE": (lambda: TEXT.decode().encode("utf-16-le"), "the text is UTF-16LE and must be UTF-8"),
    "UTF-16BE": (lambda: TEXT.decode().encode("utf-16-be"), "the text is UTF-16BE and must be UTF-8"),
    "UTF-32LE": (lambda: TEXT.decode().encode("utf-32-le"), "the text is UTF-32LE and must be UTF-8"),
    "zeros": (lambda: bytes(5000), "is binary, not {form}"),
    "random": (lambda: np.random.default_rng(1).bytes(3000), "is binary, not {form}"),
    "floats": (lambda: np.random.default_rng(1).random(300, np.float32).tobytes(), "is binary, not {form}"),
    "integers": (lambda: np.arange(300, dtype=np.int32).tobytes(), "is binary, not {form}"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_content_is_a_damaged_shard(tmp_path: Path, kind: str) -> None:
    """It is named with the remedy in every text format, and behind a compression too."""
    make, words = KINDS[kind]
    content = make()
    for form in ("csv", "tsv", "jsonl", "txt"):
        for suffix in ("", ".gz"):
            path = tmp_path / f"a.{form}{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
            rows, rejected = read_rows(path, kept=pa.schema([]))
            assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])
            detail = str(rejected[0]["detail"])
            if not suffix:
                assert words.format(form=form) in detail
            assert "UTF-" in detail or (
                detail.startswith("behind gzip, " if suffix else "") and f", not {form}: " in detail
            )


@pytest.mark.parametrize(
    "line",
    ["PAR1 is where we park", "ORCHIDS and birds", "PK is his name", "BZh91 words", "Obj 1", "ID3 tags", "fLaC and OggS",
     "RIFF and roll", "ARROW1 of the quiver", "MZ of This program", "version https://git-lfs.github.com", "7z and Rar!",
     "a\tb\fc\x1b[31md", "\ufeffmark", "日本語のテキスト", "%PDF is a format", "II* and MM"],
)  # fmt: skip
def test_texts_that_begin_like_other_content_are_texts(tmp_path: Path, line: str) -> None:
    """Only what cannot be a text is refused."""
    (tmp_path / "a.txt").write_text(f"{line}\nsecond\n", encoding="utf-8")
    rows, rejected = read_rows(tmp_path / "a.txt")
    assert (texts(rows), rejected) == ([line.removeprefix("\ufeff"), "second"], [])


def test_texts_in_an_older_encoding_are_rejected_row_by_row(tmp_path: Path) -> None:
    """They are not binary: the rows that are ASCII are read."""
    (tmp_path / "a.txt").write_bytes("dog\ncafé\nпривет\n".encode("cp1251", "replace") + "é".encode("latin-1"))
    rows, rejected = read_rows(tmp_path / "a.txt")
    assert texts(rows) == ["dog", "caf?"]
    assert reasons(rejected) == [("2", "not UTF-8"), ("3", "not UTF-8")]


@pytest.mark.parametrize("header", [b"id\xff,text", b"id,t\xe9xt", b"id\0,text", b"\0,text", b"text\0", b"\xe9,text"])
def test_a_header_that_is_not_text_is_a_damaged_shard(tmp_path: Path, header: bytes) -> None:
    """Its shard has no rows that could be found by name."""
    (tmp_path / "a.csv").write_bytes(header + b"\n1,a dog\n")
    rows, rejected = read_rows(tmp_path / "a.csv", kept=pa.schema([]))
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])
    assert "is not text in UTF-8" in str(rejected[0]["detail"])


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (".gz", TEXT, "the content is not compressed, and the suffix says gzip: rename it to a.csv"),
        (".zst", TEXT, "the content is not compressed, and the suffix says zstd: rename it to a.csv"),
        (".bz2", TEXT, "the content is not compressed, and the suffix says bzip2: rename it to a.csv"),
        (".xz", TEXT, "the content is not compressed, and the suffix says xz: rename it to a.csv"),
        (".gz", zstandard.compress(TEXT), "the content is zstd, not gzip: rename it to a.csv.zst"),
        (".zst", gzip.compress(TEXT, mtime=0), "the content is gzip, not zstd: rename it to a.csv.gz"),
        (".gz", zipped("a.csv"), "the content is a zip archive, not gzip: unpack it"),
        (".gz", POINTER, "the content is a pointer of Git LFS, not gzip: fetch the file"),
    ],
)
def test_another_compression_than_the_suffix_says(tmp_path: Path, suffix: str, content: bytes, words: str) -> None:
    """The shard is damaged, and the detail says how to name it."""
    (tmp_path / f"a.csv{suffix}").write_bytes(content)
    rows, rejected = read_rows(tmp_path / f"a.csv{suffix}", kept=pa.schema([]))
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])
    assert words in str(rejected[0]["detail"])


@pytest.mark.slow
def test_a_gzip_file_named_csv_at_the_command_line(
    tmp_path: Path, small_head: str, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`embed` and `plan` name it with the remedy; --allow_damaged publishes the other rows."""
    (tmp_path / "sounds.csv").write_bytes(gzip.compress(b"id,text\n1,a dog\n"))
    (tmp_path / "good.csv").write_text(",id,text\n0,007,a dog\n1,008,a cat\n")
    flags = [
        "--input",
        f"{tmp_path}/sounds.csv",
        f"{tmp_path}/good.csv",
        "--output",
        f"{tmp_path}/out",
        "--id_field",
        "id",
    ]
    flags += ["--checkpoint", small_head, "--tokenizer_path", str(vocabulary)]
    message = "the content is gzip, not csv: rename it to sounds.csv.gz"
    assert main(["embed", *flags]) == 1
    assert f"sounds.csv ({message})" in capsys.readouterr().err
    assert main(["plan", *flags]) == 0
    planned = capsys.readouterr().out
    assert f"1 shard cannot be read to the end: sounds.csv: {message}" in planned
    assert "limits    embed would publish nothing: 1 of 2 shards cannot be read to the end" in planned
    assert main(["embed", *flags, "--allow_damaged", "1"]) == 0
    assert message in capsys.readouterr().out
    assert read(tmp_path / "out")["id"].to_pylist() == ["007", "008"]


def test_pages_and_shards_without_rows_are_noted(tmp_path: Path) -> None:
    """By name: a page of HTML is read as its lines, and an empty shard has no rows."""
    (tmp_path / "in").mkdir()
    for name, content in {
        "a.txt": b"<!DOCTYPE html>\n<html>\n",
        "b.txt": b"\n <HTML lang=en>",
        "c.jsonl": b'<?xml version="1.0"?><Error/>',
        "d.csv": b"id,text\n",
        "e.txt": b"",
        "f.jsonl.gz": gzip.compress(b"\n\n"),
        "g.txt": b"a dog\n",
        "i.txt": b"\xef\xbb\xbf<!-- error -->\n<html>\n",
    }.items():
        (tmp_path / "in" / name).write_bytes(content)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in/h.parquet")
    notes = embed(f"{tmp_path}/in/*", tmp_path / "out")[0]["notes"]
    assert notes == [
        "no row was read from 4 shards: d.csv; e.txt; f.jsonl.gz; h.parquet",
        "4 shards begin like a page of HTML or XML, which servers send in place of a file: a.txt; b.txt; c.jsonl; i.txt",
    ]


def test_metadata_of_macos_below_a_wildcard_is_left_out(tmp_path: Path) -> None:
    """It is counted in a note; a name or a glob that asks for such files finds them."""
    (tmp_path / "in/b").mkdir(parents=True)
    for name in ("a.jsonl", "._a.jsonl", "b/c.jsonl", "b/._c.jsonl", "._.DS_Store"):
        (tmp_path / "in" / name).write_bytes(b"\0\5\x16\7" if "._" in name else b'{"text": "a dog"}\n')
    for pattern, number in (("in/*", 2), ("in/**/*.jsonl", 2), ("in/**", 3), ("in/*.jsonl", 1)):
        notes = list[str]()
        shards = find_shards([f"{tmp_path}/{pattern}"], notes=notes)
        assert not [shard for shard in shards if "._" in shard.name]
        files = "file was" if number == 1 else "files were"
        assert [note.partition(" left out")[0] for note in notes] == [f"{number} {files}"]
    assert [shard.name for shard in find_shards([f"{tmp_path}/in/._a.jsonl"])] == ["._a.jsonl"]
    assert [shard.name for shard in find_shards([f"{tmp_path}/in/._*l"])] == ["._a.jsonl"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only/._a.jsonl").write_bytes(b"\0\5\x16\7")
    with pytest.raises(InputError, match="every file is metadata of macOS"):
        find_shards([f"{tmp_path}/only/*"])
    manifest, _ = embed(f"{tmp_path}/in/*.jsonl", tmp_path / "out")
    assert json.dumps(manifest["notes"]).count("1 file was left out as metadata of macOS") == 1
