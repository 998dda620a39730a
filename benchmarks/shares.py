"""Where the time of the networks of pictures and sounds goes, and how near it is to the limit: the best packed product.

    python benchmarks/shares.py [--heads image,audio] [--dtypes float32,bfloat16] [--rounds 9] [--seconds 5]

One thread, CPU time, the least of the rounds for each operation. The limit is measured in the same run: the speed of the
fastest of the products that the ungrouped convolutions would be, [positions, inputs] x [inputs, outputs], with weights that
oneDNN packs. "As products" is the time of all convolutions if each were such a product, and if reading neighbours cost
nothing.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import encoder as benchmark
import media
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from audioclip_beam.model.audio.settings import RATE, frame_count
from audioclip_beam.model.audio.shapes import GROUPS as CHANNEL_GROUPS
from audioclip_beam.model.linear import linear

GROUPS = {
    "pool": "pooling",
    "maximum": "pooling",
    "mul_": "gates",
    "bmm": "other products",
    "linear": "other products",
    "copy": "copies",
    "to.": "copies",
    "_to_copy": "copies",
}


class Step(NamedTuple):
    """An operation of a network: its group, its shape as a product if it is an ungrouped convolution, and its work."""

    group: str
    product: tuple[int, int, int] | None  # positions, inputs, outputs
    flop: float


class Recorder(TorchDispatchMode):
    """Records the operations that run in it, and the CPU seconds of each."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.seconds: list[float] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.thread_time()
        result = function(*args, **(kwargs or {}))
        self.seconds.append(time.thread_time() - began)
        self.steps.append(describe(str(function), args, result))
        return result


def describe(name: str, args: Any, result: Any) -> Step:
    """Return what an operation is."""
    if "convolution" not in name:
        return Step(next((group for part, group in GROUPS.items() if part in name), "everything else"), None, 0.0)
    adds = "pointwise_." in name  # its result is its first argument
    x, weight = args[1:3] if adds else args[:2]
    out, inputs, height, width = weight.shape
    positions = result.numel() // out
    groups = x.shape[1] // inputs
    flop = 2.0 * out * inputs * height * width * positions
    if 1 < groups < x.shape[1]:
        flop *= x.shape[1] / CHANNEL_GROUPS / inputs  # without the zeros of groups that were merged
    kind = f"{height} x {width}"
    if groups > 1:
        kind = "depthwise" if inputs == 1 else f"grouped {kind}"
    product = (positions, inputs * height * width, out) if groups == 1 else None
    return Step(f"convolutions {kind}", product, flop)


def least(compute: Callable[[], object], rounds: int) -> float:
    """Return the least CPU seconds of some calls."""
    compute()
    seconds = []
    for _ in range(rounds):
        began = time.thread_time()
        compute()
        seconds.append(time.thread_time() - began)
    return min(seconds)


@torch.inference_mode()
def measure(head: str, dtype: str, rounds: int, frames: int) -> None:
    """Print the table of a head."""
    tower = media.our_encoder(head, dtype).tower
    n = media.BATCH[head]
    x = torch.rand(n, 3, *((224, 224) if head == "image" else (341, frames)))
    x = (x * 60 - 80 if head == "audio" else x * 4 - 2).contiguous(memory_format=torch.channels_last)
    if head == "audio":
        tower.expect(frames, 100)
    whole = least(lambda: tower(x), rounds)
    records = []
    for _ in range(rounds):
        with Recorder() as record:
            tower(x)
        records.append(record)
    steps = records[0].steps
    seconds, flop = Counter[str](), Counter[str]()
    for step, *times in zip(steps, *(record.seconds for record in records), strict=True):
        seconds[step.group] += min(times)
        flop[step.group] += step.flop
    products = {step.product: 0.0 for step in steps if step.product}
    for rows, inputs, outputs in products:
        layer = linear(torch.randn(outputs, inputs).to(tower.dtype), torch.zeros(outputs, dtype=tower.dtype))
        left = torch.randn(rows, inputs).to(tower.dtype)
        products[rows, inputs, outputs] = least(lambda layer=layer, left=left: layer(left), rounds)
    best = max(2 * rows * inputs * outputs / products[rows, inputs, outputs] for rows, inputs, outputs in products)
    as_products = sum(products[step.product] if step.product else step.flop / best for step in steps)
    total = sum(flop.values())
    print(f"\n| {head}, {dtype}, {n} per batch | ms per item | % | GFLOP/s |\n| --- | --- | --- | --- |")
    for group, each in seconds.most_common():
        speed = f"{flop[group] / each / 1e9:.0f}" if flop[group] else ""
        print(f"| {group} | {1e3 * each / n:.2f} | {100 * each / sum(seconds.values()):.1f} | {speed} |")
    print(f"| whole network | {1e3 * whole / n:.2f} | | {total / whole / 1e9:.0f} |")
    print(f"| as products | {1e3 * as_products / n:.2f} | | {total / as_products / 1e9:.0f} |")
    limit, work = total / best, f"{total / n / 1e9:.2f} GFLOP"
    print(f"| limit: {work} at the best product's speed | {1e3 * limit / n:.2f} | | {best / 1e9:.0f} |")
    shares = (
        f"{100 * limit / whole:.0f} % of the limit, {100 * as_products / whole:.0f} % of its own shapes as products"
    )
    print(f"\nThe network reaches {shares}.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="image,audio")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=media.SECONDS, help="of a recording")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(benchmark.machine(), benchmark.package_version("torch"), sep="\n")
    for head in args.heads.split(","):
        for dtype in args.dtypes.split(","):
            measure(head, dtype, args.rounds, frame_count(round(args.seconds * RATE)))


if __name__ == "__main__":
    main()
