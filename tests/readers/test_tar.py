"""Tars as WebDataset has them: exact rows, ids and reasons, of every format and of members that are not files."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import soundfile

from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.shards import COMPRESS
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubPictures, StubSounds
from tests.support.tars import END, PNG, content_of, header, padded, pax, pax_of, read_tar, signed, tar_of

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def faults(rejected: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [(row["id"], row["reason"]) for row in rejected]


def write(folder: Path, data: bytes, name: str = "a.tar") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", sorted(COMPRESS))
@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_a_row_with_the_place_of_its_content(tmp_path: Path, form: str, suffix: str) -> None:
    """Of a plain tar the reference is a range of it; of a compressed one, of a copy. FILE always names the tar."""
    long = "/".join(["folder" * 8] * 4)
    members = {
        "x/1.txt": b"one",
        "x/1.jpg": PNG[0],
        "x/1.json": b'{"a": {"b": 7}, "id": "first"}',
        f"{long if form != 'ustar' else 'y'}/2.seg.PNG": PNG[1],
        "caf\u00e9 #1/3.png": PNG[2],
    }
    path = write(tmp_path, COMPRESS[suffix](tar_of(members, FORMS[form])), f"a.tar{suffix}")
    rows, rejected, notes = read_tar(path, keep=("txt", "json.a.b"))
    assert not rejected
    assert not notes
    names = [name.partition(".")[0] for name in members if name.lower().endswith(("jpg", "png"))]
    assert ids(rows) == [f"a.tar{suffix}#{name}" for name in names]
    assert [(row["txt"], row["json.a.b"]) for row in rows] == [("one", 7), (None, None), (None, None)]
    for row, content in zip(rows, PNG, strict=False):
        assert content_of(row) == content
        digest = hashlib.blake2b(content, digest_size=16)
        assert row["content_hash"] == digest.digest()
        file = row["file"]
        assert (file["uri"], file["size"], file["checksum"]) == (
            str(path),
            len(content),
            f"BLAKE2B-128:{digest.hexdigest()}",
        )
        assert file["offset"] == (None if suffix else row["_source"]["offset"])
        assert (row["_source"]["path"] == os.fsencode(path)) == (not suffix)
    assert [row["file"]["content_type"] for row in rows] == ["image/jpeg", "image/png", "image/png"]
    assert (tmp_path / "spill").exists() == bool(suffix)


def test_ids_come_from_a_field_of_the_key(tmp_path: Path) -> None:
    """Numbers have their digits as written; a key without the field is rejected under its own name."""
    members = [
        ("1.png", PNG[0]),
        ("1.json", b'\xef\xbb\xbf{"id": 12345678901234567890123}'),
        ("2.json", b'{"id": 1.50}'),
        ("2.png", PNG[1]),
        ("3.png", PNG[2]),
        ("4.png", PNG[3]),
        ("4.json", b"{broken"),
        ("5.png", PNG[4]),
        ("5.json", b'{"id": null}'),
        ("6.json", b'{"id": "\xff"}'),
        ("6.png", PNG[5]),
    ]
    rows, rejected, _ = read_tar(write(tmp_path, tar_of(members)), id_field="json.id")
    assert ids(rows) == ["12345678901234567890123", "1.50"]
    assert faults(rejected) == [
        ("a.tar#3", "missing field"),
        ("a.tar#4", "malformed record"),
        ("a.tar#5", "missing field"),
        ("a.tar#6", "not UTF-8"),
    ]
    assert rejected[0]["file"]["offset"] == rows[1]["file"]["offset"] + 1024, "the content that it would be"
    assert "'json.id' is null" in rejected[2]["detail"]


def test_a_field_that_no_key_has_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, tar_of({"1.png": PNG[0], "1.json": b'{"caption": "x"}', "1.txt": b"y"}))
    with pytest.raises(
        InputError, match=r"no record has the field 'json.title'; the fields are 'json', 'json.caption'"
    ):
        read_tar(path, keep=("json.title",))


def test_windows_of_recordings_have_ids_behind_those_of_keys(tmp_path: Path) -> None:
    sound = sound_file("FLAC", samples=8000, rate=8000)
    data = tar_of(
        {"a/1.flac": sound, "a/1.json": b'{"id": "one"}', "a/2.wav": b"", "a/3.wav": b"no sound", "a/4.jpg": b""}
    )
    for suffix in ("", ".gz"):
        path = write(tmp_path, COMPRESS[suffix](data), f"a.tar{suffix}")
        rows, rejected, _ = read_tar(path, StubSounds(), options={"window": "0.5"})
        assert ids(rows) == [f"{path.name}#a/1#t=0,0.5", f"{path.name}#a/1#t=0.5,1"]
        assert [content_of(row) for row in rows] == [sound, sound]
        expected = [("a/2", "empty file"), ("a/3", "not decodable"), ("a/4", "missing field")]
        assert faults(rejected) == [(f"{path.name}#{key}", reason) for key, reason in expected]
    rows, _, _ = read_tar(tmp_path / "a.tar", StubSounds(), options={"window": "0.5"}, id_field="json.id")
    assert ids(rows) == ["one#t=0,0.5", "one#t=0.5,1"]


def test_what_memory_does_not_take_is_read_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long recording in a compressed tar is copied before it is looked at."""
    monkeypatch.setattr(StubSounds, "max_held", 1000)
    sounds = [sound_file("FLAC", samples=samples, rate=8000) for samples in (4000, 6000)]
    tar = tar_of([("1.flac", sounds[0]), ("1.txt", b"x"), ("2.flac", sounds[1]), ("3.wav", bytes(5000))])
    for suffix in ("", ".gz"):
        path = write(tmp_path, COMPRESS[suffix](tar), f"a.tar{suffix}")
        rows, rejected, _ = read_tar(path, StubSounds(), keep=("txt",))
        assert [(row["id"], row["txt"], content_of(row)) for row in rows] == [
            (f"a.tar{suffix}#1", "x", sounds[0]),
            (f"a.tar{suffix}#2", None, sounds[1]),
        ]
        assert [row["content_hash"] for row in rows] == [
            row["content_hash"] for row in read_tar(tmp_path / "a.tar", StubSounds())[0]
        ]
        assert faults(rejected) == [(f"a.tar{suffix}#3", "not decodable")]


