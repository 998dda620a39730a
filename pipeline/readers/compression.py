"""Bytes and lines of shards, in pieces of bounded size: damage is reported after everything that could be read."""

from __future__ import annotations

import bz2
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

import numpy as np
import zstandard

from ...model.messages import OneLineError
from .notes import Notice, ShardNotes
from .recognize import HEAD_BYTES, find_compression_fault, find_encoding, find_fault, is_page
from .shard import Shard

PIECE = 1 << 20


# If a call meets bad data, a decompressor withholds what the same call had already decompressed: calls are small.
READ, FEED, STEP = 1 << 16, 1 << 10, 1 << 12

XZ_MEMORY = 256 << 20  # an xz file states how much it needs, 65 MiB for `xz -9`

BLOCK_ROWS = 4096

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".xz": "xz", ".gzip": "gzip"}

SHORT_SUFFIXES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".tzst": ".tar.zst", ".txz": ".tar.xz"}

_BOM = b"\xef\xbb\xbf"


class DamagedShard(OneLineError):
    """A shard whose rest cannot be read; the message says why."""


class BadHeader(DamagedShard):
    """A beginning, such as a header, by which no record of a shard can be read; the message says what to change."""


class WrongEncoding(DamagedShard):
    """A text file that is not UTF-8 as a whole; the message says how to convert it."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def pieces(handle: IO[bytes], shard: Shard) -> Iterator[bytes]:
    """Yield the decompressed bytes of `handle`, at most a few MiB at a time. Raises DamagedShard if they end too early."""
    if shard.compression is None:
        while data := handle.read(PIECE):
            yield data
        return
    parts, size = list[bytes](), 0
    try:
        for part in _decompressed(handle, shard):
            parts.append(part)
            size += len(part)
            if size >= PIECE:
                yield b"".join(parts)
                parts, size = [], 0
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError, MemoryError) as error:
        if parts:
            yield b"".join(parts)
        raise DamagedShard(f"{shard.compression}: {error}") from error
    if parts:
        yield b"".join(parts)


def _decompressed(handle: IO[bytes], shard: Shard) -> Iterator[bytes]:
    new, drain = _CODECS[str(shard.compression)]
    current: _Decompressor | None = None
    ended = False  # whether a stream has: others may follow it, and zeros as padding
    while data := handle.read(READ):
        if current is None and not ended and (fault := find_compression_fault(data, shard)):
            raise DamagedShard(fault)
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


def line_blocks(handle: IO[bytes], shard: Shard, limit: int, notes: ShardNotes) -> Iterator[list[bytes | None]]:
    r"""Yield lines without their "\n", up to BLOCK_ROWS at a time; a line over `limit` bytes, never held whole, is None.

    A byte order mark is removed. If the first block has "\r" and no "\n", "\r" ends lines, too; any other one that is not
    before a "\n" is text, and is noted. Raises WrongEncoding for UTF-16 and UTF-32, and DamagedShard if the content is not
    text, or, without the last line, if the bytes end too early.
    """
    rest, skipping, number = b"", False, 0
    for piece in _text_pieces(handle, shard, notes):
        block: list[bytes | None] = list(piece.split(b"\n"))
        block[0] = rest + (block[0] or b"")
        returns = b"\r" in rest or _has_lone_return(piece)
        rest = block.pop() or b""
        if block:
            if returns:
                _note_returns(block, number, shard, notes)
            block = _drop_long(block, limit)
            if skipping:
                block[0], skipping = None, False
            number += len(block)
        if skipping:
            rest = b""
        elif len(rest) > limit + len(b"\r"):
            rest, skipping = b"", True
        for start in range(0, len(block), BLOCK_ROWS):
            yield block[start : start + BLOCK_ROWS]
    if skipping:
        yield [None]
    elif rest:
        _note_returns([rest], number, shard, notes)
        yield _drop_long([rest], limit)


def _text_pieces(handle: IO[bytes], shard: Shard, notes: ShardNotes) -> Iterator[bytes]:
    r"""Yield the pieces of a text without its byte order mark; raise DamagedShard if its first bytes are not text.

    If "\r" ends its lines, "\n" does in what is yielded.
    """
    found, first = pieces(handle, shard), b""
    damage: DamagedShard | None = None
    try:
        while len(first) < HEAD_BYTES and (piece := next(found, b"")):
            first += piece
    except DamagedShard as error:  # raised after what precedes it
        damage = error
    _check_head(first[:HEAD_BYTES], shard, notes)
    first = first.removeprefix(_BOM)
    notes.head = first[:HEAD_BYTES]
    found = itertools.chain([first], found)
    if b"\n" not in first and b"\r" in first[:-1]:
        notes.line_end, found = "\r", _without_returns(found)
    yield from found
    if damage:
        raise damage


def _check_head(head: bytes, shard: Shard, notes: ShardNotes) -> None:
    """Raise DamagedShard if these first bytes are not those of a text in UTF-8, and note a page of HTML."""
    if encoding := find_encoding(head):
        raise WrongEncoding(
            f"the text is {encoding} and must be UTF-8: convert it, as in iconv -f {encoding} -t UTF-8 OLD > NEW"
        )
    if fault := find_fault(head, shard):
        raise DamagedShard(fault)
    if is_page(head.removeprefix(_BOM)):
        notes.add(Notice.PAGE)


def _without_returns(found: Iterator[bytes]) -> Iterator[bytes]:
    r"""Yield pieces in which "\r" and "\r\n" are "\n"."""
    tail = b""
    for piece in found:
        piece = tail + piece
        tail = b"\r" if piece.endswith(b"\r") else b""  # a "\n" may follow
        yield piece.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    yield tail.replace(b"\r", b"\n")


def _has_lone_return(piece: bytes) -> bool:
    r"""Return whether a "\r" in a piece is not before a "\n", or may not be."""
    if b"\r" not in piece:
        return False
    codes = np.frombuffer(piece, np.uint8)
    return bool(codes[-1] == 13 or ((codes[:-1] == 13) & (codes[1:] != 10)).any())


def _note_returns(block: list[bytes | None], before: int, shard: Shard, notes: ShardNotes) -> None:
    r"""Note the lines of a block, `before` lines into the shard, that contain a "\r" which is text."""

    def has_return(line: bytes) -> bool:
        return b"\r" in (line.rstrip(b"\r") if shard.quoting else line[:-1])  # several end a line of csv and tsv

    places = [place for place, line in enumerate(block, before + 1) if line and has_return(line)]
    if places:
        notes.lone_returns = True
        notes.add(Notice.RETURN, places[0], times=len(places))


def _drop_long(block: list[bytes | None], limit: int) -> list[bytes | None]:
    if max(len(line or b"") for line in block) <= limit:
        return block
    return [None if line is not None and len(line.removesuffix(b"\r")) > limit else line for line in block]
