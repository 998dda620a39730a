"""The original's tokenizer in its plainest form: no cache, no fast path; each merge is found by comparing all pairs."""

from __future__ import annotations

import gzip
import html
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


class PlainTokenizer:
    """Ids by the description of CLIP's tokenizer, slowly."""

    def __init__(self, vocabulary: Path) -> None:
        lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
        self.merges = [tuple(line.split()) for line in lines]
        self.ranks = {merge: rank for rank, merge in enumerate(self.merges)}
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self.letter = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
        base = [self.letter[byte] for byte in (*shown, *hidden)]
        words = [*base, *(letter + "</w>" for letter in base), *("".join(merge) for merge in self.merges)]
        words += ["<|startoftext|>", "<|endoftext|>"]
        self.ids = {word: number for number, word in enumerate(words)}

    def encode(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        ids: list[int] = []
        for word in PATTERN.findall(text):
            ids += [self.ids[symbol] for symbol in self.symbols(word)]
        return ids

    def symbols(self, word: str) -> list[str]:
        if word in ("<|startoftext|>", "<|endoftext|>"):
            return [word]
        parts = [self.letter[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, 10**9))
            if best not in self.ranks:
                break
            merged, place = [], 0
            while place < len(parts):
                if tuple(parts[place : place + 2]) == best:
                    merged.append(parts[place] + parts[place + 1])
                    place += 2
                else:
                    merged.append(parts[place])
                    place += 1
            parts = merged
        return parts
