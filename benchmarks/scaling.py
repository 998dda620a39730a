"""Rows per second, hours and price of large corpora on three kinds of GPU worker, computed from measured figures.

    python benchmarks/scaling.py            # prints the tables and sentences of docs/scaling.md

Nothing here was run on a GPU. What was measured is in STEPS, MEASURED, UNCHANGED and NIGHTS, what is assumed in ASSUMED and
the prices of GPU_WORKERS; the functions are the formulas. Change a figure and print the tables again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Bytes and microseconds of CPU time per row of one step, for each of CORPORA."""

    bytes: tuple[float, float, float]
    cpu: tuple[float, float, float]


CORPORA = {"1 million": 1_000_000, "100 million": 100_000_000, "1 billion": 1_000_000_000}
STEPS = {  # as benchmarks/shuffle.py prints them
    "read": Step(bytes=(109.24, 109.24, 109.24), cpu=(1.23, 1.23, 1.23)),
    "hash": Step(bytes=(0.00, 0.00, 0.00), cpu=(0.39, 0.39, 0.39)),
    "split": Step(bytes=(63.72, 64.04, 70.17), cpu=(0.63, 0.84, 1.93)),
    "overhead": Step(bytes=(-0.52, -0.80, 4.85), cpu=(0.00, 0.00, 0.00)),
    "new": Step(bytes=(0.00, 0.00, 0.00), cpu=(0.50, 0.74, 1.67)),
    "spread": Step(bytes=(64.21, 61.38, 60.43), cpu=(0.36, 0.36, 0.37)),
    "tokenize": Step(bytes=(0.00, 0.00, 0.00), cpu=(2.45, 2.45, 2.45)),
    "embed": Step(bytes=(0.00, 0.00, 0.00), cpu=(0.43, 0.93, 0.94)),
    "write": Step(bytes=(4159.62, 4156.93, 4156.00), cpu=(7.61, 7.14, 7.17)),
    "write_bf16": Step(bytes=(2008.67, 2005.97, 2005.02), cpu=(16.31, 15.27, 15.50)),
    "refer": Step(bytes=(0.00, 0.00, 0.00), cpu=(0.09, 0.03, 0.03)),
    "known": Step(bytes=(4159.62, 4156.93, 4156.00), cpu=(4.69, 5.52, 5.52)),
}
MEASURED = {
    "tokens": 18.0,  # of a gloss, start and end included (benchmarks/encoder.py)
    "shared": 0.192,  # of them computed once for several texts: those of a bucket are sorted (benchmarks/README.md)
}
# CPU seconds of `embed` by the number of shards, none of which changed (benchmarks/pipeline.py unchanged).
UNCHANGED = {20: 0.8, 5_000: 1.0}
# Nights over 100,000 rows in 20 shards (benchmarks/pipeline.py nights): rows read, MB read, written and linked, CPU seconds.
NIGHTS = {
    "first": (100_000, 41.5, 415.8, 0.0, 5.1),
    "unchanged": (0, 0.0, 0.0, 0.0, 0.8),
    "1 % appended as a shard": (1_000, 18.1, 4.2, 415.8, 1.9),
    "one of 20 shards changed": (5_000, 846.9, 415.8, 4.1, 5.8),
    "the same shard again": (5_000, 41.0, 20.8, 399.1, 1.7),
    "1 % scattered over all shards": (101_000, 500.4, 419.9, 0.0, 6.8),
}
ASSUMED = {
    "storage_gb": 0.020,  # US dollars per GB and month in an object store
    "copies": 0.005,  # US dollars per 1,000 copies in an object store
    # Of the GPU's matrix peak, on real tokens, not a measurement: by the bytes that the network reads and writes, some 20 GB
    # for the 2.5 TFLOP of 32,768 nodes, it is 20 to 25 % on most GPUs.
    "peak_share": 0.22,
    "shuffle_gb": 0.011,  # US dollars per GB that a managed shuffle processes
}
# A new row is shuffled twice on a remote runner: to its bucket, then to a worker with the model.
FIRST_RUN = ("read", "hash", "split", "new", "spread", "tokenize", "embed", "write")
# A night on which shards changed, but hardly any text: every row is read, shuffled once and written again.
NIGHT = ("read", "hash", "split", "refer", "known", "write")
SHUFFLED = ("split", "spread")


