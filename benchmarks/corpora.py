"""Texts for measurements: real ones of real lengths, without duplicates, shuffled with a fixed seed."""

from __future__ import annotations

import bisect
import functools
import gzip
import itertools
import json
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
VOCABULARY = ROOT / ".cache" / "bpe_simple_vocab_16e6.txt.gz"
# Debian's wordnet-base, or its files in .cache, for a machine on which nothing can be installed.
WORDNET = next(
    filter(Path.exists, (Path("/usr/share/wordnet"), ROOT / ".cache" / "wordnet")), Path("/usr/share/wordnet")
)
PARTS = ("noun", "verb", "adj", "adv")
PLACES = [
    "in the park",
    "on a wooden table",
    "at night",
    "in the rain",
    "near the sea",
    "by the window",
    "in black and white",
]
QUANTILES = (5, 25, 50, 75, 95)
FRAMES = (
    "a {adj} {noun}",
    "{noun}",
    "a photo of a {noun}",
    "the sound of a {noun}",
    "a {noun} and a {other} {place}",
    "two people with a {noun} {place}",
    "a close-up of a {adj} {noun} {place}",
    "a {adj} {noun} next to a {other}",
)


def _entries(part: str) -> list[tuple[str, str]]:
    """Return (first lemma, gloss) of every synset."""
    path = WORDNET / f"data.{part}"
    if not path.exists():
        raise SystemExit(f"no {path}: install WordNet 3.0 (Debian: apt-get install wordnet-base)")
    lines = [line for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith("  ")]
    return [(line.split(" ")[4].replace("_", " ").split("(")[0], line.split("| ", 1)[1].strip()) for line in lines]


def glosses() -> list[str]:
    """Return the definitions and examples of WordNet's 117,659 synsets."""
    texts = list(dict.fromkeys(gloss for part in PARTS for _, gloss in _entries(part)))
    random.Random(0).shuffle(texts)
    return texts


def code() -> list[str]:
    """Return 20,000 different lines of source code, of Python's own library."""
    lines: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        lines |= dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    texts = [line for line in lines if len(line) > 10]
    random.Random(2).shuffle(texts)
    return texts[:20_000]


def cjk() -> list[str]:
    """Return 20,000 texts of 5 to 30 Chinese characters and Japanese syllables, without white space."""
    chance = random.Random(3)
    characters = [chr(code) for code in (*range(0x4E00, 0x4E00 + 3000), *range(0x3041, 0x3097), *range(0x30A1, 0x30FB))]
    return list({"".join(chance.choices(characters, k=chance.randint(5, 30))): None for _ in range(20_000)})


def emoji() -> list[str]:
    """Return 20,000 captions with one to five emoji between or after their words."""
    chance = random.Random(4)
    signs = [chr(code) for code in range(0x1F300, 0x1F650)]
    texts = []
    for caption in captions()[:20_000]:
        words = caption.split()
        for _ in range(chance.randint(1, 5)):
            words.insert(chance.randint(0, len(words)), chance.choice(signs) * chance.randint(1, 3))
        texts.append(" ".join(words))
    return texts


def captions() -> list[str]:
    """Return 50,000 short captions: WordNet's nouns and adjectives in phrases that are common in captions and labels."""
    chance = random.Random(1)
    nouns = [lemma for lemma, _ in _entries("noun") if lemma.islower()]
    adjectives = [lemma for lemma, _ in _entries("adj") if lemma.islower() and " " not in lemma]
    distinct: dict[str, None] = {}
    while len(distinct) < 50_000:
        words = {"noun": chance.choice(nouns), "other": chance.choice(nouns), "adj": chance.choice(adjectives)}
        distinct[chance.choice(FRAMES).format(place=chance.choice(PLACES), **words)] = None
    texts = list(distinct)
    chance.shuffle(texts)
    return texts


@functools.cache
def made_texts(words: tuple[int, ...], count: int = 100_000) -> list[str]:
    """Return `count` texts of frequent words of CLIP's vocabulary, without sense, for a machine without WordNet.

    `words` are the 5, 25, 50, 75 and 95 % quantiles of the number of words in a text.
    """
    chance = random.Random(2)
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().splitlines()[1 : 49152 - 256 - 2 + 1]
    parts = ["".join(line.split()).removesuffix("</w>") for line in lines if line.endswith("</w>")]
    known = [word for word in dict.fromkeys(parts) if word.isascii() and word.isalpha()]  # the most frequent ones first
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(known))))
    distinct: dict[str, None] = {}
    while len(distinct) < count:
        place = chance.uniform(5, 95)
        after = bisect.bisect(QUANTILES, place, hi=len(QUANTILES) - 1)
        low, high = QUANTILES[after - 1], QUANTILES[after]
        length = words[after - 1] + (words[after] - words[after - 1]) * (place - low) / (high - low)
        distinct[" ".join(chance.choices(known, cum_weights=weights, k=round(length)))] = None
    return list(distinct)


def write_shards(
    folder: Path, rows: int, *, one_text: bool = False, shards: int = 8, texts: list[str] | None = None
) -> None:
    """Write `rows` texts, or glosses, as jsonl, numbered if there are more rows than texts; or the same in every row."""
    texts = texts or glosses()
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with (folder / f"{shard}.jsonl").open("w") as handle:
            for row in range(shard, rows, shards):
                again, index = (0, 0) if one_text else divmod(row, len(texts))
                text = f"{texts[index]} {again}" if again else texts[index]
                handle.write(json.dumps({"id": f"r{row}", "text": text}) + "\n")


ALL: dict[str, Callable[[], list[str]]] = {"glosses": glosses, "captions": captions}


def corpora_here() -> dict[str, Callable[[], list[str]]]:
    """Return the functions of ALL, or, without WordNet, those of made texts that are about as long."""
    if WORDNET.exists():
        return ALL
    return {
        "made texts as long as glosses": lambda: made_texts((5, 9, 14, 21, 35)),
        "made texts as long as captions": lambda: made_texts((2, 6, 8, 11, 14)),
    }
