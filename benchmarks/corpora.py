"""Texts for measurements: real ones of real lengths, without duplicates, shuffled with a fixed seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")  # Debian's wordnet-base
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


def write_shards(folder: Path, rows: int, *, one_text: bool = False, shards: int = 8) -> None:
    """Write `rows` glosses as jsonl, numbered if there are more rows than glosses; or the same one in every row."""
    texts = glosses()
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with (folder / f"{shard}.jsonl").open("w") as handle:
            for row in range(shard, rows, shards):
                again, index = (0, 0) if one_text else divmod(row, len(texts))
                text = f"{texts[index]} {again}" if again else texts[index]
                handle.write(json.dumps({"id": f"r{row}", "text": text}) + "\n")


ALL: dict[str, Callable[[], list[str]]] = {"glosses": glosses, "captions": captions}
