"""What this project does on one GPU, in at most eight minutes and without network.

    python benchmarks/gpu.py [PART ...] [--minutes 8] [--quick] [--smoke]

parity         vectors compared with the original's, float32 (without TF32), bfloat16 and float16; with other texts in their
               batch; and the largest number in the network, which float16 limits to 65,504
tower          the text network alone, for each size of a micro-batch: time by CUDA events, operators, bytes that they read
               and write, shares of the peaks of torch's own matrix product and copy
encoder        texts per second for each type and corpus, beside transformers and sentence-transformers on the same GPU, in
               alternation; and the share of the peak of torch's own matrix product that the linear layers reach
micro_batches  texts per second and memory for each size of a micro-batch, and for a long template around each text
heads          pictures and recordings per second of the networks alone, beside torch's eager mode, torch.compile and timm's
               or torchvision's network of the same size; and from files, with the cores that decoding keeps busy
processes      `embed` with 1, 2, 4 and 8 processes on the GPU, from jsonl to Parquet, each with the same number of rows; and
               with one process, from files of pictures and of sounds

What does not fit into the time is left out, with a line that names it. `--quick` takes a minute, with few sizes. `--smoke`
runs every part on the CPU with tiny sizes, for figures that mean nothing. Texts are WordNet (/usr/share/wordnet or
.cache/wordnet), or frequent words without it. Only `processes` needs Beam; `heads` needs Pillow and the audio head's
packages. scripts/gpu_bundle.sh packs what a machine with PyTorch alone lacks.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import contenders
import corpora
import numpy as np
import torch
from machines import machine, package_version
from scaling import flop_per_node
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.device import BFLOAT16, TORCH_DTYPES, no_tf32, pick_device
from audioclip_beam.model.text import encoder as encoder_module
from audioclip_beam.model.text.prefix_tree import SortedRows
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.model.text.tokenizer import model_rows

COMMAND = [sys.executable, "-m", "audioclip_beam.pipeline"]
GOLDENS = corpora.ROOT / "tests" / "data" / "embeddings.npz"
LIMITS = {"float32": (1e-3, 0.999999), "bfloat16": (None, 0.9995), "float16": (None, 0.99999)}  # difference, cosine
# A prompt of 60 tokens around a word: 32 slots of attention for each node.
TEMPLATE = " ".join(["a very long sentence around the sound of a single"] * 6) + " {}"
LAST_LAYER = 10 / 12 / 12  # of the network's FLOP per node: what the last layer computes for the ends of rows alone


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
    nodes: tuple[int, ...]  # in a micro-batch; a kernel takes at most 65,535 rows
    processes: tuple[int, ...]
    rows: int  # for each process
    run_dtype: str  # of the runs of `processes`
    contents: int  # pictures and recordings of `heads`
    recording: float  # seconds of each
    files: int  # pictures, or sounds, of a run of `processes`


GPU = Sizes(
    device="cuda:0", dtypes=("float32", "bfloat16", "float16"), goldens=1, matrix=8192, texts=49_152, seconds=2.5, rounds=3,
    batch=1024, nodes=(1024, 2048, 4096, 8192, 16_384, 32_768, 65_535), processes=(1, 2, 4, 8), rows=200_000,
    run_dtype="bfloat16", contents=256, recording=5.0, files=2048,
)  # fmt: skip
QUICK = replace(GPU, matrix=4096, texts=8192, seconds=0.3, rounds=1, nodes=(4096, 32_768), processes=(1,), rows=20_000,
                contents=64, files=256)  # fmt: skip
SMOKE = Sizes(
    device="cpu", dtypes=("float32",), goldens=40, matrix=64, texts=8, seconds=0.1, rounds=1, batch=4, nodes=(64, 256),
    processes=(1,), rows=8, run_dtype="float32", contents=1,
    recording=0.1, files=4,
)  # fmt: skip


def on_this_gpu(sizes: Sizes) -> Sizes:
    """Return the sizes without bfloat16 if the GPU has no products in it, as a T4."""
    if sizes.device == "cpu" or torch.cuda.get_device_capability() >= BFLOAT16:
        return sizes
    return replace(sizes, dtypes=tuple(dtype for dtype in sizes.dtypes if dtype != "bfloat16"), run_dtype="float16")


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
    print("\n| dtype | largest difference with other texts in the batch | largest number in the network |")
    print("| --- | --- | --- |")
    others = corpus()[1][: 64 if sizes.device == "cpu" else 4096]
    for dtype in sizes.dtypes:
        ours = our_encoder(sizes, dtype)
        alone, largest = ours.encode(texts), largest_number(ours, texts)
        mixed = ours.encode([text for pair in zip(texts, others, strict=False) for text in pair] + others)
        change = float(np.abs(mixed[: 2 * min(len(texts), len(others)) : 2] - alone[: len(others)]).max())
        print(f"| {dtype} | {change:.1e} | {largest:.1f} |", flush=True)
    return good


def largest_number(ours: TextEncoder, texts: list[str]) -> float:
    """Return the largest number between the layers of the network, of all texts."""
    found, final = [0.0], ours.tower.ln_final

    def watch(x: Tensor) -> Tensor:
        found[0] = max(found[0], float(x.abs().max()))
        return final(x)

    ours.tower.ln_final = watch  # type: ignore[assignment]
    try:
        ours.encode(texts)
    finally:
        ours.tower.ln_final = final
    return found[0]


@functools.cache
def corpus() -> tuple[str, list[str]]:
    """Return name and texts of the first corpus."""
    name, make_texts = next(iter(corpora.corpora_here().items()))
    return name, make_texts()


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


@functools.cache
def bandwidth(sizes: Sizes) -> float:
    """Return the bytes per second that a copy on the device reads and writes, the best of five."""
    numbers = 1 << (28 if sizes.device != "cpu" else 20)
    a = torch.zeros(numbers, device=sizes.device)
    b = torch.empty_like(a)
    return 2 * 4 * numbers / min(time_of(sizes, lambda: b.copy_(a), 1) for _ in range(6))


def time_of(sizes: Sizes, call: Callable[[], object], times: int) -> float:
    """Return the seconds that the device takes for a call, the mean of several that follow each other."""
    if sizes.device == "cpu":
        began = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - began) / times
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    for _ in range(times):
        call()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000 / times


class Operators(TorchDispatchMode):
    """Counts operators that are not views, and the bytes of their inputs and outputs."""

    VIEWS = re.compile(
        r"_?(unsafe_)?(view|t|transpose|permute|slice|select|(tensor_)?split|split_with_sizes|chunk|unbind|expand|(un)?flatten"
        r"|(un)?squeeze|detach|device|(new_)?empty)"
    )

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.VIEWS.fullmatch(func.overloadpacket.__name__):
            self.count += 1
            for tensor in (*args, *(result if isinstance(result, tuple) else (result,))):
                if isinstance(tensor, Tensor):
                    self.bytes += tensor.numel() * tensor.element_size()
        return result


def tower(sizes: Sizes, clock: Clock) -> bool:
    """Measure the text network alone, on trees that are on the device already."""
    name, texts = corpus()
    print(f"\n| network, {name} | dtype | ms | texts per second | operators | share of the matrix peak |", end="")
    print(
        " GB read and written | share of the bandwidth of a copy |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    tokens, lengths = tokenizer().encode_all(texts[: min(len(texts), 2 * max(sizes.nodes))])
    rows = SortedRows.of(*model_rows(tokens, lengths, 77))
    for dtype in sizes.dtypes:
        ours = our_encoder(sizes, dtype)
        for nodes in sizes.nodes:
            if not clock.fits(1, f"the network with {nodes} nodes in {dtype}"):
                return True
            batch = rows.batch_from(0, nodes)
            tree = rows.flat_tree(batch, ours.device) if ours._flat else rows.tree(batch, ours.device)
            ours.tower(tree)  # a warm-up
            with Operators() as operators:
                ours.tower(tree)
            compute, times = functools.partial(ours.tower, tree), 1 if sizes.rounds == 1 else 5
            seconds = min(time_of(sizes, compute, times) for _ in range(3))
            texts_here = batch.stop - batch.start
            flop = flop_per_node() * (tree.nodes * (1 - LAST_LAYER) + texts_here * LAST_LAYER)
            shares = f"{flop / seconds / peak(sizes, dtype):.1%} | {operators.bytes / 1e9:.2f} | "
            shares += f"{operators.bytes / seconds / bandwidth(sizes):.0%}"
            cells = f"{1000 * seconds:.2f} | {texts_here / seconds:,.0f} | {operators.count} | {shares}"
            print(f"| {tree.nodes:,} nodes | {dtype} | {cells} |", flush=True)
    return True


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
        _, lengths = tokenizer().encode_all(texts[:4096])
        print(f"\n#### {name}: {np.minimum(lengths + 2, 77).mean():.1f} tokens per text, start and end included\n")
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
    most = min(sizes.texts, len(texts) // sizes.rounds)  # of a round: all rounds have different texts
    warm_up = texts[: max(4, min(2048, sizes.texts // 4))]
    expected = ours.encode(warm_up)
    for who, encode in named:
        vectors = encode(warm_up)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        if not ((vectors * expected).sum(1) / lengths).min() >= 0.999:
            raise RuntimeError(f"{who} computes other vectors than audioclip-beam")
        seconds, _ = measure(lambda encode=encode: encode(warm_up))
        amounts[who] = min(most, max(len(warm_up), int(len(warm_up) * sizes.seconds / seconds)))
    rates: dict[str, list[Rate]] = {who: [] for who, _ in named}
    for turn in range(sizes.rounds):
        first = turn * most
        for who, encode in named:
            some = texts[first : first + amounts[who]]
            nodes, tokenizing = [0], [0.0]
            if who == "audioclip-beam":

                def run(some: list[str] = some, nodes: list[int] = nodes, spent: list[float] = tokenizing) -> None:
                    nodes[0], spent[0] = our_round(ours, some)

                seconds, cpu = measure(run)
            else:
                seconds, cpu = measure(lambda encode=encode, some=some: encode(some))
            flop = flop_per_node() * (nodes[0] * (1 - LAST_LAYER) + len(some) * LAST_LAYER) / seconds
            rates[who].append(Rate(len(some) / seconds, flop, cpu / seconds, tokenizing[0] / seconds))
    return rates


def free(sizes: Sizes) -> None:
    """Return unused memory to the GPU."""
    if sizes.device != "cpu":
        torch.cuda.empty_cache()


def micro_batches(sizes: Sizes, clock: Clock) -> bool:
    """Measure sizes of micro-batches, and the standard one with a long template around each text."""
    name, texts = corpus()
    texts = texts[: sizes.texts]
    print(
        f"\n| micro-batch of {name} | dtype | texts per second | micro-batches | slots per node | peak memory |", end=""
    )
    print(" reserved | out of memory |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    kind = torch.device(sizes.device).type
    standard = encoder_module.MAX_NODES[kind]
    for dtype in sizes.dtypes:
        words = [TEMPLATE.format(f"number {number}") for number in range(min(8192, len(texts)))]
        for nodes, of_texts in [*((nodes, texts) for nodes in sizes.nodes), (standard, words)]:
            if not clock.fits(3 * sizes.seconds, f"micro-batches of {nodes} nodes in {dtype}"):
                return True
            encoder_module.MAX_NODES[kind] = nodes  # what an encoder starts with, and grows to
            try:
                ours = our_encoder(sizes, dtype)
                free(sizes)
                ours.encode(of_texts)  # a warm-up of all shapes, in which the memory is allocated
                if kind == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                work = ours.encode_rows(of_texts).work
                seconds = time.perf_counter() - began
            finally:
                encoder_module.MAX_NODES[kind] = standard
            memory = "not known | not known"
            if kind == "cuda":
                used = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
                memory = " | ".join(f"{bytes_ / 1e9:.2f} GB" for bytes_ in used)
            slots = work.extra["slots"] / work.extra["nodes"]
            cells = (
                f"{len(of_texts) / seconds:,.0f} | {work.micro_batches} | {slots:.1f} | {memory} | {work.oom_retries}"
            )
            note = ", long template" if of_texts is words else " (as set)" if nodes == standard else ""
            print(f"| {nodes:,} nodes{note} | {dtype} | {cells} |", flush=True)
            del ours
            free(sizes)
    return True


def heads(sizes: Sizes, clock: Clock) -> bool:
    """Measure the networks of the image head and the audio head, and their encoders from files."""
    import media_gpu

    for head in ("image", "audio"):
        contents = media_gpu.items(head, sizes.contents, sizes.recording)
        print(
            f"\n| {head}, {len(contents)} contents | dtype | per second | ours is | share of the matrix peak |", end=""
        )
        print(" cores busy |\n| --- | --- | --- | --- | --- | --- |")
        for dtype in sizes.dtypes:
            speeds: dict[str, float] = {}
            for name, make in media_gpu.contenders(head, dtype, sizes.device):
                if not clock.fits(4 * sizes.seconds, f"{name}, {head}, {dtype}"):
                    return True
                try:
                    encode = make()
                    encode(contents)  # a warm-up, in which torch.compile compiles
                except Exception as error:
                    print(
                        f"left out: {name} {dtype} ({type(error).__name__}: {str(error).splitlines()[:1]})", flush=True
                    )
                    continue
                seconds, cpu = min(measure(functools.partial(encode, contents)) for _ in range(sizes.rounds))
                speeds[name] = len(contents) / seconds
                flop = media_gpu.flop(head, sizes.recording) * speeds[name]
                share = "" if name == media_gpu.WHOLE else f"{flop / peak(sizes, dtype):.1%}"
                ratio = speeds[media_gpu.OURS] / speeds[name] if media_gpu.OURS in speeds else float("nan")
                cells = f"{speeds[name]:,.1f} | {ratio:.2f} x | {share} | {cpu / seconds:.1f}"
                print(f"| {name} | {dtype} | {cells} |", flush=True)
                del encode
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
            figures: list[str] = []
            with suppress(OSError, subprocess.SubprocessError):  # it may not know a part of a GPU, nor answer in time
                figures = nvidia_smi("utilization.gpu,memory.used").split(",")
            for seen, figure in zip((self.busy, self.memory), figures, strict=False):
                with suppress(ValueError):  # "[N/A]" of a part of a GPU
                    seen.append(float(figure))


def nvidia_smi(fields: str) -> str:
    """Return what nvidia-smi says of the first GPU that torch sees, without units."""
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"  # CUDA_VISIBLE_DEVICES numbers GPUs again
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", gpu]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


_RUNNING: set[int] = set()  # sessions of runs, for the end of the time


def run_embed(sizes: Sizes, folder: Path, processes: int, seconds: float, suffix: str = "jsonl") -> tuple[float, Watch]:
    """Embed the files in `folder` with so many processes; return wall seconds and what was seen."""
    output = folder / "out"
    command = [*COMMAND, "embed", "--input", f"{folder}/*.{suffix}"]
    command += ["--output", str(output), "--checkpoint", "untrained"]
    command += ["--tokenizer_path", str(corpora.VOCABULARY)] if suffix == "jsonl" else []
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
    name, texts = corpus()
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
        print(f"| {number} | {run_cells(rows, start, wall, watch)} | {size / 1e9:.2f} GB |", flush=True)
    return media_files(sizes, clock)


def run_cells(rows: int, start: float, wall: float, watch: Watch) -> str:
    """Return the cells of a run of so many rows, of which one alone takes the seconds of `start`."""
    after = rows / max(1e-3, wall - start)
    busy = f"{statistics.mean(watch.busy):.0f} %" if watch.busy else "not known"
    memory = f"{max(watch.memory):,.0f} MB" if watch.memory else "not known"
    cores = sum(watch.cpu.values()) / wall
    return f"{start:.1f} s | {wall:.1f} s | {after:,.0f} | {rows / wall:,.0f} | {cores:.1f} | {busy} | {memory}"


def media_files(sizes: Sizes, clock: Clock) -> bool:
    """Embed files of pictures and of sounds, different behind their ends alone, with one process."""
    import media_gpu

    print(f"\n| {sizes.files:,} files | start (one file) | wall | files per second after the start | with it |", end="")
    print(" cores busy | GPU busy | GPU memory |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for head in ("image", "audio"):
        if not clock.fits(30.0 if sizes.device != "cpu" else 0.0, f"files, {head}"):
            return True
        with tempfile.TemporaryDirectory() as scratch:
            data, suffix = media_gpu.files(head, 16, sizes.recording)
            for name, count in (("one", 1), ("all", sizes.files)):
                (Path(scratch) / name).mkdir()
                for number in range(count):
                    content = data[number % len(data)] + number.to_bytes(8, "little")
                    (Path(scratch) / name / f"{number:06}.{suffix}").write_bytes(content)
            start, _ = run_embed(sizes, Path(scratch) / "one", 1, max(1.0, clock.left()), suffix)
            wall, watch = run_embed(sizes, Path(scratch) / "all", 1, max(1.0, clock.left()), suffix)
        print(f"| {head} | {run_cells(sizes.files, start, wall, watch)} |", flush=True)
    return True


def print_machine(sizes: Sizes) -> None:
    """Print the GPU, the driver and the versions."""
    if sizes.device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        driver = "not known"
        with suppress(OSError, subprocess.SubprocessError):
            driver = nvidia_smi("driver_version")
        print(
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA {torch.version.cuda}"
        )
        matmul = torch.backends.cuda.matmul
        allowed = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
        print(f"precision of float32 products before this program sets it to the full one: {allowed}")
    print(f"{machine()}, {os.cpu_count()} cores")
    packages = ["torch", "transformers", "sentence-transformers", "apache-beam", "pyarrow", "numpy"]
    print(", ".join(map(package_version, packages)), f"Python {platform.python_version()}", sep="\n", flush=True)


PARTS: dict[str, Callable[[Sizes, Clock], bool]] = {
    "parity": parity,
    "tower": tower,
    "encoder": encoder,
    "micro_batches": micro_batches,
    "heads": heads,
    "processes": processes,
}
# Of the time that is left.
SHARES = {"parity": 0.15, "tower": 0.2, "encoder": 0.35, "micro_batches": 0.35, "heads": 0.5, "processes": 1.0}


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
    parser.add_argument("--minutes", type=float, help="after which it ends (default: 8, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="few sizes, for a first look")
    parser.add_argument("--smoke", action="store_true", help="run every part on the CPU with tiny sizes")
    args = parser.parse_args()
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    if not args.smoke:
        try:
            pick_device(GPU.device, "float32")
        except RuntimeError as error:
            parser.error(f"{error}; --smoke runs every part on the CPU")
    sizes = on_this_gpu(SMOKE if args.smoke else QUICK if args.quick else GPU)
    minutes = args.minutes or (1.0 if args.quick else 8.0)
    end_in(60 * minutes)
    whole = Clock(60 * minutes - (3 if args.quick else 10))
    print_machine(sizes)
    good = True
    for name in args.parts or PARTS:
        print(f"\n### {name}", flush=True)
        began = time.monotonic()
        try:
            with no_tf32():  # for all encoders
                good &= PARTS[name](sizes, Clock(whole.left() * SHARES[name]))
        except Exception:  # the other parts are worth their minutes
            traceback.print_exc()
            good = False
        print(f"\n{name} took {time.monotonic() - began:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