def test_keys_that_come_again_and_keys_without_content_are_rejected(tmp_path: Path) -> None:
    """The first member of a key with a suffix of the head is its content; what is in between may be no file."""
    members = [
        ("1.png", PNG[0]),
        ("1.jpg", PNG[1]),
        ("2.txt", b"a caption without a picture"),
        ("1.png", PNG[2]),
        ("3.png", PNG[3]),
        ("README.md", b"x"),
        ("4.png", b"no picture"),
        ("5.png", b""),
        ("6.png", bytes(2000)),
    ]
    rows, rejected, _ = read_tar(write(tmp_path, tar_of(members)), limit=1999)
    assert ids(rows) == ["a.tar#1", "a.tar#3"]
    assert [content_of(row) for row in rows] == [PNG[0], PNG[3]]
    assert faults(rejected) == [
        ("a.tar#2", "missing field"),
        ("a.tar#1", "duplicate key"),
        ("a.tar#README", "missing field"),
        ("a.tar#4", "not decodable"),
        ("a.tar#5", "empty file"),
        ("a.tar#6", "too large"),
    ]
    assert rejected[0]["detail"] == "no member of the key is an image by its suffix"
    assert [row["file"]["uri"] for row in rejected] == [str(tmp_path / "a.tar")] * 6