@dataclass(frozen=True)
class Worker:
    """A machine with one GPU: peak in TFLOP/s (dense, bfloat16 or float16), vCPUs, US dollars per hour."""

    name: str
    peak: float
    cores: int
    price: float


GPU_WORKERS = (
    Worker("T4, 8 vCPU", 65, 8, 0.95),
    Worker("L4, 8 vCPU", 121, 8, 1.10),
    Worker("H100, 26 vCPU", 989, 26, 12.00),
)
FILE_ROWS = 32_768  # of a part file, the default of --max_file_rows
WORKERS = {"1 million": 1, "100 million": 4, "1 billion": 16}


def flop_per_node(width: int = 512, layers: int = 12) -> float:
    """Return the FLOP of the linear layers, nearly all there is: 12 w^2 weights per layer, one multiply-add each."""
    return 2.0 * 12 * width * width * layers


def flop_per_text() -> float:
    """Return the FLOP of a text's nodes, without what the last layer saves: only its keys and values need every node."""
    nodes = MEASURED["tokens"] * (1 - MEASURED["shared"])
    last_layer_saves = 10 / 12 / 12  # 10 of the last layer's 12 w^2, of 12 layers
    return nodes * flop_per_node() * (1 - last_layer_saves)


def cpu(path: tuple[str, ...], corpus: str) -> float:
    """Return the microseconds of CPU time per row of the steps in `path`."""
    return sum(STEPS[step].cpu[_number(corpus)] for step in path)


def shuffled(path: tuple[str, ...], corpus: str) -> float:
    """Return the bytes per row that the shuffle processes."""
    return sum(STEPS[step].bytes[_number(corpus)] for step in path if step in SHUFFLED)


def transferred(path: tuple[str, ...], corpus: str) -> float:
    """Return the bytes per row that pass a worker's network: files in and out, and the shuffle both ways."""
    files = sum(STEPS[step].bytes[_number(corpus)] for step in path if step not in SHUFFLED)
    return files + 2 * shuffled(path, corpus)


def _number(corpus: str) -> int:
    return list(CORPORA).index(corpus)


def gpu_rate(worker: Worker) -> float:
    """Return the texts per second that the GPU can embed."""
    return worker.peak * 1e12 * ASSUMED["peak_share"] / flop_per_text()


def cpu_rate(worker: Worker, path: tuple[str, ...], corpus: str) -> float:
    """Return the rows per second of the steps in `path`, if every vCPU is busy and as fast as one that was measured."""
    return worker.cores * 1e6 / cpu(path, corpus)


def rate(worker: Worker, path: tuple[str, ...], corpus: str) -> tuple[float, str]:
    """Return the rows per second of a worker, and what limits them."""
    rates = {"CPU": cpu_rate(worker, path, corpus)}
    if path == FIRST_RUN:
        rates["GPU"] = gpu_rate(worker)
    limit = min(rates, key=lambda name: rates[name])
    return rates[limit], limit


def network(worker: Worker, path: tuple[str, ...], corpus: str) -> float:
    """Return the Gbit/s that a worker needs so that its network is not the limit."""
    return rate(worker, path, corpus)[0] * transferred(path, corpus) * 8 / 1e9


def hours(worker: Worker, path: tuple[str, ...], corpus: str, workers: int) -> float:
    """Return the hours for a whole corpus, without the minutes of start-up."""
    return CORPORA[corpus] / rate(worker, path, corpus)[0] / workers / 3600


def dollars(worker: Worker, path: tuple[str, ...], corpus: str, workers: int) -> float:
    """Return the price of machines per hour and of the shuffle per GB; storage and egress are not included."""
    machines = hours(worker, path, corpus, workers) * workers * worker.price
    return machines + CORPORA[corpus] * shuffled(path, corpus) / 1e9 * ASSUMED["shuffle_gb"]


def storage(corpus: str) -> tuple[float, float]:
    """Return the US dollars per month that a snapshot costs in an object store, and those of copying all its files."""
    rows, written = CORPORA[corpus], STEPS["write"].bytes[_number(corpus)]
    return rows * written / 1e9 * ASSUMED["storage_gb"], rows / FILE_ROWS / 1000 * ASSUMED["copies"]


