"""Texts per CPU second of the tokenizer on one core, for WordNet's glosses after a warm-up, and the memory of its memo.

    python benchmarks/tokenizer.py [--texts 30000] [--rounds 3]

The original's way is its algorithm with its memo of words; transformers' tokenizer is compiled Rust. Ids must be equal,
except for texts that ftfy repairs, because transformers' tokenizer does not use ftfy.
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


def rate(tokenize: Tokenize, texts: Sequence[str]) -> float:
    """Return texts per CPU second."""
    began = time.process_time()
    tokenize(texts)
    return len(texts) / (time.process_time() - began)


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
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ours, plain = ClipTokenizer(VOCABULARY), PlainTokenizer(VOCABULARY)
    tokenizers: dict[str, Tokenize] = {
        "audioclip-text": lambda texts: [ours.encode(text) for text in texts],
        "original's way": original_way(plain),
    }
    try:
        tokenizers["transformers (Rust)"] = transformers(plain)
    except ImportError as error:
        print(f"left out: transformers ({error})")
    texts = corpora.glosses()[: args.texts]
    expected = tokenizers["audioclip-text"](texts)
    for name, tokenize in tokenizers.items():  # this also warms them up
        different = sum(a != b for a, b in zip(tokenize(texts), expected, strict=True))
        if different and name == "original's way":
            raise SystemExit(f"{name} returns other ids for {different} texts")
        if different:
            print(f"{name} returns other ids for {different} of {len(texts)} texts")
    measured: dict[str, list[float]] = {name: [] for name in tokenizers}
    for _ in range(args.rounds):
        for name, tokenize in tokenizers.items():
            measured[name].append(rate(tokenize, texts))
    print("\n| tokenizer | texts per CPU second, warm | ours is |\n| --- | --- | --- |")
    for name, rates in measured.items():
        ratio = statistics.median(a / b for a, b in zip(measured["audioclip-text"], rates, strict=True))
        print(f"| {name} | {statistics.median(rates):,.0f} | {ratio:.2f} x |")
    few, many = memo_megabytes(15_000), memo_megabytes(45_000)
    print(f"\nthe memo needs at most {few:.0f} MB for 15,000 texts of ten new words, {many:.0f} MB for 45,000")


if __name__ == "__main__":
    main()
