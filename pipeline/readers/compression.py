"""Bytes and lines of shards, in pieces of bounded size: damage is reported after everything that could be read."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

import zstandard

PIECE = 1 << 20


# If a call meets bad data, a decompressor withholds what the same call had already decompressed: calls are small.
READ, FEED, STEP = 1 << 16, 1 << 10, 1 << 12

XZ_MEMORY = 256 << 20  # an xz file states how much it needs, 65 MiB for `xz -9`

BLOCK_ROWS = 4096

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".xz": "xz", ".gzip": "gzip"}

_BOM = b"\xef\xbb\xbf"

# UTF-32 comes first: in little endian its mark begins with that of UTF-16.
_OTHER_BOMS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class DamagedShard(Exception):
    """A shard whose rest cannot be read; the message says why."""


class BadHeader(DamagedShard):
    """A header that cannot name the fields of a shard; the message says what to change."""


class WrongEncoding(DamagedShard):
    """A text file that is not UTF-8 as a whole; the message says how to convert it."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def pieces(handle: IO[bytes], compression: str | None) -> Iterator[bytes]:
    """Yield the decompressed bytes of `handle`, at most a few MiB at a time. Raises DamagedShard if they end too early."""
    if compression is None:
        while data := handle.read(PIECE):
            yield data
        return
    parts, size = list[bytes](), 0
    try:
        for part in _decompressed(handle, compression):
            parts.append(part)
            size += len(part)
            if size >= PIECE:
                yield b"".join(parts)
                parts, size = [], 0
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError, MemoryError) as error:
        if parts:
            yield b"".join(parts)
        raise DamagedShard(f"{compression}: {error}") from error
    if parts:
        yield b"".join(parts)


def _decompressed(handle: IO[bytes], compression: str) -> Iterator[bytes]:
    new, drain = _CODECS[compression]
    current: _Decompressor | None = None
    ended = False  # whether a stream has: others may follow it, and zeros as padding
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
    # More output may come after all data is consumed; after the end of the stream, `unconsumed_tail` has the rest, too.
    while not current.eof and (data or out):
        out = current.decompress(data, STEP)
        data = current.unconsumed_tail
        yield out


def _drain_bzip2(current: bz2.BZ2Decompressor, data: bytes) -> Iterator[bytes]:
    try:
        yield from _drain(current, data)
    except OSError as error:  # without an errno: bad data, not a failing disk
        raise ValueError(str(error)) from error


def _drain(current: bz2.BZ2Decompressor | lzma.LZMADecompressor, data: bytes) -> Iterator[bytes]:
    while not current.eof and (data or not current.needs_input):
        yield current.decompress(data, STEP)
        data = b""


def _drain_zstd(current: zstandard.ZstdDecompressionObj, data: bytes) -> Iterator[bytes]:
    # zstandard has no limit on the output of a call; the densest FEED bytes expand to about 32 MiB.
    yield current.decompress(data)


_CODECS: dict[str, tuple[Callable[[], _Decompressor], Callable[..., Iterator[bytes]]]] = {
    "gzip": (lambda: zlib.decompressobj(wbits=31), _drain_zlib),
    "bzip2": (bz2.BZ2Decompressor, _drain_bzip2),
    "xz": (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY), _drain),
    "zstd": (lambda: zstandard.ZstdDecompressor().decompressobj(), _drain_zstd),
}


def line_blocks(handle: IO[bytes], compression: str | None, limit: int) -> Iterator[list[bytes | None]]:
    r"""Yield lines without their "\n", up to BLOCK_ROWS at a time; a line over `limit` bytes, never held whole, is None.

    A byte order mark is removed. Raises WrongEncoding for UTF-16 and UTF-32, and DamagedShard, without the last line, if
    the bytes end too early.
    """
    rest, skipping, first = b"", False, True
    for piece in pieces(handle, compression):
        encoding = next((name for mark, name in _OTHER_BOMS.items() if piece.startswith(mark)), None)
        if encoding and first and not rest:
            raise WrongEncoding(
                f"the text is {encoding} and must be UTF-8: convert it, as in iconv -f {encoding} -t UTF-8 OLD > NEW"
            )
        block: list[bytes | None] = list(piece.split(b"\n"))
        block[0] = rest + (block[0] or b"")
        rest = block.pop() or b""
        if block:
            if first:
                block[0], first = (block[0] or b"").removeprefix(_BOM), False
            block = _drop_long(block, limit)
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
    elif rest := rest.removeprefix(_BOM) if first else rest:
        yield _drop_long([rest], limit)


def _drop_long(block: list[bytes | None], limit: int) -> list[bytes | None]:
    if max(len(line or b"") for line in block) <= limit:
        return block
    return [None if line is not None and len(line.removesuffix(b"\r")) > limit else line for line in block]
