"""Texts per second of the encoder and of others that anyone can install, measured in alternation in one run.

    python benchmarks/encoder.py [--texts 2048] [--rounds 3] [--dtypes float32,bfloat16] [--corpora glosses,captions]
                                   [--clock wall|cpu] [--without PART_OF_A_NAME,...]

All get the same seeded weights, tokenizer and texts; tokenizing is included. In every round each contender embeds the same
texts once, and a ratio is the median of the rounds' ratios, so that other load on the machine slows down both. Contenders
whose speed does not depend on the number of texts embed fewer. A contender whose package is missing is left out, with the
reason (`pip install -e .[bench]` installs all).

On a machine with other users, `OMP_NUM_THREADS=1 python benchmarks/encoder.py --clock cpu` counts CPU seconds of one
thread, which other load disturbs far less than wall time.
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

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.text.settings import TextSettings

VOCABULARY = Path(".cache/bpe_simple_vocab_16e6.txt.gz")
Encode = Callable[[Sequence[str]], np.ndarray]
SAMPLES = {
    "original's way": 96,
    "transformers, unsorted": 256,
}  # texts per round, for contenders that do not sort


def build(checkpoint: Checkpoint, tokenizer: ClipTokenizer, dtypes: list[str]) -> Iterator[tuple[str, str, Encode]]:
    """Yield (name, dtype, encode) of every contender that is installed, ours first."""
    for dtype in dtypes:
        yield (
            "audioclip-beam",
            dtype,
            TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu", dtype=dtype)).encode,
        )
    for name, dtype, make in contenders.ALL:
        if dtype not in dtypes and name != "original's way":
            continue
        try:
            yield name, dtype, make(checkpoint.state, tokenizer)
        except ImportError as error:
            print(f"left out: {name} {dtype} ({error})")


def rates(
    encoders: list[tuple[str, str, Encode]], texts: list[str], rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Return the texts per second of every contender in every round, after a check that all give the same vectors."""
    size = len(texts) // rounds
    measured: dict[tuple[str, str], list[float]] = {(name, dtype): [] for name, dtype, _ in encoders}
    for start in range(0, size * rounds, size):
        expected = None
        for name, dtype, encode in encoders:
            some = texts[start : start + SAMPLES.get(name, size)]
            began = clock()
            vectors = encode(some)
            measured[name, dtype].append(len(some) / (clock() - began))
            expected = vectors if expected is None else expected
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected[: len(some)], axis=1)
            worst = ((vectors * expected[: len(some)]).sum(1) / lengths).min()
            if worst < 0.999:
                raise SystemExit(f"{name} {dtype} computes other vectors: cosine {worst:.4f}")
    return measured


def print_lengths(name: str, texts: list[str], tokenizer: ClipTokenizer) -> None:
    """Print the number of texts and the distribution of their tokens."""
    lengths = [min(77, len(tokenizer.encode(text)) + 2) for text in texts]
    quantiles = np.percentile(lengths, [5, 25, 50, 75, 95]).astype(int).tolist()
    mean = np.mean(lengths)
    print(f"\n{name}: {len(texts)} texts, tokens with start and end: mean {mean:.1f}, 5/25/50/75/95 % {quantiles}")


def package_version(package: str) -> str:
    """Return name and version of a package, or that it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def machine() -> str:
    """Return the machine's processor, threads, instruction sets and operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    instruction_sets = " ".join(
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if any(flag in x for x in lines)
    )
    return f"{model}, {torch.get_num_threads()} threads, {instruction_sets}; {platform.platform()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2048, help="texts per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--corpora", default="glosses,captions")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--without", default="", help="leave out contenders with these in their names")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    checkpoint, tokenizer = load_checkpoint("untrained"), ClipTokenizer(VOCABULARY)
    encoders = [
        each
        for each in build(checkpoint, tokenizer, args.dtypes.split(","))
        if not any(part and part in each[0] for part in args.without.split(","))
    ]
    packages = ["torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "numpy"]
    print(machine(), ", ".join(map(package_version, packages)), f"Python {platform.python_version()}", sep="\n")
    for corpus in args.corpora.split(","):
        texts = corpora.ALL[corpus]()[: args.texts * args.rounds]
        print_lengths(corpus, texts, tokenizer)
        for _, _, encode in encoders:
            encode(texts[:8])
        measured = rates(encoders, texts, args.rounds, clock)
        ours = [key for key in measured if key[0] == "audioclip-beam"]
        print(
            f"\n| {corpus} | dtype | texts per second ({args.clock}) | "
            + " | ".join(f"ours in {dtype} is" for _, dtype in ours)
            + " |"
        )
        print("| --- | --- | --- |" + " --- |" * len(ours))
        for key, speeds in measured.items():
            ratios = [statistics.median(a / b for a, b in zip(measured[our], speeds, strict=True)) for our in ours]
            cells = " | ".join(f"{ratio:.2f} x" for ratio in ratios)
            print(f"| {key[0]} | {key[1]} | {statistics.median(speeds):.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
