"""What the first bytes of a file are, if they are not what its suffix says, and how to make a shard of it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from .shard import Shard

HEAD_BYTES = 4096  # that are looked at

# Control characters that text does not contain; tabs, line ends, form feeds, escapes and DOS's end of file may occur.
_CONTROLS = bytes(sorted({*range(32), 127} - {*b"\t\n\v\f\r\x1a\x1b"}))
_FIT_FOR_TEXT = bytes(sorted({*range(256)} - {*_CONTROLS} - {*b"\t\n\v\f\r\x1a\x1b "}))

_PAGE = re.compile(
    rb"\s*(?:<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|title|meta|script|\?xml|error)\b",
    re.IGNORECASE | re.DOTALL,
)

_AS_TABLE = "write it as Parquet, csv or jsonl"
_UNPACK = "unpack it"
_TAR = "a tar archive"
_AS_CSV = "save it as CSV UTF-8"


class _Kind(NamedTuple):
    """A kind of file: how it begins, what it is called, and the remedy, in which {name} and {stem} are the shard's."""

    magic: bytes
    what: str
    remedy: str


# The first one that matches decides. Magics of letters alone could begin a text: what follows them must be binary.
_KINDS = (
    _Kind(rb"\x1f\x8b", "gzip", "rename it to {name}.gz"),
    _Kind(rb"(?:\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)", "zstd", "rename it to {name}.zst"),
    _Kind(rb"\xfd7zXZ\0", "xz", "rename it to {name}.xz"),
    _Kind(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", "bzip2", "rename it to {name}.bz2"),
    _Kind(rb"(?:\x1f[\x9d\xa0]|\x04\x22\x4d\x18|LZIP[\0\x01]|\xff\x06\0\0sNaPpY|\x5d\0\0[\0-\xff]{2}\xff{8})",
          "compressed in a form that is not read", "compress it as gzip or zstd"),
    _Kind(rb"PK\x03\x04[\0-\xff]{26,4000}(?:xl/|\[Content_Types\]\.xml)", "an Excel workbook (a zip archive)", _AS_CSV),
    _Kind(rb"PK\x03\x04[\0-\xff]{26}mimetypeapplication/vnd\.oasis", "an OpenDocument file (a zip archive)", _AS_CSV),
    _Kind(rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive", _UNPACK),
    _Kind(rb"(?:7z\xbc\xaf\x27\x1c|Rar!\x1a\x07)", "a 7z or RAR archive", _UNPACK),
    _Kind(rb"[^\0][\0-\xff]{256}ustar[\0 ]", _TAR, _UNPACK),
    _Kind(rb"PAR1(?=[\0-\xff]*[\0-\x08])", "Parquet", "rename it to {stem}.parquet"),
    _Kind(rb"PARE(?=[\0-\xff]*[\0-\x08])", "Parquet with an encrypted footer", "decrypt it"),
    _Kind(rb"(?:ARROW1\0|FEA1(?=[\0-\xff]*[\0-\x08])|\xff{4}[\0-\xff]{2}\0\0)", "an Arrow or Feather file", _AS_TABLE),
    _Kind(rb"Obj\x01", "Avro", _AS_TABLE),
    _Kind(rb"ORC(?=[\0-\xff]*[\0-\x08])", "ORC", _AS_TABLE),
    _Kind(rb"SQLite format 3\0", "an SQLite database", "export its table as csv, as in sqlite3 -csv -header"),
    _Kind(rb"(?:\x89HDF\r\n\x1a\n|\x93NUMPY|CDF[\x01\x02\x05])", "an HDF5, NetCDF or NumPy file", _AS_TABLE),
    _Kind(rb"\x80[\x02-\x05](?:[cX}\]\x8c\x95(.]|\Z)", "a Python pickle", _AS_TABLE),
    _Kind(rb"%PDF-\d", "PDF", "extract its text, as in pdftotext"),
    _Kind(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", "save it as CSV UTF-8 or as plain text"),
    _Kind(rb"\{\\rtf\d", "RTF", "save it as plain text"),
    _Kind(rb"\0\x05\x16[\0\x07]", "AppleDouble (metadata of macOS)", "leave it out"),
    _Kind(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v\d[^\0]{0,1000}\Z", "a pointer of Git LFS",
          "fetch the file, as in git lfs pull"),
    _Kind(rb"(?:/annex/objects/|(?:\.\./)*\.git/annex/objects/)[^\0\n]{0,1000}\s*\Z", "a pointer of git-annex",
          "fetch the file, as in git annex get"),
    _Kind(rb"# xet version \d[^\0]{0,1000}\Z", "a pointer of Xet", "fetch the file"),
    _Kind(rb"(?:\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF[\0-\xff]{4}WEBP)", "an image", "leave it out"),
    _Kind(rb"(?:RIFF[\0-\xff]{4}WAVE|fLaC\0|OggS\0|ID3[\x02-\x04]\0|\xff[\xf2\xf3\xfb]|\0\0[\0-\xff]{2}ftyp)",
          "audio or video", "leave it out"),
    _Kind(rb"(?:\x7fELF|MZ(?=[\0-\xff]{0,60}\0))", "a program", "leave it out"),
)  # fmt: skip
_MAGIC = re.compile(rb"|".join(b"(%s)" % kind.magic for kind in _KINDS))

# UTF-32 comes first: in little endian its mark begins with that of UTF-16.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def find_encoding(head: bytes) -> str | None:
    """Return the encoding of a text that is not UTF-8, by its byte order mark or by zeros between its letters."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" not in head or len(head) < 4:
        return None
    for encoding, width in (("UTF-32", 4), ("UTF-16", 2)):
        whole = head[: len(head) // width * width]
        for place, order in ((0, "LE"), (width - 1, "BE")):
            letters = whole[place::width]
            zeros = letters.count(b"\0")
            strays = (len(whole) - whole.count(b"\0")) - (len(letters) - zeros)  # bytes that in letters are zeros
            if zeros * 20 <= len(letters) and strays * 10 <= len(letters):
                return encoding + order
    return None


def find_fault(head: bytes, shard: Shard) -> str | None:
    """Return what the head of a shard is, if it is not a text, with a remedy, or None.

    `head` are the first HEAD_BYTES of the shard, decompressed, or all of it.
    """
    if fault := find_other_format(head, shard):
        return fault
    if _is_binary(head):
        return f"the content is binary, not {shard.format}: leave it out, or convert it to text in UTF-8"
    return None


def find_other_format(head: bytes, shard: Shard) -> str | None:
    """Return what the head of a shard is, if it is that of another known format, with a remedy, or None."""
    name, found = _plain_name(shard), _MAGIC.match(head)
    kind = _KINDS[(found.lastindex or 1) - 1] if found else None
    if not kind or (kind.what == _TAR and shard.format == "tar"):
        return None
    remedy = kind.remedy.format(name=name, stem=os.path.splitext(name)[0])
    if shard.compression:
        return (
            f"behind {shard.compression}, the content is {kind.what}, not {shard.format}: decompress it, and {remedy}"
        )
    return f"the content is {kind.what}, not {shard.format}: {remedy}"


def find_compression_fault(start: bytes, shard: Shard) -> str | None:
    """Return what a shard is whose first bytes are not those of its compression, with a remedy, or None."""
    start, name = start[:HEAD_BYTES], _plain_name(shard)
    found = _MAGIC.match(start)
    kind = _KINDS[(found.lastindex or 1) - 1] if found else None
    if kind and kind.what != shard.compression:
        remedy = kind.remedy.format(name=name, stem=os.path.splitext(name)[0])
        if kind.what == _TAR and shard.format == "tar":
            remedy = f"rename it to {name}"
        return f"the content is {kind.what}, not {shard.compression}: {remedy}"
    if kind or len(start) < 8 or start.startswith(b"BZh") or _is_binary(start) or find_encoding(start):
        return None  # a damaged stream is for its decompressor
    return f"the content is not compressed, and the suffix says {shard.compression}: rename it to {name}"


def is_page(head: bytes) -> bool:
    """Return whether a shard begins like a page of HTML or XML."""
    return _PAGE.match(head) is not None


def _is_binary(head: bytes) -> bool:
    """Return whether the head of a file is neither UTF-8 nor text in an older encoding.

    Such texts contain hardly any control character; NULs may be holes in a text that is otherwise good.
    """
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if not controls:
        return False
    if len(head.translate(None, _FIT_FOR_TEXT)) == len(head):
        return True  # no character at all
    zeros = head.count(b"\0")
    if (controls - zeros) * 10 >= 3 * len(head) or (zeros * 2 > len(head) and b"\0" in head.partition(b"\n")[0]):
        return True
    invalid = len(head) - len(head.decode("utf-8", "ignore").encode())
    return invalid > 3 and (controls + invalid) * 4 >= len(head)  # a character may be cut at the end of the head


def _plain_name(shard: Shard) -> str:
    """Return the last part of a shard's name, without the suffix of its compression."""
    name = shard.name.rpartition("/")[2]
    return os.path.splitext(name)[0] if shard.compression else name
