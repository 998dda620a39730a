"""ClipTokenizer: text to the token ids of the original AudioCLIP tokenizer (CLIP's byte-level BPE, 49,408 entries).

The original's steps: ftfy, `html.unescape` twice, white space folded, lower case, CLIP's pattern, BPE on UTF-8 bytes.
Two things make it fast. The ids of each chunk between white space are cached: no alternative of the pattern spans white
space, so a chunk's ids do not depend on its neighbours. And printable ASCII without "&" skips ftfy and unescaping, which
cannot change it (see `_is_plain`).
"""

from __future__ import annotations

import hashlib
import heapq
import html
import itertools
import os
import re
import unicodedata
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import ftfy
import numpy as np
import regex
from ftfy.fixes import unescape_html
from numpy.typing import NDArray

from ..messages import OneLineError

SOT, EOT = 49406, 49407
MERGES = 48894
VOCABULARY_BYTES = 16 << 20
MEMO_CHUNKS = 1 << 17
MEMO_LENGTH = 64  # longer chunks are seldom words and would fill the memo with chunks that never occur again

_PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)

# Three kinds of text take Python or ftfy a time that is quadratic in their length; they are shortened or sorted first, which
# does not change their ids:
# - Over-escaped ones, "&amp;amp;amp;": ftfy removes one level in each pass. Levels beyond these are removed at once.
_LEVELS = 64
_ESCAPED = regex.compile(rf"[&＆](?:#?[0-9A-Za-z]{{1,24}};){{{_LEVELS + 1},}}")
# - Long runs of combining marks: ftfy normalizes texts, and Python sorts the marks for that. They may be written as HTML
#   entities, or in the letters of another encoding, from which ftfy decodes them.
_LONG_MARKS = regex.compile(r"\p{M}{256,}")
_ENCODED = regex.compile(r"(?:&#?[0-9A-Za-z]{1,24};|[\x80-\u04ff\u2000-\u25ff\uf8ff\ufb01\ufb02] ?)++")
_ENCODED_MARKS = 512  # characters at least, if they stand for so many marks
# - Numbers of characters, "&#65;", with many digits; Python refuses them from 4,300 digits on.
_LONG_NUMBER = regex.compile(r"&#([0-9]{20,})(;?)")

# Beginnings of texts of which cleaning keeps something: most texts have one. ftfy takes letters for bytes of UTF-8, in
# which no two bytes can follow each other that two small Cyrillic or Greek letters stand for.
_FIRST, _FIRST_OTHER = itemgetter(slice(1)), re.compile("[^A-Za-z0-9]")
_KEPT = re.compile(r"[A-Za-z0-9]|[а-я]{2}|[α-ω]{2}|[\u3041-\u30fa\u4e00-\u9fff\uac00-\ud7a3]")


class TokenizerError(OneLineError, ValueError):
    """A vocabulary file that is missing or is not CLIP's."""


