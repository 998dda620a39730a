"""Texts per CPU second of the tokenizer on one core, over WordNet's glosses after a warm-up, and what its memo may hold.

    python benchmarks/tokenizer.py [--texts 30000] [--rounds 3]

The original's way is its algorithm with its memo of words; transformers' tokenizer is compiled Rust. Ids must be equal,
but for texts that ftfy mends, which transformers' does not.
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

from audioclip_text.model import ClipTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.plain_tokenizer import PlainTokenizer

VOCABULARY = Path(".cache/bpe_simple_vocab_16e6.txt.gz")
Tokenize = Callable[[Sequence[str]], list[list[int]]]


def original_way(plain: PlainTokenizer) -> Tokenize:
    """The original's steps with its memo from words to symbols."""
    plain.symbols = functools.cache(plain.symbols)  # type: ignore[method-assign]
    return lambda texts: [plain.encode(text) for text in texts]


def transformers(plain: PlainTokenizer) -> Tokenize:
    """transformers' CLIPTokenizerFast with the same vocabulary, in one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import CLIPTokenizerFast

    try:
        theirs = CLIPTokenizerFast(vocab=plain.ids, merges=plain.merges)
    except TypeError:  # before release 5 it took files
        import json

        with tempfile.TemporaryDirectory() as folder:
            words, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
            words.write_text(json.dumps(plain.ids))
            merges.write_text("\n".join(["#version: 0.2", *map(" ".join, plain.merges)]))
            theirs = CLIPTokenizerFast(str(words), str(merges))
    return lambda texts: theirs(list(texts), add_special_tokens=False)["input_ids"]


def rate(tokenize: Tokenize, texts: Sequence[str]) -> float:
    """Texts per CPU second."""
    began = time.process_time()
    tokenize(texts)
    return len(texts) / (time.process_time() - began)


def memo_megabytes(texts: int) -> float:
    """The most that a new tokenizer holds over so many texts of words that never come again."""
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
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ours, plain = ClipTokenizer(VOCABULARY), PlainTokenizer(VOCABULARY)
    crowd: dict[str, Tokenize] = {
        "audioclip-text": lambda texts: [ours.encode(text) for text in texts],
        "original's way": original_way(plain),
    }
    try:
        crowd["transformers (Rust)"] = transformers(plain)
    except ImportError as error:
        print(f"left out: transformers ({error})")
    texts = corpora.glosses()[: args.texts]
    wanted = crowd["audioclip-text"](texts)
    for name, tokenize in crowd.items():  # and with that they are warm
        different = sum(a != b for a, b in zip(tokenize(texts), wanted, strict=True))
        if different and name == "original's way":
            raise SystemExit(f"{name} gives other ids for {different} texts")
        if different:
            print(f"{name} gives other ids for {different} of {len(texts)} texts")
    found: dict[str, list[float]] = {name: [] for name in crowd}
    for _ in range(args.rounds):
        for name, tokenize in crowd.items():
            found[name].append(rate(tokenize, texts))
    print("\n| tokenizer | texts per CPU second, warm | ours is |\n| --- | --- | --- |")
    for name, rates in found.items():
        ratio = statistics.median(a / b for a, b in zip(found["audioclip-text"], rates, strict=True))
        print(f"| {name} | {statistics.median(rates):,.0f} | {ratio:.2f} x |")
    few, many = memo_megabytes(15_000), memo_megabytes(45_000)
    print(f"\nat most {few:.0f} MB over 15,000 texts of ten words never seen again, {many:.0f} MB over 45,000")


if __name__ == "__main__":
    main()