def test_what_is_not_a_file_is_passed_over_and_counted(tmp_path: Path) -> None:
    """Directories, links and devices do not part the members of a key, and nothing is written to their paths."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, (name, kind) in enumerate(
            [("d", tarfile.DIRTYPE), ("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("p", tarfile.FIFOTYPE)]
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
            for suffix, data in ((".txt", b"x"), (".png", PNG[number])):
                info = tarfile.TarInfo(f"../../{number}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                tar.addfile(tarfile.TarInfo("._x.png"))
    rows, rejected, notes = read_tar(write(tmp_path, out.getvalue()))
    assert ids(rows) == [f"a.tar#../../{number}" for number in range(4)]
    assert not rejected
    assert notes == [
        "12 members of 1 tar were passed over as a directory, a link, a device, or without a suffix: a.tar"
    ]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.tar"]


def test_names_may_have_any_characters(tmp_path: Path) -> None:
    """What is not UTF-8 is spelled out; ustar's and star's prefixes, and a pax path, are parts of names."""
    names = [
        header(b"\xff\n\x1b[2J.png", len(PNG[0])),
        header(b"1.png", len(PNG[0]), at_345=b"front/part"),
        header(b"2.png", len(PNG[0]), at_345=b"front", at_476=b"1234567", at_508=b"tar\0"),
        pax(path="caf\u00e9/3.png".encode()) + header(b"short", len(PNG[0])),
        header(b"././@LongLink", 8, b"L") + padded(b"4/4.png\0") + header(b"4", len(PNG[0])),
        header(b"K", 8, b"K") + padded(b"link") + header(b"5.png", len(PNG[0])),
        header(b"g", 14, b"g") + padded(b"14 comment=abc") + header(b"6.png", len(PNG[0]), b"\0"),
        header(b"7.png", len(PNG[0]), at_257=bytes(8)),
    ]
    names[6] = header(b"g", 15, b"g") + padded(b"15 comment=abc\n") + header(b"6.png", len(PNG[0]), b"\0")
    path = write(tmp_path, b"".join(name + padded(PNG[0]) for name in names) + END)
    rows, rejected, _ = read_tar(path)
    assert not rejected
    keys = ["\\xff\n\x1b[2J", "front/part/1", "front/2", "caf\u00e9/3", "4/4", "5", "6", "7"]
    assert ids(rows) == [f"a.tar#{key}" for key in keys]
    assert {content_of(row) for row in rows} == {PNG[0]}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("number", [b"\x80" + bytes(3) + b"\xff" * 8, b"\x80" + b"\xff" * 11, None])
def test_sizes_that_no_column_takes_are_damage(tmp_path: Path, suffix: str, number: bytes | None) -> None:
    """Of a header or of pax, whatever the rows before it are."""
    huge = header(b"2.png", 0, at_124=number) if number else pax(size=b"9" * 19) + header(b"2.png", 0)
    path = tmp_path / f"a.tar{suffix}"
    path.write_bytes(COMPRESS[suffix](header(b"1.png", len(PNG[1])) + padded(PNG[1]) + huge + padded(PNG[2]) + END))
    rows, rejected, _ = read_tar(path)
    assert [row["id"] for row in rows] == [f"a.tar{suffix}#1"]
    assert [row["reason"] for row in rejected] == ["damaged shard"]
    assert "of too many bytes: copy the tar again" in rejected[0]["detail"]


def test_sizes_may_be_binary_or_of_pax(tmp_path: Path) -> None:
    """Members over 8 GiB have such sizes; here the file is one with a hole."""
    size = 9 << 30
    for number, big in enumerate(
        [
            signed(header(b"1.png", 0)[:124] + b"\x80" + size.to_bytes(11, "big") + header(b"1.png", 0)[136:]),
            pax(size=b"%d" % size) + header(b"1.png", 0),
        ]
    ):
        path = tmp_path / f"{number}.tar"
        with path.open("wb") as file:
            file.write(big)
            file.seek(size, os.SEEK_CUR)
            file.write(header(b"2.png", len(PNG[0])) + padded(PNG[0]) + END)
        rows, rejected, _ = read_tar(path)
        assert ids(rows) == [f"{number}.tar#2"]
        assert content_of(rows[0]) == PNG[0]
        assert faults(rejected) == [(f"{number}.tar#1", "too large")]


def sparse_forms(data: bytes) -> dict[str, bytes]:
    """Return a sparse member in each format: 1,000 zeros, `data` in two pieces with 5,000 zeros between, 300 zeros."""
    size, half = 6300 + len(data), len(data) // 2
    regions = [(1000, half), (6000 + half, len(data) - half)]
    numbers = [number for region in regions for number in region]
    entries = b"".join(b"%011o\0" % number for number in numbers)
    stored, name = len(data), b"1.png"
    lines = b"".join(b"%d\n" % number for number in [2, *numbers])
    repeated = [
        (f"GNU.sparse.{key}", b"%d" % value)
        for region in regions
        for key, value in zip(("offset", "numbytes"), region, strict=True)
    ]
    real = b"%011o\0" % size
    return {
        "gnu": header(name, stored, b"S", at_386=entries, at_483=real) + padded(data),
        "gnu-extended": header(name, stored, b"S", at_386=entries[:24], at_482=b"\1", at_483=real)
        + padded(entries[24:])
        + padded(data),
        "0.0": pax_of([("GNU.sparse.size", b"%d" % size), ("GNU.sparse.numblocks", b"2"), *repeated])
        + header(name, stored)
        + padded(data),
        "0.1": pax_of(
            [
                ("GNU.sparse.size", b"%d" % size),
                ("GNU.sparse.map", b",".join(b"%d" % number for number in numbers)),
                ("GNU.sparse.name", name),
            ]
        )
        + header(b"GNUSparseFile.1/1.png", stored)
        + padded(data),
        "1.0": pax(
            GNU__sparse__major=b"1", GNU__sparse__minor=b"0", GNU__sparse__name=name, GNU__sparse__realsize=b"%d" % size
        )
        + header(b"GNUSparseFile.1/1.png", 512 + stored)
        + padded(lines)
        + padded(data),
    }


def accept_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the stub head take any bytes as a picture."""
    monkeypatch.setattr(StubPictures, "examine", lambda self, opened, size, settings: None)
    monkeypatch.setattr(StubPictures, "parts_of", lambda self, examined, digest, settings, entry=None: [_part(digest)])


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("form", sparse_forms(b"ab"))
def test_sparse_members_have_the_zeros_of_their_holes(
    tmp_path: Path, form: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are copied, and the next member is found."""
    accept_any_bytes(monkeypatch)
    data = os.urandom(1500)
    tar = sparse_forms(data)[form] + header(b"2.png", len(PNG[0])) + padded(PNG[0]) + END
    path = write(tmp_path, COMPRESS[suffix](tar), f"a.tar{suffix}")
    rows, rejected, _ = read_tar(path)
    assert not rejected
    expected = bytes(1000) + data[:750] + bytes(5000) + data[750:] + bytes(300)
    assert [content_of(row) for row in rows] == [expected, PNG[0]]
    assert (rows[0]["file"]["offset"], rows[0]["file"]["size"]) == (None, len(expected))
    if not suffix:
        with tarfile.open(path) as tar_file:
            reference = tar_file.extractfile(tar_file.getmembers()[0])
            assert reference is not None
            assert reference.read() == expected


def _part(digest: bytes) -> Any:
    from audioclip_beam.model.media import Part

    return Part(digest, "", (), 1)


def test_gnu_tar_writes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse files of GNU tar, in each of its formats, with more holes than a header has place for."""
    accept_any_bytes(monkeypatch)
    with (tmp_path / "1.png").open("wb") as file:
        for number in range(40):
            file.seek(number * 65_536)
            file.write(PNG[0])
    expected = (tmp_path / "1.png").read_bytes()
    for form in ("gnu", "posix", "oldgnu"):
        subprocess.run(
            ["tar", "-S", f"--format={form}", "-cf", f"{form}.tar", "./1.png"], cwd=tmp_path, check=True, timeout=60
        )
        rows, rejected, _ = read_tar(tmp_path / f"{form}.tar")
        assert not rejected
        assert ids(rows) == [f"{form}.tar#./1"]
        assert content_of(rows[0]) == expected


def test_wrong_maps_and_bombs_of_holes_are_rejected(tmp_path: Path) -> None:
    """The members behind them are read."""
    real = b"%011o\0" % 4000
    overlapping = b"".join(b"%011o\0" % number for number in (0, 600, 500, 400))
    outside = b"".join(b"%011o\0" % number for number in (3500, 1000))
    bomb = pax(GNU__sparse__map=b"0,512", GNU__sparse__size=b"%d" % (1 << 60)) + header(b"3.png", 512)
    data = (
        header(b"1.png", 1000, b"S", at_386=overlapping, at_483=real)
        + padded(bytes(1000))
        + header(b"2.png", 1000, b"S", at_386=outside, at_483=real)
        + padded(bytes(1000))
        + bomb
        + bytes(512)
        + header(b"4.png", 512, b"S", at_386=b"%011o\0" % 100, at_483=real)
        + bytes(512)
        + header(b"5.png", len(PNG[0]))
        + padded(PNG[0])
        + END
    )
    rows, rejected, _ = read_tar(write(tmp_path, data))
    assert ids(rows) == ["a.tar#5"]
    assert faults(rejected) == [(f"a.tar#{number}", "not decodable") for number in (1, 2, 3, 4)]


def test_concatenated_tars_are_read_to_the_end_of_the_file(tmp_path: Path) -> None:
    """Python's tarfile stops at the first end blocks."""
    first, second = tar_of({"1.png": PNG[0]}), tar_of({"2.png": PNG[1]})
    for suffix in ("", ".gz"):
        path = write(tmp_path, COMPRESS[suffix](first) + COMPRESS[suffix](second), f"a.tar{suffix}")
        rows, rejected, notes = read_tar(path)
        assert ids(rows) == [f"{path.name}#1", f"{path.name}#2"]
        assert [content_of(row) for row in rows] == PNG[:2]
        assert not rejected
        assert notes == [f"1 tar goes on behind end blocks, as concatenated ones do: {path.name}"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damage_keeps_the_rows_before_it(tmp_path: Path, suffix: str) -> None:
    """A broken header, a missing end and bytes behind the end are damage; a tar that ends in time is not."""
    whole = tar_of({f"{number}.png": PNG[number] for number in range(10)})
    second = 5 * 1024
    broken = whole[: second + 150] + b"7" + whole[second + 151 :]
    cases = {
        "broken": (broken, 5, f"the header at byte {second:,} is damaged: copy the tar again"),
        "cut in a header": (whole[: second + 100], 5, f"the tar ends inside of the header at byte {second:,}"),
        "cut before a header": (whole[:second], 5, "the tar ends without its end blocks, as if it were cut off"),
        "cut in a member": (whole[: second + 600], 5, "the tar ends at byte"),
        "followed by bytes": (whole + b"rest" * 200, 10, f"the header at byte {len(whole):,} is damaged"),
        "followed by few bytes": (whole + b"rest", 10, "the tar ends inside of the header at byte"),
        "empty": (b"", 0, "the tar ends without its end blocks"),
        "text": (b"no tar" * 1000, 0, "the content is not a tar: its first block is not the header of a member"),
        "Parquet": (b"PAR1\0\0\0\0" * 100, 0, "the content is Parquet, not tar: rename it to a.parquet"),
    }
    for name, (data, count, detail) in cases.items():
        path = write(tmp_path, COMPRESS[suffix](data), f"a.tar{suffix}")
        rows, rejected, _ = read_tar(path)
        assert len(rows) == count, name
        (damage,) = rejected
        assert (damage["reason"], damage["row"]) == ("damaged shard", str(count)), name
        if name != "Parquet" or not suffix:
            assert damage["detail"].startswith(detail), name
    for data in (whole, whole + bytes(7), whole[: 10 * 1024 + 512]):
        rows, rejected, _ = read_tar(write(tmp_path, COMPRESS[suffix](data), f"a.tar{suffix}"))
        assert (len(rows), rejected) == (10, [])
    rows, rejected, notes = read_tar(write(tmp_path, COMPRESS[suffix](END), f"a.tar{suffix}"))
    assert (rows, rejected) == ([], [])
    assert notes == [f"no row was read from 1 shard: a.tar{suffix}"]


def test_a_key_whose_fields_may_be_lost_is_not_a_row(tmp_path: Path) -> None:
    """A tar that is cut behind a picture may have had its caption."""
    whole = tar_of([("1.png", PNG[0]), ("1.txt", b"x"), ("2.png", PNG[1])])
    path = write(tmp_path, whole[: 6 * 512])
    assert ids(read_tar(path)[0]) == ["a.tar#1", "a.tar#2"]
    rows, rejected, _ = read_tar(path, keep=("txt",))
    assert ids(rows) == ["a.tar#1"]
    assert faults(rejected) == [(None, "damaged shard")]


def test_a_plain_tar_with_the_suffix_of_a_compressed_one_is_named(tmp_path: Path) -> None:
    _, rejected, _ = read_tar(write(tmp_path, tar_of({"1.png": PNG[0]}), "a.tar.gz"))
    assert rejected[0]["detail"] == "the content is a tar archive, not gzip: rename it to a.tar"
    _, rejected, _ = read_tar(write(tmp_path, COMPRESS[".gz"](tar_of({"1.png": PNG[0]})), "a.tar"))
    assert rejected[0]["detail"] == "the content is gzip, not tar: rename it to a.tar.gz"


def test_suffixes_and_heads_of_tars(tmp_path: Path) -> None:
    """Short suffixes are known, in any case; a tar needs a head of media; a name without a suffix, --input_format."""
    data = tar_of({"1.png": PNG[0]})
    for name, suffix in (
        ("a.TGZ", ".gz"),
        ("a.tbz2", ".bz2"),
        ("a.txz", ".xz"),
        ("a.tzst", ".zst"),
        ("a.TAR.GZ", ".gz"),
    ):
        rows, rejected, _ = read_tar(write(tmp_path, COMPRESS[suffix](data), name))
        assert (ids(rows), rejected) == ([f"{name}#1"], [])
    assert ids(read_tar(write(tmp_path, data, "plain"), input_format="tar")[0]) == ["plain#1"]
    path = write(tmp_path, data)
    with pytest.raises(InputError, match="give --head image or --head audio, or unpack it"):
        find_shards([str(path)])


def test_a_large_member_is_read_in_pieces(tmp_path: Path) -> None:
    """A recording of 250 MB, a hole on the disk, takes no memory, in the tar and when it is copied."""
    seconds, rate = 500, 250_000
    size = 44 + 2 * seconds * rate
    out = io.BytesIO()
    soundfile.write(out, [0.0], rate, format="WAV", subtype="PCM_16")
    wav = bytearray(out.getvalue()[:44])
    wav[4:8], wav[40:44] = (size - 8).to_bytes(4, "little"), (size - 44).to_bytes(4, "little")
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header(b"1.wav", size) + wav)
        file.seek(-(-size // 512) * 512 + 512)
        file.write(header(b"1.txt", 1) + padded(b"x") + END)
    tracemalloc.start()
    try:
        rows, rejected, _ = read_tar(path, StubSounds(), keep=("txt",), options={"window": "100"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not rejected
    assert ids(rows) == [f"a.tar#1#t={start},{start + 100}" for start in range(0, 500, 100)]
    assert {row["txt"] for row in rows} == {"x"}
    assert peak < 40 << 20
