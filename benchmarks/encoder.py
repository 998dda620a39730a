"""Contents per second of the encoders and of others that anyone can install, measured in alternation in one run.

    python benchmarks/encoder.py [--head text] [--texts 2048] [--rounds 3] [--dtypes float32,bfloat16]
                                   [--corpora glosses,captions] [--clock wall|cpu] [--without PART_OF_A_NAME,...]
    python benchmarks/encoder.py --head image|audio [--items 64] [--batch 8] [--smoke] [--rounds 3] ...

All get the same seeded weights, tokenizer and texts; tokenizing is included. With `--head image` and `--head audio` all get
the same prepared inputs of the network, and ours is also measured with decoding. In every round each contender embeds the
same texts once, and a ratio is the median of the rounds' ratios, so that other load on the machine slows down both.
Contenders whose speed does not depend on the number of texts embed fewer. A contender whose package is missing is left out,
with the reason (`pip install -e .[bench]` installs all).

On a machine with other users, `OMP_NUM_THREADS=1 python benchmarks/encoder.py --clock cpu` counts CPU seconds of one
thread, which other load disturbs far less than wall time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import contenders
import corpora
import media
import numpy as np
from machines import machine, package_version

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.text.settings import TextSettings

VOCABULARY = Path(".cache/bpe_simple_vocab_16e6.txt.gz")
Encode = Callable[[Sequence[Any]], np.ndarray]
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
    encoders: list[tuple[str, str, Encode]],
    texts: Sequence[Any],
    rounds: int,
    clock: Callable[[], float],
    lowest: float = 0.999,
) -> dict[tuple[str, str], list[float]]:
    """Return the texts (or other contents) per second of every contender in every round.

    The run ends if a vector's cosine with ours is below `lowest`.
    """
    size = len(texts) // rounds
    measured: dict[tuple[str, str], list[float]] = {(name, dtype): [] for name, dtype, _ in encoders}
    for start in range(0, size * rounds, size):
        expected = None
        for name, dtype, encode in encoders:
            some = texts[start : start + min(size, SAMPLES.get(name, size))]
            began = clock()
            vectors = encode(some)
            measured[name, dtype].append(len(some) / (clock() - began))
            expected = vectors if expected is None else expected
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected[: len(some)], axis=1)
            worst = ((vectors * expected[: len(some)]).sum(1) / lengths).min()
            if not worst >= lowest:
                raise SystemExit(f"{name} {dtype} computes other vectors: cosine {worst:.4f}")
    return measured


def print_lengths(name: str, texts: list[str], tokenizer: ClipTokenizer) -> None:
    """Print the number of texts and the distribution of their tokens."""
    lengths = [min(77, len(tokenizer.encode(text)) + 2) for text in texts]
    quantiles = np.percentile(lengths, [5, 25, 50, 75, 95]).astype(int).tolist()
    mean = np.mean(lengths)
    print(f"\n{name}: {len(texts)} texts, tokens with start and end: mean {mean:.1f}, 5/25/50/75/95 % {quantiles}")


def print_rates(title: str, unit: str, measured: dict[tuple[str, str], list[float]]) -> None:
    """Print a table of contents per second, and of the ratios of ours to the others in the same round."""
    ours = [key for key in measured if key[0] == "audioclip-beam"]
    columns = [f"\n| {title}", "dtype", f"{unit} per second", *(f"ours in {dtype} is" for _, dtype in ours)]
    print(" | ".join(columns) + " |", "| --- | --- | --- |" + " --- |" * len(ours), sep="\n")
    for key, speeds in measured.items():
        ratios = [statistics.median(a / b for a, b in zip(measured[our], speeds, strict=True)) for our in ours]
        cells = " | ".join(f"{ratio:.2f} x" for ratio in ratios)
        print(f"| {key[0]} | {key[1]} | {statistics.median(speeds):.4g} | {cells} |", flush=True)


def measure_media(args: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Measure the image head or the audio head."""
    seconds = 0.1 if args.smoke else args.seconds
    media.BATCH[args.head] = args.batch or media.BATCH[args.head]
    contents = media.items(args.head, args.items, seconds)
    example = next(media.batches(contents, media.BATCH[args.head]))
    encoders = [
        each
        for each in media.build(args.head, args.dtypes.split(","), example)
        if not any(part and part in each[0] for part in args.without.split(","))
    ]
    for _, _, encode in encoders:
        encode(contents)  # weights are packed for the size of the input
    # Image vectors in bfloat16 have cosines of down to 0.998 with those in float32, whatever computes them.
    measured = rates(encoders, contents * args.rounds, args.rounds, clock, 0.99)
    what = {"image": "pictures of 640 x 480 pixels", "audio": f"recordings of {seconds:g} seconds"}[args.head]
    print_rates(what, f"{args.clock} clock: contents", measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=["text", "image", "audio"], default="text")
    parser.add_argument("--items", type=int, default=64, help="pictures or recordings per round")
    parser.add_argument("--batch", type=int, help="pictures (8) or recordings (1) per batch of the others")
    parser.add_argument("--seconds", type=float, default=media.SECONDS, help="of each recording")
    parser.add_argument("--smoke", action="store_true", help="two pictures or recordings, one round, in float32")
    parser.add_argument("--texts", type=int, default=2048, help="texts per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--corpora", default="glosses,captions")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--without", default="", help="leave out contenders with these in their names")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    if args.smoke:
        args.items, args.rounds, args.dtypes = 2, 1, "float32"
    packages = ["torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "numpy"]
    print(machine(), ", ".join(map(package_version, packages)), f"Python {platform.python_version()}", sep="\n")
    if args.head != "text":
        measure_media(args, clock)
        return
    checkpoint, tokenizer = load_checkpoint("untrained"), ClipTokenizer(VOCABULARY)
    encoders = [
        each
        for each in build(checkpoint, tokenizer, args.dtypes.split(","))
        if not any(part and part in each[0] for part in args.without.split(","))
    ]
    for corpus in args.corpora.split(","):
        texts = corpora.ALL[corpus]()[: args.texts * args.rounds]
        print_lengths(corpus, texts, tokenizer)
        for _, _, encode in encoders:
            encode(texts[:8])
        print_rates(corpus, f"{args.clock} clock: texts", rates(encoders, texts, args.rounds, clock))


if __name__ == "__main__":
    main()
