"""What this project does on one GPU, in at most eight minutes and without network.

    python benchmarks/gpu.py [parity] [encoder] [micro_batches] [processes] [--minutes 8] [--smoke]

parity         vectors compared with the original's, float32 (without TF32), bfloat16 and float16
encoder        texts per second for each type and corpus, beside transformers and sentence-transformers on the same GPU, in
               alternation; and the share of the peak of torch's own matrix product that the linear layers reach
micro_batches  texts per second and peak memory for each size of a micro-batch
processes      `embed` with 1, 2, 4 and 8 processes on the GPU, from jsonl to Parquet, each with the same number of rows

What does not fit into the time is left out, with a line that names it. `--smoke` runs every part on the CPU with tiny sizes,
for figures that mean nothing. Texts are WordNet (/usr/share/wordnet or .cache/wordnet), or frequent words without it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import contenders
import corpora
import numpy as np
import torch
from encoder import machine, package_version, print_lengths
from scaling import flop_per_node

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.device import TORCH_DTYPES
from audioclip_beam.model.text import encoder as encoder_module
from audioclip_beam.model.text.settings import TextSettings

COMMAND = [sys.executable, "-m", "audioclip_beam.pipeline"]
GOLDENS = corpora.ROOT / "tests" / "data" / "embeddings.npz"
LIMITS = {"float32": (1e-3, 0.999999), "bfloat16": (None, 0.9995), "float16": (None, 0.9995)}  # difference, cosine


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    device: str
    dtypes: tuple[str, ...]
    goldens: int  # every n-th
    matrix: int  # width of the square matrices of the peak
    texts: int  # in a round, at most
    seconds: float  # of a round, about
    rounds: int
    batch: int  # of the other encoders
    nodes: tuple[int, ...]  # in a micro-batch
    processes: tuple[int, ...]
    rows: int  # for each process
    run_dtype: str  # of the runs of `processes`


GPU = Sizes(
    device="cuda:0", dtypes=("float32", "bfloat16", "float16"), goldens=1, matrix=8192, texts=49_152, seconds=2.5, rounds=3,
    batch=1024, nodes=(4096, 8192, 16_384, 32_768, 65_536, 131_072), processes=(1, 2, 4, 8), rows=200_000,
    run_dtype="bfloat16",
)  # fmt: skip
SMOKE = Sizes(
    device="cpu", dtypes=("float32",), goldens=40, matrix=64, texts=8, seconds=0.1, rounds=1, batch=4, nodes=(64, 256),
    processes=(1,), rows=8, run_dtype="float32",
)  # fmt: skip


class Clock:
    """The time that is left to a part."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left."""
        return self.end - time.monotonic()

    def fits(self, seconds: float, what: str) -> bool:
        """Return whether there is time for something of so many seconds; print that it is left out if not."""
        if self.left() >= seconds:
            return True
        print(f"\nleft out, no time: {what}", flush=True)
        return False


@functools.cache
def checkpoint() -> Checkpoint:
    return load_checkpoint("untrained")


@functools.cache
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(corpora.VOCABULARY)


def our_encoder(sizes: Sizes, dtype: str) -> TextEncoder:
    return TextEncoder(checkpoint(), tokenizer(), TextSettings("small", device=sizes.device, dtype=dtype))


def synchronize(sizes: Sizes) -> None:
    """Wait for the GPU."""
    if sizes.device != "cpu":
        torch.cuda.synchronize()


def parity(sizes: Sizes, clock: Clock) -> bool:
    """Compare the vectors with the original's; return whether all differences are within the limits."""
    with np.load(GOLDENS) as file:
        texts, expected = json.loads(str(file["texts"]))[:: sizes.goldens], file["embeddings"][:: sizes.goldens]
    print(f"\n| parity, {len(texts)} texts | largest difference | lowest cosine | |\n| --- | --- | --- | --- |")
    good = True
    for dtype in sizes.dtypes:
        if not clock.fits(5, f"parity in {dtype}"):
            return False
        vectors = our_encoder(sizes, dtype).encode(texts).astype(np.float64)  # [n, dim]
        difference = float(np.abs(vectors - expected).max())
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected.astype(np.float64), axis=1)
        cosine = float(((vectors * expected).sum(1) / lengths).min())
        most, least = LIMITS[dtype]
        passed = cosine >= least and (most is None or difference <= most)
        good &= passed
        limits = f"cosine {least}" + (f", difference {most}" if most else "")
        print(
            f"| {dtype} | {difference:.1e} | {cosine:.6f} | {'within' if passed else 'NOT WITHIN'} {limits} |",
            flush=True,
        )
    return good


