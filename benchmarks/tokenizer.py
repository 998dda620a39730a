"""Tokens per CPU second of the tokenizer on one core, for several kinds of texts; its worst texts; the memory of its memo.

    python benchmarks/tokenizer.py [--texts 20000] [--rounds 3]

The original's way is its algorithm with its memo of words; transformers' tokenizer is Hugging Face's `tokenizers`, which is
compiled Rust. Ids must be equal, except for texts that ftfy repairs, because transformers' tokenizer does not use ftfy. Each
tokenizer gets each corpus twice: first with an empty memo, as a corpus is read, then again, with the memo warm.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import statistics
import string
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import corpora

from audioclip_beam.model import ClipTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.plain_tokenizer import PlainTokenizer

VOCABULARY = Path(".cache/bpe_simple_vocab_16e6.txt.gz")
Tokenize = Callable[[Sequence[str]], list[list[int]]]


def original_way(plain: PlainTokenizer) -> Tokenize:
    """Return the original's tokenizer, with its memo from words to symbols."""
    plain.symbols = functools.cache(plain.symbols)  # type: ignore[method-assign]
    return lambda texts: [plain.encode(text) for text in texts]


def transformers(plain: PlainTokenizer) -> Tokenize:
    """Return transformers' CLIPTokenizerFast with the same vocabulary, in one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import CLIPTokenizerFast

    try:
        their_tokenizer = CLIPTokenizerFast(vocab=plain.ids, merges=plain.merges)
    except TypeError:  # before release 5 it took files
        import json

        with tempfile.TemporaryDirectory() as folder:
            words, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
            words.write_text(json.dumps(plain.ids))
            merges.write_text("\n".join(["#version: 0.2", *map(" ".join, plain.merges)]))
            their_tokenizer = CLIPTokenizerFast(str(words), str(merges))
    return lambda texts: their_tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def rate(tokenize: Tokenize, texts: Sequence[str], tokens: int) -> float:
    """Return tokens per CPU second."""
    began = time.process_time()
    tokenize(texts)
    return tokens / (time.process_time() - began)


def compare(name: str, texts: Sequence[str], makers: dict[str, Callable[[], Tokenize]], rounds: int) -> None:
    """Print a table row for each tokenizer, a new one in every round: tokens per CPU second, first and again."""
    expected = makers["audioclip-beam"]()(texts)
    tokens = sum(map(len, expected))
    measured: dict[str, list[tuple[float, float]]] = {maker: [] for maker in makers}
    for turn in range(rounds):
        for maker, make in makers.items():
            tokenize = make()
            measured[maker].append((rate(tokenize, texts, tokens), rate(tokenize, texts, tokens)))
            if turn == 0 and (different := sum(a != b for a, b in zip(tokenize(texts), expected, strict=True))):
                if maker == "original's way":
                    raise SystemExit(f"{maker} returns other ids for {different} texts")
                print(f"{maker} returns other ids for {different} of {len(texts)} texts", file=sys.stderr)
    for maker, rates in measured.items():
        cells = []
        for again in (0, 1):
            speed = statistics.median(pair[again] for pair in rates)
            pairs = zip(measured["audioclip-beam"], rates, strict=True)
            cells += [f"{speed:,.0f}", f"{statistics.median(a[again] / b[again] for a, b in pairs):.2f} x"]
        print(f"| {name} | {maker} | " + " | ".join(cells) + " |", flush=True)


WORST: dict[str, Callable[[int], str]] = {
    "letters without white space": lambda n: "".join(random.Random(0).choices(string.ascii_lowercase, k=n)),
    "one letter": lambda n: "a" * n,
    "combining marks": lambda n: "a" + "\u0301\u0323" * (n // 2),
    "emoji without white space": lambda n: "".join(map(chr, random.Random(0).choices(range(0x1F300, 0x1F650), k=n))),
    "HTML entities": lambda n: "&amp;" * (n // 5),
}


def worst() -> None:
    """Print the seconds for one text of 250,000, 500,000 and a million characters."""
    tokenizer = ClipTokenizer(VOCABULARY)
    print("\n| one text, CPU seconds | 250,000 | 500,000 | 1,000,000 characters |\n| --- | --- | --- | --- |")
    for name, make in WORST.items():
        cells = []
        for size in (250_000, 500_000, 1_000_000):
            text = make(size)
            began = time.process_time()
            tokenizer.encode(text)
            cells.append(f"{time.process_time() - began:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def memo_megabytes(texts: int) -> float:
    """Return the peak memory of a new tokenizer over this many texts whose words never occur again."""
    chance = random.Random(0)
    tokenizer = ClipTokenizer(VOCABULARY)
    tracemalloc.start()
    for _ in range(texts):
        tokenizer.encode(" ".join("".join(chance.choices(string.ascii_lowercase, k=8)) for _ in range(10)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    def ours() -> Tokenize:
        tokenizer = ClipTokenizer(VOCABULARY)
        return lambda texts: [tokenizer.encode(text) for text in texts]

    makers: dict[str, Callable[[], Tokenize]] = {
        "audioclip-beam": ours,
        "original's way": lambda: original_way(PlainTokenizer(VOCABULARY)),
    }
    try:
        transformers(PlainTokenizer(VOCABULARY))
        makers["transformers (Rust)"] = lambda: transformers(PlainTokenizer(VOCABULARY))
    except ImportError as error:
        print(f"left out: transformers ({error})")
    print("| texts | tokenizer | tokens per CPU second, first | ours is | again | ours is |")
    print("| --- | --- | --- | --- | --- | --- |")
    for corpus in (corpora.glosses, corpora.captions, corpora.code, corpora.cjk, corpora.emoji):
        compare(corpus.__name__, corpus()[: args.texts], makers, args.rounds)
    worst()
    few, many = memo_megabytes(15_000), memo_megabytes(45_000)
    print(f"\nthe memo needs at most {few:.0f} MB for 15,000 texts of ten new words, {many:.0f} MB for 45,000")


if __name__ == "__main__":
    main()
