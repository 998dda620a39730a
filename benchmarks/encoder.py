"""Texts per second of the encoder against what else one can install, each pair measured in alternation in one run.

    python benchmarks/encoder.py [--texts 2048] [--rounds 3] [--dtypes float32,bfloat16] [--corpora glosses,captions]
                                   [--clock wall|cpu] [--without PART_OF_A_NAME,...]

Everybody gets the same seeded weights, the same tokenizer and the same texts; tokenizing counts. In every round each
contender embeds the same texts once, and a ratio is the median over the rounds of that round's ratio: other load on the
machine falls on both. Contenders that do not care how many texts they get at once embed fewer. One whose package is
missing is left out, with the reason (`pip install -e .[bench]` brings them all).

On a machine that others use too, `OMP_NUM_THREADS=1 python benchmarks/encoder.py --clock cpu` counts CPU seconds of one
thread, which other people's load disturbs far less than it does the clock on the wall.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import contenders
import corpora
import numpy as np
import torch

from audioclip_text.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_text.model.checkpoint import Checkpoint

VOCABULARY = Path(".cache/bpe_simple_vocab_16e6.txt.gz")
Encode = Callable[[Sequence[str]], np.ndarray]
SAMPLES = {
    "original's way": 96,
    "transformers, unsorted": 256,
}  # texts a round, for those that batch as they come


def build(checkpoint: Checkpoint, tokenizer: ClipTokenizer, dtypes: list[str]) -> Iterator[tuple[str, str, Encode]]:
    """(name, dtype, encode) of every contender that can be had, ours first."""
    for dtype in dtypes:
        yield "audioclip-text", dtype, TextEncoder(checkpoint, tokenizer, device="cpu", dtype=dtype).encode
    for name, dtype, make in contenders.ALL:
        if dtype not in dtypes and name != "original's way":
            continue
        try:
            yield name, dtype, make(checkpoint.state, tokenizer)
        except ImportError as error:
            print(f"left out: {name} {dtype} ({error})")


def rates(
    crowd: list[tuple[str, str, Encode]], texts: list[str], rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Texts per second of every contender in every round, and a check that all give the same vectors."""
    size = len(texts) // rounds
    found: dict[tuple[str, str], list[float]] = {(name, dtype): [] for name, dtype, _ in crowd}
    for start in range(0, size * rounds, size):
        wanted = None
        for name, dtype, encode in crowd:
            some = texts[start : start + SAMPLES.get(name, size)]
            began = clock()
            vectors = encode(some)
            found[name, dtype].append(len(some) / (clock() - began))
            wanted = vectors if wanted is None else wanted
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted[: len(some)], axis=1)
            worst = ((vectors * wanted[: len(some)]).sum(1) / lengths).min()
            if worst < 0.999:
                raise SystemExit(f"{name} {dtype} computes something else: cosine {worst:.4f}")
    return found


def describe(name: str, texts: list[str], tokenizer: ClipTokenizer) -> None:
    lengths = [min(77, len(tokenizer.encode(text)) + 2) for text in texts]
    at = np.percentile(lengths, [5, 25, 50, 75, 95]).astype(int).tolist()
    print(f"\n{name}: {len(texts)} texts, tokens with start and end: mean {np.mean(lengths):.1f}, 5/25/50/75/95 % {at}")


def installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    kinds = " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if any(flag in x for x in lines))
    return f"{model}, {torch.get_num_threads()} threads, {kinds}; {platform.platform()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2048, help="texts a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--corpora", default="glosses,captions")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--without", default="", help="leave out contenders with these in their names")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    checkpoint, tokenizer = load_checkpoint("untrained"), ClipTokenizer(VOCABULARY)
    crowd = [
        each
        for each in build(checkpoint, tokenizer, args.dtypes.split(","))
        if not any(part and part in each[0] for part in args.without.split(","))
    ]
    packages = ["torch", "transformers", "sentence-transformers", "onnxruntime", "numpy"]
    print(machine(), ", ".join(map(installed, packages)), f"Python {platform.python_version()}", sep="\n")
    for corpus in args.corpora.split(","):
        texts = corpora.ALL[corpus]()[: args.texts * args.rounds]
        describe(corpus, texts, tokenizer)
        for _, _, encode in crowd:
            encode(texts[:8])
        found = rates(crowd, texts, args.rounds, clock)
        ours = [key for key in found if key[0] == "audioclip-text"]
        print(
            f"\n| {corpus} | dtype | texts/s ({args.clock}) | "
            + " | ".join(f"ours in {dtype} is" for _, dtype in ours)
            + " |"
        )
        print("| --- | --- | --- |" + " --- |" * len(ours))
        for key, measured in found.items():
            times = [statistics.median(a / b for a, b in zip(found[our], measured, strict=True)) for our in ours]
            cells = " | ".join(f"{each:.2f} x" for each in times)
            print(f"| {key[0]} | {key[1]} | {statistics.median(measured):.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