@functools.cache
def peak(sizes: Sizes, dtype: str) -> float:
    """Return the FLOP per second of torch's product of square matrices, the best of five."""
    a, b = (torch.randn(sizes.matrix, sizes.matrix, device=sizes.device).to(TORCH_DTYPES[dtype]) for _ in range(2))
    seconds = []
    for _ in range(6):  # the first one is a warm-up
        synchronize(sizes)
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        synchronize(sizes)
        seconds.append((time.perf_counter() - began) / 4)
    return 2 * sizes.matrix**3 / min(seconds[1:])


@dataclass
class Rate:
    """What one round of an encoder measured."""

    texts: float = 0.0  # per second
    flop: float = 0.0  # per second, of our linear layers
    cores: float = 0.0  # busy
    tokenizing: float = 0.0  # share of the time


def our_round(encoder: TextEncoder, texts: Sequence[str]) -> tuple[int, float]:
    """Return the nodes of the texts, and the seconds of tokenizing."""
    work = encoder.encode_rows(texts).work
    return work.extra["nodes"], work.prepare_seconds


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of a call that ends when the GPU has ended."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def others(sizes: Sizes, dtype: str) -> Iterator[tuple[str, Callable[[Sequence[str]], np.ndarray]]]:
    """Yield (name, encode) of the other encoders that are installed."""
    options = {"device": sizes.device, "batch": sizes.batch}
    for name, make in (
        ("transformers, sorted", contenders.transformers(TORCH_DTYPES[dtype], by_length=True, **options)),
        ("sentence-transformers", contenders.sentence_transformers(TORCH_DTYPES[dtype], **options)),
    ):
        try:
            yield name, make(checkpoint().state, tokenizer())
        except ImportError as error:
            print(f"left out: {name} {dtype} ({error})")


