"""Rows per second, hours and price of large corpora on three kinds of GPU worker, computed from measured figures.

    python benchmarks/scaling.py            # prints the tables of docs/scaling.md

Nothing here was run on a GPU. What was measured is in MEASURED, what is assumed in ASSUMED and GPU_WORKERS; the functions
are the formulas. Change a figure and print the tables again.
"""

from __future__ import annotations

from dataclasses import dataclass

MEASURED = {
    "tokens": 18.0,  # of a gloss, start and end included (benchmarks/encoder.py)
    "shared": 0.149,  # of them computed once for several texts, in batches of 16,384 (benchmarks/README.md)
    "tokenize": 231_000.0,  # texts per CPU second, warm (benchmarks/tokenizer.py)
    "plumbing": 37_000.0,  # rows per CPU second around the model: read, hash, shuffle, write (benchmarks/pipeline.py)
    "bytes_out": 1_470.0,  # per row in a part file: float32 vectors of a bfloat16 model, zstd; of a float32 model 3,530
    "bytes_in": 105.0,  # per row of jsonl with its id
    "bytes_shuffled": 58.0,  # per row and shuffle; vectors are never shuffled
}
SHUFFLES = 2  # of a new row on a remote runner: to its bucket, then to a worker with the model
BUCKET_ROWS = 131_072  # at most; the number of buckets is a power of two
ASSUMED = {
    "peak_share": 0.45,  # of the GPU's matrix peak on real tokens: the aim, not a measurement
    "parallel": 0.8,  # of the CPU cores that several Python processes keep busy
    "shuffle_gb": 0.011,  # US dollars per GB that a managed shuffle processes
}


@dataclass(frozen=True)
class Worker:
    """A machine with one GPU: peak in TFLOP/s (dense, bfloat16 or float16), network in Gbit/s, US dollars per hour."""

    name: str
    peak: float
    cores: int
    network: float
    price: float


GPU_WORKERS = (
    Worker("T4, 8 vCPU", 65, 8, 16, 0.95),
    Worker("L4, 8 vCPU", 121, 8, 16, 1.10),
    Worker("H100, 26 vCPU", 989, 26, 100, 12.00),
)
CORPORA = {"10 million": 1e7, "1 billion": 1e9, "100 billion": 1e11}
WORKERS = {"10 million": 1, "1 billion": 16, "100 billion": 256}


def flop_per_node(width: int = 512, layers: int = 12) -> float:
    """Return the FLOP of the linear layers, nearly all there is: 12 w^2 weights per layer, one multiply-add each."""
    return 2.0 * 12 * width * width * layers


def flop_per_text() -> float:
    """Return the FLOP of a text's nodes, without what the last layer saves: only its keys and values need every node."""
    nodes = MEASURED["tokens"] * (1 - MEASURED["shared"])
    last_layer_saves = 10 / 12 / 12  # 10 of the last layer's 12 w^2, of 12 layers
    return nodes * flop_per_node() * (1 - last_layer_saves)


def gpu_rate(worker: Worker) -> float:
    """Return the texts per second that the GPU can embed."""
    return worker.peak * 1e12 * ASSUMED["peak_share"] / flop_per_text()


def process_rate() -> float:
    """Return the rows per second that a single Python process reads, tokenizes and writes."""
    return 1 / (1 / MEASURED["plumbing"] + 1 / MEASURED["tokenize"])


def cpu_rate(worker: Worker) -> float:
    """Return the rows per second that the cores can feed and write, if a vCPU is half a core of the measured machine."""
    return worker.cores / 2 * ASSUMED["parallel"] * process_rate()


def network_rate(worker: Worker) -> float:
    """Return the rows per second that fit through the network, in and out, with the shuffle both ways."""
    bytes_per_row = MEASURED["bytes_in"] + MEASURED["bytes_out"] + 2 * SHUFFLES * MEASURED["bytes_shuffled"]
    return worker.network * 1e9 / 8 / bytes_per_row


def rate(worker: Worker) -> tuple[float, str]:
    """Return the rows per second of a worker, and what limits them."""
    rates = {"GPU": gpu_rate(worker), "CPU": cpu_rate(worker), "network": network_rate(worker)}
    limit = min(rates, key=lambda name: rates[name])
    return rates[limit], limit


def hours(rows: float, worker: Worker, workers: int) -> float:
    """Return the hours for a whole corpus, without the minutes of start-up."""
    return rows / rate(worker)[0] / workers / 3600


def dollars(rows: float, worker: Worker, workers: int) -> float:
    """Return the price of machines per hour and of the shuffle per GB; storage and egress are not included."""
    machines = hours(rows, worker, workers) * workers * worker.price
    return machines + rows * SHUFFLES * MEASURED["bytes_shuffled"] / 1e9 * ASSUMED["shuffle_gb"]


def figures() -> dict[str, str]:
    """Return the figures in the text of the page, by name."""
    t4, l4, h100 = GPU_WORKERS
    rows = int(CORPORA["100 billion"])
    bucket = rows / 2 ** (rows // BUCKET_ROWS).bit_length()
    return {
        "one process": f"{process_rate():,.0f} rows/s",
        "of a T4": f"{process_rate() / gpu_rate(t4):.1f} times what a T4",
        "of an L4": f"{process_rate() / gpu_rate(l4):.0%} of what an L4",
        "of an H100": f"{process_rate() / gpu_rate(h100):.0%} of what an H100",
        "network of an L4": f"{network_rate(l4) / rate(l4)[0]:.0f} times what an L4",
        "rows of a bucket": f"{bucket:,.0f} rows",
        "bytes of a bucket": f"{bucket * (MEASURED['bytes_in'] + 16) / 1e6:.0f} MB",
        "an unchanged billion": f"{1e9 / MEASURED['plumbing'] / 3600:.1f} hours of one core",
    }


def tables() -> str:
    """Return both tables, in Markdown."""
    lines = [
        "| worker | GPU, texts/s | CPU, rows/s | network, rows/s | least, rows/s | limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for worker in GPU_WORKERS:
        each = [gpu_rate(worker), cpu_rate(worker), network_rate(worker), rate(worker)[0]]
        lines.append(f"| {worker.name} | {' | '.join(f'{number:,.0f}' for number in each)} | {rate(worker)[1]} |")
    lines += [
        "",
        "| texts | written | worker | workers | hours | US dollars |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for corpus, rows in CORPORA.items():
        for worker in GPU_WORKERS:
            n = WORKERS[corpus]
            written = f"{rows * MEASURED['bytes_out'] / 1e12:,.2f} TB"
            duration, cost = hours(rows, worker, n), dollars(rows, worker, n)
            lines.append(f"| {corpus} | {written} | {worker.name} | {n} | {duration:,.2f} | {cost:,.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(), "", *(f"{name}: {text}" for name, text in figures().items()), sep="\n")
