"""Bytes out of compressed shards, in bounded pieces: everything that can be read comes out before damage is told."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

import zstandard

PIECE = 1 << 20
# zstd cannot be asked for at most so many bytes; so few at a time keep even its densest blocks below some 32 MiB.
ZSTD_FEED = 1 << 10

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".xz": "xz"}


class DamagedShard(Exception):
    """The rest of a shard cannot be read; the text says what is wrong with it."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def pieces(handle: IO[bytes], compression: str | None) -> Iterator[bytes]:
    """The decompressed bytes of `handle`, some MiB at a time; DamagedShard where they end before they should."""
    if compression is None:
        while data := handle.read(PIECE):
            yield data
        return
    try:
        yield from _decompressed(handle, compression)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError) as error:
        raise DamagedShard(f"{compression}: {error}") from error
    except OSError as error:  # bz2 tells bad data by an OSError without a number
        if error.errno is not None:
            raise
        raise DamagedShard(f"{compression}: {error}") from error


def _decompressed(handle: IO[bytes], compression: str) -> Iterator[bytes]:
    new, drain = _CODECS[compression]
    current: _Decompressor | None = None
    waiting = b""
    while waiting or (waiting := handle.read(PIECE)):
        if current is None:
            if not waiting.strip(b"\0"):  # padding behind the last stream
                waiting = b""
                continue
            current = new()
        feed, waiting = (waiting[:ZSTD_FEED], waiting[ZSTD_FEED:]) if compression == "zstd" else (waiting, b"")
        yield from drain(current, feed)
        if current.eof:
            waiting = current.unused_data + waiting
            current = None
    if current is not None:
        raise EOFError("the compressed stream ends before its end marker")


def _drain_zlib(current: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    while data:
        yield current.decompress(data, PIECE)
        data = current.unconsumed_tail


def _drain(current: bz2.BZ2Decompressor | lzma.LZMADecompressor, data: bytes) -> Iterator[bytes]:
    while not current.eof and (data or not current.needs_input):
        yield current.decompress(data, PIECE)
        data = b""


def _drain_zstd(current: zstandard.ZstdDecompressionObj, data: bytes) -> Iterator[bytes]:
    yield current.decompress(data)


_CODECS: dict[str, tuple[Callable[[], _Decompressor], Callable[..., Iterator[bytes]]]] = {
    "gzip": (lambda: zlib.decompressobj(wbits=31), _drain_zlib),
    "bzip2": (bz2.BZ2Decompressor, _drain),
    "xz": (lzma.LZMADecompressor, _drain),
    "zstd": (lambda: zstandard.ZstdDecompressor().decompressobj(), _drain_zstd),
}
