"""Tars with any damage: every member is a row or a rejected one, or the shard is damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.shards import COMPRESS
from tests.support.tars import END, PNG, header, padded, pax, read_tar, signed, tar_of

COUNT = 6
BODY = b"".join(header(b"%d.png" % number, len(PNG[number])) + padded(PNG[number]) for number in range(2, COUNT))
EXTENDED = pax(path=b"0.png") + header(b"x", len(PNG[0])) + padded(PNG[0])
SPARSE = header(b"1.png", 512, b"S", at_386=b"%011o\0%011o\0" % (0, 512), at_483=b"%011o\0" % 512) + padded(PNG[1])
WHOLE = EXTENDED + SPARSE + BODY + END
HEADERS = [at for at in range(0, len(WHOLE) - len(END), 512) if WHOLE[at + 257 : at + 262] == b"ustar"]
SUFFIXES = st.sampled_from(["", ".gz", ".zst"])


def check(data: bytes, suffix: str = "", compressed: bytes | None = None, count: int | None = COUNT) -> None:
    """Read a tar; unless it is damaged, it has `count` keys, if that is known."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.tar{suffix}")
        path.write_bytes(COMPRESS[suffix](data) if compressed is None else compressed)
        rows, rejected, _ = read_tar(path)
        damaged = [row for row in rejected if row["reason"] == "damaged shard"]
        assert len(damaged) <= 1
        assert damaged[:1] == rejected[-1:] or not damaged
        if not damaged and count is not None:
            assert len(rows) + len(rejected) == count


def test_the_seed_is_whole() -> None:
    check(WHOLE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tar")
        path.write_bytes(WHOLE)
        rows, rejected, _ = read_tar(path)
        assert (len(rows), rejected) == (COUNT, [])


@pytest.mark.slow
@given(place=st.integers(0, 8 * len(WHOLE) - 1), suffix=SUFFIXES)
@settings(max_examples=150, deadline=None)
@example(place=4120, suffix="")
def test_a_bit_flips(place: int, suffix: str) -> None:
    """Pax records have no checksum: without its name there, the first member has none with a suffix, and is passed over."""
    data = bytearray(WHOLE)
    data[place // 8] ^= 1 << place % 8
    check(bytes(data), suffix, count=None if 512 <= place // 8 < 1024 else COUNT)


@pytest.mark.slow
@given(end=st.integers(0, len(WHOLE) - len(END)), suffix=SUFFIXES)
@settings(max_examples=80, deadline=None)
def test_the_end_is_cut_off(end: int, suffix: str) -> None:
    """What is lost is damage, also behind a compression that is whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.tar{suffix}")
        path.write_bytes(COMPRESS[suffix](WHOLE[:end]))
        assert read_tar(path)[1][-1]["reason"] == "damaged shard"


@pytest.mark.slow
@given(data=st.data(), suffix=SUFFIXES)
@settings(max_examples=150, deadline=None)
def test_headers_lie(data: st.DataObject, suffix: str) -> None:
    """Headers with any fields and the right checksum: names, sizes, types, maps."""
    tar = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(HEADERS))
        place = data.draw(st.sampled_from([0, 124, 156, 257, 345, 386, 482, 483, 508]) | st.integers(0, 511))
        value = data.draw(st.sampled_from([b"\x80" + bytes(4) + b"\xff" * 7, b"77777777777\0", b"x", b"g", b"L", b"S"])
                          | st.binary(max_size=12))  # fmt: skip
        value = value[: 512 - place]
        tar[at + place : at + place + len(value)] = value
        tar[at : at + 512] = signed(tar[at : at + 512])
    check(bytes(tar), suffix, count=None)


@pytest.mark.slow
@given(records=st.binary(max_size=200), suffix=SUFFIXES)
@settings(max_examples=100, deadline=None)
def test_pax_headers_lie(records: bytes, suffix: str) -> None:
    check(header(b"pax", len(records), b"x") + padded(records) + BODY + END, suffix, count=None)


@pytest.mark.slow
@given(data=st.binary(max_size=3000), suffix=SUFFIXES)
@settings(max_examples=80, deadline=None)
def test_any_bytes_behind_a_member(data: bytes, suffix: str) -> None:
    """They are damage, unless they are zeros."""
    check(tar_of({"1.png": PNG[0]})[:1024] + data, suffix, count=1)


@pytest.mark.slow
@given(place=st.integers(0, 10_000), value=st.integers(1, 255))
@settings(max_examples=80, deadline=None)
def test_a_compressed_tar_is_damaged(place: int, value: int) -> None:
    compressed = bytearray(COMPRESS[".gz"](WHOLE))
    compressed[place % len(compressed)] ^= value
    check(b"", ".gz", bytes(compressed))