class ClipTokenizer:
    """The original's tokenizer with a vocabulary file (bpe_simple_vocab_16e6.txt.gz).

    Raises TokenizerError if the file is missing or is not the vocabulary of the released checkpoints.
    """

    def __init__(self, vocabulary_path: str | os.PathLike[str]) -> None:
        data = _read(vocabulary_path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        merges = _merges(data, vocabulary_path)
        letters = _byte_letters()
        words = [*letters.values(), *(letter + "</w>" for letter in letters.values()), *map("".join, merges)]
        self._letters = letters
        self._ids = {word: number for number, word in enumerate(words)}
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._memo: dict[str, bytes] = {}  # ids as uint16

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` like the original's `encode`: no start, no end, no truncation.

        Lone surrogates, which have no UTF-8, count as U+FFFD.
        """
        return memoryview(self._encode(text)).cast("H").tolist()

    def encode_all(self, texts: Sequence[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Return the token ids of all texts, one after the other in one array, and their number for each text, [n]."""
        encoded = list(map(self._encode, texts))
        return np.frombuffer(b"".join(encoded), np.uint16), np.fromiter(map(len, encoded), np.int64, len(encoded)) // 2

    def _encode(self, text: str) -> bytes:
        """Return the token ids of a text as uint16."""
        if not _is_plain(text):
            text = _clean(text)
        # split() folds what the original's \s+ folds, and also 0x1c to 0x1f, which ftfy and unescaping remove.
        chunks = text.lower().split()
        try:
            return b"".join(map(self._memo.__getitem__, chunks))
        except KeyError:
            return b"".join([self._chunk(chunk) for chunk in chunks])

    def blank_places(self, texts: Sequence[str]) -> list[int]:
        """Return the places of texts without a token: white space, entities of it, control characters, ..."""
        firsts = "".join(map(_FIRST, texts))
        if len(firsts) == len(texts):
            places: Iterable[int] = (found.start() for found in _FIRST_OTHER.finditer(firsts))
        else:  # one of them is empty
            places = range(len(texts))
        return [place for place in places if not _KEPT.match(texts[place]) and not self.encode(texts[place])]

    def _chunk(self, chunk: str) -> bytes:
        """Return the ids of a chunk without white space, from the memo, or add them to it."""
        known = self._memo.get(chunk)
        if known is not None:
            return known
        ids = array("H")
        for word in _PATTERN.findall(chunk):
            if word in ("<|startoftext|>", "<|endoftext|>"):
                ids.append(SOT if word[2] == "s" else EOT)
                continue
            symbols = [self._letters[byte] for byte in word.encode()]
            symbols[-1] += "</w>"
            ids.extend(self._ids[symbol] for symbol in self._merge(symbols))
        result = ids.tobytes()
        if len(chunk) <= MEMO_LENGTH:
            if len(self._memo) >= MEMO_CHUNKS:
                self._memo.clear()
            self._memo[chunk] = result
        return result

    def _merge(self, symbols: list[str]) -> Iterator[str]:
        """Return the symbols after all merges, in the original's order: each time every pair of lowest rank, from the left.

        A queue of candidate pairs makes that n log n; an entry is stale if one of its symbols has changed since.
        """
        after, before = [*range(1, len(symbols)), -1], list(range(-1, len(symbols) - 1))
        queue: list[tuple[int, int, tuple[str, str]]] = []

        def consider(left: int) -> None:
            if left >= 0 and after[left] >= 0:
                pair = symbols[left], symbols[after[left]]
                rank = self._ranks.get(pair)
                if rank is not None:
                    heapq.heappush(queue, (rank, left, pair))

        for index in range(len(symbols)):
            consider(index)
        while queue:
            rank, merged = queue[0][0], []
            while queue and queue[0][0] == rank:
                _, left, pair = heapq.heappop(queue)
                right = after[left]
                if right < 0 or (symbols[left], symbols[right]) != pair:
                    continue
                symbols[left] += symbols[right]
                symbols[right] = ""
                after[left] = after[right]
                if after[right] >= 0:
                    before[after[right]] = left
                merged.append(left)
            for left in merged:
                consider(before[left])
                consider(left)
        return filter(None, symbols)


def model_rows(
    tokens: NDArray[np.uint16], lengths: NDArray[np.int64], context: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return the token ids of texts as the model reads them: start, the first context - 2 tokens, end.

    Tokens and lengths [n] are in the form of ClipTokenizer.encode_all, and so are those that are returned. A text may
    contain <|endoftext|>: the original takes the vector at the first one, so nothing after it counts.
    """
    starts = np.cumsum(lengths) - lengths
    kept = np.minimum(lengths, context - 2)
    ends = np.flatnonzero(tokens == EOT)
    if len(ends):
        owners = np.searchsorted(starts, ends, side="right") - 1
        np.minimum.at(kept, owners, ends - starts[owners])
    if (kept < lengths).any():
        place = np.arange(len(tokens)) - np.repeat(starts, lengths)  # in its text
        tokens = tokens[place < np.repeat(kept, lengths)]
    row_lengths = kept + 2
    last = np.cumsum(row_lengths) - 1
    rows = np.empty(int(row_lengths.sum()), np.uint16)
    inside = np.ones(len(rows), np.bool_)
    inside[last] = inside[last - kept - 1] = False
    rows[inside], rows[last - kept - 1], rows[last] = tokens, SOT, EOT
    return rows, row_lengths


def _is_plain(text: str) -> bool:
    """Return whether ftfy and unescaping provably change nothing in `text` but white space, which is folded anyway.

    Within printable ASCII (0x20 to 0x7e) ftfy changes only HTML entities, which need "&": there is no mojibake without
    a byte above 0x7f, and terminal escapes, control characters, curly quotes, ligatures and width forms are outside of it.
    """
    return text.isascii() and text.isprintable() and "&" not in text


def _clean(text: str) -> str:
    """Return a text as it is split into words."""
    return _unescape(_unescape(_fix(text)))


def _fix(text: str) -> str:
    """Return what ftfy makes of a text."""
    line = text.rfind("\n", 0, text.find("<")) + 1 if "<" in text else len(text)  # from there on it unescapes nothing
    text = _ESCAPED.sub(_without_levels, text[:line]) + text[line:]
    if len(text) >= _ENCODED_MARKS and any(len(run[0]) >= _ENCODED_MARKS for run in _ENCODED.finditer(text)):
        decoded = ftfy.fix_text(text, normalization=None)
        text = decoded if _LONG_MARKS.search(decoded) else text
    return str(ftfy.fix_text(_LONG_MARKS.sub(_in_canonical_order, text)))


def _without_levels(escaped: regex.Match[str]) -> str:
    """Return an over-escaped entity with at most _LEVELS levels."""
    start, parts = str(escaped[0][0]), str(escaped[0][1:]).split(";")
    levels = sum(1 for _ in itertools.takewhile(lambda part: unescape_html(f"&{part};") in ("&", "＆"), parts))
    return start + ";".join(parts[max(0, levels - _LEVELS) :])


def _unescape(text: str) -> str:
    """Return what `html.unescape` makes of a text."""
    return html.unescape(_LONG_NUMBER.sub(_short_number, text))


def _short_number(number: regex.Match[str]) -> str:
    """Return the number of a character without its first zeros, or the character that stands for no such number."""
    digits = number[1].lstrip("0") or "0"
    return "\ufffd" if len(digits) > 7 else f"&#{digits}{number[2]}"


def _in_canonical_order(marks: regex.Match[str]) -> str:
    """Return a run of combining marks in the order into which Unicode's normalization brings them."""
    runs = itertools.groupby(marks[0], lambda mark: unicodedata.combining(mark) != 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if movable else run) for movable, run in runs)


def _read(path: str | os.PathLike[str]) -> bytes:
    """Return the first VOCABULARY_BYTES of a file: CLIP's vocabulary has a twelfth of them."""
    try:
        with Path(path).open("rb") as handle:
            return handle.read(VOCABULARY_BYTES)
    except OSError as error:
        raise TokenizerError(
            f"no vocabulary at {os.fspath(path)} ({error.strerror}): run `audioclip fetch vocabulary`, or give the "
            f"path of bpe_simple_vocab_16e6.txt.gz"
        ) from None


def _merges(data: bytes, path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the 48,894 merges that the released models use, in order; the file's first line is a header."""
    remedy = f"CLIP's contains {MERGES:,} merges for {EOT + 1:,} entries; run `audioclip fetch vocabulary`"
    try:
        reader = zlib.decompressobj(wbits=31)
        unpacked = reader.decompress(data, VOCABULARY_BYTES)
        if not reader.eof:
            raise EOFError(f"it is truncated, or larger than {VOCABULARY_BYTES >> 20} MiB")
        lines = unpacked.decode("utf-8").split("\n")[1 : MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TokenizerError(f"{os.fspath(path)} is not a gzipped vocabulary ({error}): {remedy}") from None
    merges = [(pair[0], pair[1]) for line in lines if len(pair := line.split()) == 2]
    different = len({left + right for left, right in merges})
    if different != MERGES:
        raise TokenizerError(f"{os.fspath(path)} contains {different:,} different merges: {remedy}")
    return merges


def _byte_letters() -> dict[int, str]:
    """Return a printable letter for each byte, as in GPT-2: the byte itself if it is printable, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    return letters