def encoder(sizes: Sizes, clock: Clock) -> bool:
    """Measure all encoders, in alternation; print a table for each corpus and type."""
    for name, make_texts in corpora.corpora_here().items():
        texts = make_texts()[: sizes.texts * sizes.rounds]
        print_lengths(name, texts[:4096], tokenizer())
        print(f"others in batches of {sizes.batch} texts\n")
        print("| encoder | dtype | texts per second | ours is | share of the matrix peak | cores busy | tokenizing |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for dtype in sizes.dtypes:
            if not clock.fits(10 * sizes.seconds * sizes.rounds, f"{name}, {dtype}"):
                return True
            ours = our_encoder(sizes, dtype)
            named = [("audioclip-beam", ours.encode), *others(sizes, dtype)]
            rates = alternate(sizes, ours, named, texts)
            peak_flop = peak(sizes, dtype)
            for who, rounds in rates.items():
                pairs = zip(rates["audioclip-beam"], rounds, strict=True)
                ratio = statistics.median(our.texts / other.texts for our, other in pairs)
                speed, flop, cores, tokenizing = (
                    statistics.median(getattr(each, field) for each in rounds)
                    for field in ("texts", "flop", "cores", "tokenizing")
                )
                figures = (f"{flop / peak_flop:.1%} of {peak_flop / 1e12:,.1f} TFLOP/s", f"{tokenizing:.0%}")
                share, tokens = figures if who == "audioclip-beam" else ("", "")
                print(
                    f"| {who} | {dtype} | {speed:,.0f} | {ratio:.2f} x | {share} | {cores:.2f} | {tokens} |", flush=True
                )
            del ours, named
            free(sizes)
    return True


def alternate(
    sizes: Sizes, ours: TextEncoder, named: list[tuple[str, Callable[[Sequence[str]], np.ndarray]]], texts: list[str]
) -> dict[str, list[Rate]]:
    """Return the rates of each encoder in each round. A slow one gets fewer texts, so that a round takes as long."""
    amounts: dict[str, int] = {}
    warm_up = texts[: max(4, min(2048, sizes.texts // 4))]
    expected = ours.encode(warm_up)
    for who, encode in named:
        vectors = encode(warm_up)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        if not ((vectors * expected).sum(1) / lengths).min() >= 0.999:
            raise RuntimeError(f"{who} computes other vectors than audioclip-beam")
        seconds, _ = measure(lambda encode=encode: encode(warm_up))
        amounts[who] = max(len(warm_up), min(sizes.texts, int(len(warm_up) * sizes.seconds / seconds)))
    rates: dict[str, list[Rate]] = {who: [] for who, _ in named}
    for turn in range(sizes.rounds):
        first = turn * sizes.texts
        for who, encode in named:
            some = texts[first : first + amounts[who]]
            nodes, tokenizing = [0], [0.0]
            if who == "audioclip-beam":

                def run(some: list[str] = some, nodes: list[int] = nodes, spent: list[float] = tokenizing) -> None:
                    nodes[0], spent[0] = our_round(ours, some)

                seconds, cpu = measure(run)
            else:
                seconds, cpu = measure(lambda encode=encode, some=some: encode(some))
            flop = nodes[0] * flop_per_node() / seconds
            rates[who].append(Rate(len(some) / seconds, flop, cpu / seconds, tokenizing[0] / seconds))
    return rates


def free(sizes: Sizes) -> None:
    """Return unused memory to the GPU."""
    if sizes.device != "cpu":
        torch.cuda.empty_cache()


def micro_batches(sizes: Sizes, clock: Clock) -> bool:
    """Measure sizes of micro-batches."""
    name, make_texts = next(iter(corpora.corpora_here().items()))
    texts = make_texts()[: sizes.texts]
    print(f"\n| micro-batch of {name} | dtype | texts per second | micro-batches | peak memory | out of memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    kind = torch.device(sizes.device).type
    standard = encoder_module.MAX_NODES[kind]
    for dtype in sizes.dtypes:
        for nodes in sizes.nodes:
            if not clock.fits(2 * sizes.seconds, f"micro-batches of {nodes} nodes in {dtype}"):
                return True
            encoder_module.MAX_NODES[kind] = nodes  # what an encoder starts with, and grows to
            try:
                ours = our_encoder(sizes, dtype)
                ours.encode(texts[:64])
                free(sizes)
                if kind == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                work = ours.encode_rows(texts).work
                seconds = time.perf_counter() - began
            finally:
                encoder_module.MAX_NODES[kind] = standard
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if kind == "cuda" else "not known"
            speed = len(texts) / seconds
            cells = f"{speed:,.0f} | {work.micro_batches} | {memory} | {work.oom_retries} times"
            print(f"| {nodes:,} nodes{' (as set)' if nodes == standard else ''} | {dtype} | {cells} |", flush=True)
            del ours
            free(sizes)
    return True


@dataclass
class Watch:
    """What was seen of a run's processes and of the GPU, every half second."""

    session: int
    busy: list[float]  # the GPU, per cent
    memory: list[float]  # of the GPU, MB
    cpu: dict[int, float]  # seconds of each process

    def look(self, gpu: bool) -> None:
        """Look at the processes of the session, and at the GPU."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.session:
                    self.cpu[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if gpu:
            busy, memory = nvidia_smi("utilization.gpu,memory.used").split(",")
            self.busy.append(float(busy))
            self.memory.append(float(memory))


def nvidia_smi(fields: str) -> str:
    """Return what nvidia-smi says of the first GPU, without units."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


_RUNNING: set[int] = set()  # sessions of runs, for the end of the time


def run_embed(sizes: Sizes, folder: Path, processes: int, seconds: float) -> tuple[float, Watch]:
    """Embed the shards in `folder` with so many processes; return wall seconds and what was seen."""
    output = folder / "out"
    command = [*COMMAND, "embed", "--input", f"{folder}/*.jsonl"]
    command += ["--output", str(output), "--checkpoint", "untrained", "--tokenizer_path", str(corpora.VOCABULARY)]
    command += ["--device", sizes.device, "--dtype", sizes.run_dtype, "--direct_num_workers", str(processes)]
    command += ["--direct_running_mode", "multi_processing"] if processes > 1 else []
    gpu = sizes.device != "cpu" and shutil.which("nvidia-smi") is not None
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True) as run,
    ):
        _RUNNING.add(run.pid)
        watch = Watch(run.pid, [], [], {})
        while run.poll() is None:
            watch.look(gpu)
            if time.perf_counter() - began > seconds:
                os.killpg(run.pid, signal.SIGKILL)
            time.sleep(0.5)
        _RUNNING.discard(run.pid)
        wall = time.perf_counter() - began
        if run.returncode:
            errors.seek(0)
            raise RuntimeError(f"embed ended with {run.returncode} after {wall:.0f} s: {errors.read()[-2000:]}")
    return wall, watch


def processes(sizes: Sizes, clock: Clock) -> bool:
    """Embed the first corpus with several numbers of processes."""
    name, make_texts = next(iter(corpora.corpora_here().items()))
    texts = make_texts()
    print(f"\n`embed` in {sizes.run_dtype}, {sizes.rows:,} rows of {name} for each process")
    print(
        "\n| processes | start (one row) | wall | rows per second after the start | with it | cores busy | GPU busy |",
        end="",
    )
    print(" GPU memory | Parquet |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    estimate = 0.0
    for number in sizes.processes:
        if not clock.fits(estimate, f"{number} processes"):
            return True
        rows = sizes.rows * number
        with tempfile.TemporaryDirectory() as scratch:
            corpora.write_shards(Path(scratch) / "one", 1, shards=1, texts=texts)
            corpora.write_shards(Path(scratch) / "all", rows, shards=8 * number, texts=texts)
            began = time.perf_counter()
            start, _ = run_embed(sizes, Path(scratch) / "one", number, max(1.0, clock.left()))
            wall, watch = run_embed(sizes, Path(scratch) / "all", number, max(1.0, clock.left()))
            size = sum(path.stat().st_size for path in (Path(scratch) / "all" / "out").rglob("part-*.parquet"))
        estimate = 1.5 * (time.perf_counter() - began)
        after = rows / max(1e-3, wall - start)
        busy = f"{statistics.mean(watch.busy):.0f} %" if watch.busy else "not known"
        memory = f"{max(watch.memory):,.0f} MB" if watch.memory else "not known"
        cores = sum(watch.cpu.values()) / wall
        cells = f"{start:.1f} s | {wall:.1f} s | {after:,.0f} | {rows / wall:,.0f} | {cores:.1f} | {busy} | {memory}"
        print(f"| {number} | {cells} | {size / 1e9:.2f} GB |", flush=True)
    return True


def print_machine(sizes: Sizes) -> None:
    """Print the GPU, the driver and the versions."""
    if sizes.device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        driver = "not known"
        with suppress(OSError, subprocess.SubprocessError):
            driver = nvidia_smi("driver_version")
        print(
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA {torch.version.cuda}"
        )
        print(f"TF32 in float32 products: {torch.backends.cuda.matmul.allow_tf32}")
    print(f"{machine()}, {os.cpu_count()} cores")
    packages = ["torch", "transformers", "sentence-transformers", "apache-beam", "pyarrow", "numpy"]
    print(", ".join(map(package_version, packages)), f"Python {platform.python_version()}", sep="\n", flush=True)


PARTS: dict[str, Callable[[Sizes, Clock], bool]] = {
    "parity": parity,
    "encoder": encoder,
    "micro_batches": micro_batches,
    "processes": processes,
}
SHARES = {"parity": 0.15, "encoder": 0.45, "micro_batches": 0.25, "processes": 1.0}  # of the time that is left


def end_in(seconds: float) -> None:
    """End this process and its runs after so many seconds, whatever hangs."""

    def end() -> None:
        print(f"\nended after {seconds:.0f} s: what is above was measured", flush=True)
        for session in list(_RUNNING):
            with suppress(OSError):
                os.killpg(session, signal.SIGKILL)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which it ends (default: 8)")
    parser.add_argument("--smoke", action="store_true", help="run every part on the CPU with tiny sizes")
    args = parser.parse_args()
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    if not args.smoke and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device: --smoke runs every part on the CPU")
    sizes = SMOKE if args.smoke else GPU
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    end_in(60 * args.minutes)
    whole = Clock(60 * args.minutes - 10)
    print_machine(sizes)
    good = True
    for name in args.parts or PARTS:
        print(f"\n### {name}", flush=True)
        began = time.monotonic()
        try:
            good &= PARTS[name](sizes, Clock(whole.left() * SHARES[name]))
        except Exception:  # the other parts are worth their minutes
            traceback.print_exc()
            good = False
        print(f"\n{name} took {time.monotonic() - began:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