def figures() -> dict[str, str]:
    """Return the figures in the text of the page, by name; those per row are for a billion rows."""
    corpus = "1 billion"
    first, night = cpu(FIRST_RUN, corpus), cpu(NIGHT, corpus)
    overhead, write, bfloat = (
        (STEPS[name].bytes[-1], STEPS[name].cpu[-1]) for name in ("overhead", "write", "write_bf16")
    )
    t4, l4, h100 = (f"{gpu_rate(worker) * first / 1e6:.1f}" for worker in GPU_WORKERS)
    return {
        "first run": f"{first:.1f} µs of CPU time per new row",
        "night": f"{night:.1f} µs per known row",
        "formula of a first run": f"+ write | {first:.1f} µs |",
        "formula of a night": f"refer + known + write | {night:.1f} µs |",
        "vCPUs of a GPU": f"{t4} vCPUs for a T4, {l4} for an L4 and {h100} for an H100",
        "one vCPU": f"{1e6 / first:,.0f} new or {1e6 / night:,.0f} known rows per second",
        "writing": f"{write[1] / first:.0%} of the CPU time of a first run and {write[1] / night:.0%} of that of a night",
        "bfloat16": f"{bfloat[0]:,.0f} bytes and {bfloat[1]:.1f} µs per row instead of {write[0]:,.0f} and {write[1]:.1f}",
        "storage": f"{storage(corpus)[0]:,.0f} US dollars a month, and {storage(corpus)[1]:.2f} to copy its files",
        "overhead": f"{overhead[0]:.1f} bytes per row",
        "known billion": f"{night * 1e9 / 1e6 / 3600:.1f} hours of one vCPU",
        "network": f"{max(network(worker, NIGHT, corpus) for worker in GPU_WORKERS[:2]):.1f} Gbit/s",
    }


def tables() -> list[str]:
    """Return the tables of the page, in Markdown: steps, workers, corpora, and nights without any change."""
    names = list(CORPORA)
    steps = [["step", *(f"bytes, {name}" for name in names), *(f"µs, {name}" for name in names)]]
    for name, step in STEPS.items():
        sizes = [f"{number:,.1f}" if any(step.bytes) else "" for number in step.bytes]
        steps.append([name, *sizes, *(f"{number:.2f}" if any(step.cpu) else "" for number in step.cpu)])
    workers = [
        ["worker", "GPU, texts/s", "CPU, new rows/s", "limit", "CPU, known rows/s", "network, first run", "night"]
    ]
    corpora = [["rows", "written", "worker", "workers", "first run, hours", "US dollars", "night, hours", "US dollars"]]
    for worker in GPU_WORKERS:
        rates = [gpu_rate(worker), cpu_rate(worker, FIRST_RUN, names[-1]), cpu_rate(worker, NIGHT, names[-1])]
        gpu, new, known = (f"{number:,.0f}" for number in rates)
        needed = [f"{network(worker, path, names[-1]):.1f} Gbit/s" for path in (FIRST_RUN, NIGHT)]
        workers.append([worker.name, gpu, new, rate(worker, FIRST_RUN, names[-1])[1], known, *needed])
    for number, (corpus, rows) in enumerate(CORPORA.items()):
        for worker in GPU_WORKERS:
            n, written = WORKERS[corpus], f"{rows * STEPS['write'].bytes[number] / 1e9:,.1f} GB"
            line = [corpus, written, worker.name, str(n)]
            for path in (FIRST_RUN, NIGHT):
                line += [f"{hours(worker, path, corpus, n):.2g}", f"{dollars(worker, path, corpus, n):.2g}"]
            corpora.append(line)
    unchanged = [["shards, none of them changed", "CPU seconds of `embed`"]]
    unchanged += [[f"{shards:,}", f"{seconds:.1f}"] for shards, seconds in UNCHANGED.items()]
    nights = [["night", "rows read", "MB read", "MB written", "MB linked", "CPU seconds"]]
    nights += [[name, f"{line[0]:,}", *(f"{number:,.1f}" for number in line[1:])] for name, line in NIGHTS.items()]
    return [_markdown(table) for table in (steps, workers, corpora, unchanged, nights)]


def _markdown(lines: list[list[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(*tables(), *(f"{name}: {text}" for name, text in figures().items()), sep="\n\n")
