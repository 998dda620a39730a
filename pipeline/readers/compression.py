"""Bytes and lines out of shards, in bounded pieces: everything that can be read comes out before damage is told."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

import zstandard

PIECE = 1 << 20


# A decompressor that meets bad data keeps what the same call had made of the data before it: calls are small.
READ, FEED, STEP = 1 << 16, 1 << 10, 1 << 12

XZ_MEMORY = 256 << 20  # xz files say themselves how much they need; `xz -9` says 65 MiB

BLOCK_ROWS = 4096

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".xz": "xz"}

_BOM, _OTHER_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class DamagedShard(Exception):
    """The rest of a shard cannot be read; the text says what is wrong with it."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def pieces(handle: IO[bytes], compression: str | None) -> Iterator[bytes]:
    """The decompressed bytes of `handle`, a few MiB at most at a time; DamagedShard where they end too early."""
    if compression is None:
        while data := handle.read(PIECE):
            yield data
        return
    gathered, size = list[bytes](), 0
    try:
        for part in _decompressed(handle, compression):
            gathered.append(part)
            size += len(part)
            if size >= PIECE:
                yield b"".join(gathered)
                gathered, size = [], 0
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError, MemoryError) as error:
        if gathered:
            yield b"".join(gathered)
        raise DamagedShard(f"{compression}: {error}") from error
    if gathered:
        yield b"".join(gathered)


def _decompressed(handle: IO[bytes], compression: str) -> Iterator[bytes]:
    new, drain = _CODECS[compression]
    current: _Decompressor | None = None
    ended = False  # a stream did: others may follow, and zeros that pad them
    while data := handle.read(READ):
        for start in range(0, len(data), FEED):
            waiting = data[start : start + FEED]
            while waiting := waiting.lstrip(b"\0") if ended and current is None else waiting:
                current = current or new()
                yield from drain(current, waiting)
                waiting = b""
                if current.eof:
                    waiting, current, ended = current.unused_data, None, True
    if current is not None:
        raise EOFError("the compressed stream ends before its end marker")


def _drain_zlib(current: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    out = b"more"
    # With all data taken there may still be output; behind the stream's end, what is left stands in `unconsumed_tail` too.
    while not current.eof and (data or out):
        out = current.decompress(data, STEP)
        data = current.unconsumed_tail
        yield out


def _drain_bzip2(current: bz2.BZ2Decompressor, data: bytes) -> Iterator[bytes]:
    try:
        yield from _drain(current, data)
    except OSError as error:  # without a number: bad data, not a failing disk
        raise ValueError(str(error)) from error


def _drain(current: bz2.BZ2Decompressor | lzma.LZMADecompressor, data: bytes) -> Iterator[bytes]:
    while not current.eof and (data or not current.needs_input):
        yield current.decompress(data, STEP)
        data = b""


def _drain_zstd(current: zstandard.ZstdDecompressionObj, data: bytes) -> Iterator[bytes]:
    # This one cannot be asked for at most so many bytes; of FEED bytes even its densest blocks make only some 32 MiB.
    yield current.decompress(data)


_CODECS: dict[str, tuple[Callable[[], _Decompressor], Callable[..., Iterator[bytes]]]] = {
    "gzip": (lambda: zlib.decompressobj(wbits=31), _drain_zlib),
    "bzip2": (bz2.BZ2Decompressor, _drain_bzip2),
    "xz": (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY), _drain),
    "zstd": (lambda: zstandard.ZstdDecompressor().decompressobj(), _drain_zstd),
}


def line_blocks(handle: IO[bytes], compression: str | None, limit: int) -> Iterator[list[bytes | None]]:
    r"""Lines without their "\n", up to BLOCK_ROWS at a time; None for one over `limit` bytes, which is never held whole.

    A byte order mark is taken off. Where the bytes break off, the line they break off in is no line, and DamagedShard
    is raised, as it is for UTF-16.
    """
    rest, skipping, first = b"", False, True
    for piece in pieces(handle, compression):
        if first and not rest and piece.startswith(_OTHER_BOMS):
            raise DamagedShard("the text is UTF-16, and must be UTF-8: convert it, as with iconv")
        block: list[bytes | None] = list(piece.split(b"\n"))
        block[0] = rest + (block[0] or b"")
        rest = block.pop() or b""
        if block:
            if first:
                block[0], first = (block[0] or b"").removeprefix(_BOM), False
            block = _measured(block, limit)
            if skipping:
                block[0], skipping = None, False
        if skipping:
            rest = b""
        elif len(rest) > limit + len(_BOM + b"\r"):
            rest, skipping = b"", True
        for start in range(0, len(block), BLOCK_ROWS):
            yield block[start : start + BLOCK_ROWS]
    if skipping:
        yield [None]
    elif rest:
        yield _measured([rest.removeprefix(_BOM) if first else rest], limit)


def _measured(block: list[bytes | None], limit: int) -> list[bytes | None]:
    if max(len(line or b"") for line in block) <= limit:
        return block
    return [None if line is not None and len(line.removesuffix(b"\r")) > limit else line for line in block]
