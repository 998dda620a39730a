"""The cost of the pipeline around the heads of pictures and sounds, from files to snapshots.

    python benchmarks/media_pipeline.py [plumbing] [many] [requests] [long] [first] [end_to_end] [decode]

plumbing    files of 20 kB per CPU second with a stub head, the start not counted, divided by those of a loop that hashes
            each file and reads it twice
many        10,000 pictures and 10,000 sounds with a stub head: the most memory, beside that of 2,000; and bytes read per
            byte of the files, in a first run, in one over retouched files, and in one over unchanged ones
requests    requests per file of an emulated gs:// and s3://, in the same runs
long        three hours of WAV, FLAC, Ogg and MP3 of a variable bit rate, with a stub head: memory beside that of ten
            seconds, CPU time per window beside that of an hour, and whether each window is the one that is cut by hand
first       seconds from the command to the first vector of a file, with random weights
end_to_end  files per second of a whole run, the start not counted, divided by those of the encoder alone on the same files,
            decoding included
decode      CPU milliseconds to decode and prepare a picture or sound, in one thread

Every measurement is a separate process; pairs run in alternation, and ratios are medians. --smoke runs everything with a few
small files of one kind, in this process.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from corpora import ROOT

sys.path.insert(0, str(ROOT))

HEADS = ("image", "audio")
SUFFIXES = {"image": "jpg", "audio": "wav"}
LONG: dict[str, dict[str, Any]] = {
    "wav": {"format": "WAV"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG"},
    "mp3": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.7},
}
RATE = 16_000  # samples per second of long recordings
MEMORY_FILES = 2_000  # with which the memory of more files is compared


class Sizes(argparse.Namespace):
    """How much is measured, by default and with --smoke."""

    plumbing: tuple[int, int] = (4_000, 24_000)
    many: int = 10_000
    requests: int = 200
    hours: float = 3
    heads: tuple[str, ...] = HEADS
    kinds: tuple[str, ...] = tuple(LONG)
    end_to_end: dict[str, tuple[int, int]]
    rounds: int = 3
    clock: str = "wall"
    smoke: bool = False


def child(what: str, *arguments: object, smoke: bool = False) -> dict[str, Any]:
    """Return the figures of one measurement, in a separate process but for --smoke."""
    if smoke:
        return CHILDREN[what](*map(str, arguments))
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def picture(number: int, width: int = 320, height: int = 240) -> bytes:
    """Return a JPEG file about as large as photographs of this size: 20 kB for 320 x 240 pixels."""
    from PIL import Image

    random, file = np.random.default_rng(number), io.BytesIO()
    small = random.integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def sound(number: int, samples: int = 10_000, rate: int = RATE, **options: Any) -> bytes:
    """Return a file of noise: 20 kB as WAV for 10,000 samples."""
    import soundfile

    file = io.BytesIO()
    noise = np.random.default_rng(number).uniform(-0.3, 0.3, samples)
    soundfile.write(file, noise, rate, **({"format": "WAV"} | options))
    return file.getvalue()


def write_files(folder: Path, head: str, first: int, last: int) -> int:
    """Write files from number `first` to before `last`, different behind their ends alone; return their bytes."""
    make: Callable[[int], bytes] = picture if head == "image" else sound
    data, size = [make(number) for number in range(8)], 0
    for number in range(first, last):
        path = folder / f"{number // 1000:03}/{number:06}.{SUFFIXES[head]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size += path.write_bytes(data[number % len(data)] + number.to_bytes(8, "little"))
    return size


def bytes_read() -> int:
    """Return what this process has read from files so far, in bytes (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def instant_head(head: str, dim: int) -> Any:
    """Return a head whose encoder returns noise, or, for 8 numbers, digests."""
    from instant import InstantPictures, InstantSounds, noise

    noise()
    return InstantPictures(dim) if head == "image" else InstantSounds(dim)


def stub_run(head: str, pattern: str, output: str, dim: str = "1024") -> dict[str, Any]:
    """Run EmbedCorpus over the files of a glob with a stub head, without the report's page, which any run has."""
    from audioclip_beam.pipeline.embed import EmbedCorpus
    from audioclip_beam.pipeline.options import EmbedOptions
    from audioclip_beam.pipeline.publish import publish_snapshot
    from audioclip_beam.pipeline.run.runner import run
    from audioclip_beam.pipeline.snapshots.commit import read_manifest
    from tests.support.memory import peak

    logging.getLogger().setLevel(logging.ERROR)  # as the command does
    stub, write_report = instant_head(head, int(dim)), publish_snapshot.write_report
    publish_snapshot.write_report = lambda *_: "report.html"
    options = EmbedOptions(input=[pattern], output=output, head=head, checkpoint="untrained")
    wall, cpu, read = time.perf_counter(), time.process_time(), bytes_read()
    with closing(EmbedCorpus(options, stub)) as corpus:
        run(corpus, options)
    figures = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "bytes_read": bytes_read() - read}
    publish_snapshot.write_report = write_report
    manifest = read_manifest(output, str(corpus.snapshot))
    assert manifest is not None
    return {**figures, "peak": peak() * 1024, "rows": manifest["totals"]["vectors"], **manifest["counts"]}


def bare_run(pattern: str) -> dict[str, Any]:
    """Hash each file of a glob, and read it twice."""
    from glob import glob

    cpu = time.process_time()
    for path in sorted(glob(pattern, recursive=True)):
        with open(path, "rb") as file:
            hashlib.blake2b(file.read(), digest_size=16).digest()
        with open(path, "rb") as file:
            file.read()
    return {"cpu": time.process_time() - cpu}


def plumbing(folder: Path, sizes: Sizes) -> None:
    few, many = sizes.plumbing
    for head in sizes.heads:
        write_files(folder / head / "few", head, 0, few)
        write_files(folder / head / "many", head, 0, many)
        shares, rates = [], []
        for turn in range(sizes.rounds):
            seconds = {"bare": 0.0, "ours": 0.0}
            for sign, which in ((-1, "few"), (1, "many")):
                pattern = f"{folder}/{head}/{which}/**/*.{SUFFIXES[head]}"
                seconds["bare"] += sign * child("bare_run", pattern, smoke=sizes.smoke)["cpu"]
                output = f"{folder}/{head}-{which}-{turn}"
                seconds["ours"] += sign * child("stub_run", head, pattern, output, smoke=sizes.smoke)["cpu"]
            shares.append(seconds["bare"] / seconds["ours"])
            rates.append((many - few) / seconds["ours"])
        print(
            f"plumbing    {head}: {statistics.median(rates):,.0f} files per CPU second, {statistics.median(shares):.2f} of "
            f"those of a loop that hashes and reads them twice",
            flush=True,
        )


def many(folder: Path, sizes: Sizes) -> None:
    for head in sizes.heads:
        source, pattern = folder / head, f"{folder}/{head}/**/*.{SUFFIXES[head]}"
        size = write_files(source, head, 0, min(MEMORY_FILES, sizes.many))
        small = child("stub_run", head, pattern, f"{folder}/{head}-small", smoke=sizes.smoke)
        size += write_files(source, head, min(MEMORY_FILES, sizes.many), sizes.many)

        def run(dim: int, output: str, head: str = head, pattern: str = pattern) -> dict[str, Any]:
            return child("stub_run", head, pattern, output, dim, smoke=sizes.smoke)

        large = run(1024, f"{folder}/{head}-large")
        print(
            f"many        {head}: {sizes.many:,} files {large['peak'] / 1e6:,.0f} MB, {large['peak'] / small['peak']:.2f} "
            f"times that of {small['rows']:,}"
        )
        output = f"{folder}/{head}-read"  # with vectors of 8 numbers: reading those of known contents is little
        for what in ("first run", "retouched", "unchanged"):
            if what == "retouched":
                for path in source.rglob("*.*"):
                    path.touch()
            done = run(8, output)
            print(
                f"many        {head}, {what}: {done['bytes_read'] / size:.3f} bytes read per byte of the files, "
                f"{done['embedded']:,} embedded, {done['reused']:,} reused",
                flush=True,
            )


def requests(folder: Path, sizes: Sizes) -> None:
    for scheme in ("gs", "s3"):
        for head in sizes.heads:
            for what, figures in child("requests_run", scheme, head, sizes.requests, smoke=sizes.smoke).items():
                methods = ", ".join(f"{number / sizes.requests:.2f} {method}" for method, number in figures.items())
                print(f"requests    {scheme}://, {head}, {what}: per file {methods or 'none'}", flush=True)


def requests_run(scheme: str, head: str, count: str) -> dict[str, Any]:
    """Count the requests of runs over objects, by method."""
    from collections import Counter

    import pytest

    from tests.support.object_stores import connected

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with (
        pytest.MonkeyPatch.context() as patch,
        connected(scheme, patch) as store,
        tempfile.TemporaryDirectory() as folder,
    ):
        paths = [Path(folder, f"{number:06}.{SUFFIXES[head]}") for number in range(int(count))]
        write_files(Path(folder), head, 0, int(count))
        found = dict[str, Any]()
        for what in ("first run", "one in ten rewritten", "unchanged"):
            for number, path in enumerate(paths):
                if what == "first run" or (what.startswith("one") and number % 10 == 0):
                    data = Path(folder, f"{number // 1000:03}", path.name).read_bytes()
                    store.put(path.name, data if what == "first run" else data + b"again")
            store.seen.clear()
            stub_run(head, f"{store.url}/*.{SUFFIXES[head]}", f"{folder}/out", "8")
            seen = Counter(
                f"{request.method} of files" if _is_file(request.path) else "others" for request in store.seen
            )
            found[what] = dict(sorted(seen.items()))
        return found


def _is_file(path: str) -> bool:
    """Return whether a request is for one of the files, not for a listing."""
    return any(f".{suffix}" in path.partition("?")[0] for suffix in SUFFIXES.values())


def write_long(path: Path, seconds: float) -> None:
    """Write a recording: noise whose loudness changes every second, a minute at a time."""
    import soundfile

    kind = LONG[path.suffix[1:]]
    random, left = np.random.default_rng(0), round(seconds * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1, **kind) as file:
        while left:
            n = min(left, 60 * RATE)
            loudness = np.repeat(random.uniform(0.001, 0.3, n // RATE + 1), RATE)[:n]
            file.write((random.standard_normal(n) * loudness).clip(-1, 1).astype(np.float32))
            left -= n


def long(folder: Path, sizes: Sizes) -> None:
    for kind in sizes.kinds:
        done = dict[float, dict[str, Any]]()
        lengths = (10.0, sizes.hours * 1200, sizes.hours * 3600)
        for seconds in lengths:
            path = folder / f"{seconds:.0f}" / f"long.{kind}"
            path.parent.mkdir(exist_ok=True)
            write_long(path, seconds)
            done[seconds] = child("stub_run", "audio", path, f"{folder}/out{kind}{seconds:.0f}", 8, smoke=sizes.smoke)
        base, third, whole = (done[seconds] for seconds in lengths)
        costs = [(each["cpu"] - base["cpu"]) / (each["rows"] - 1) * 1000 for each in (third, whole)]
        different = child("compare_windows", path, f"{folder}/out{kind}{lengths[-1]:.0f}", smoke=sizes.smoke)[
            "different"
        ]
        print(
            f"long        {kind}: {sizes.hours:g} hours, {whole['rows']:,} windows, "
            f"{(whole['peak'] - base['peak']) / 1e6:,.0f} MB more than for ten seconds, {costs[1]:.2f} ms of CPU time per "
            f"window, {costs[1] / costs[0]:.2f} times that of a third; {different} windows differ from those cut by hand",
            flush=True,
        )
        path.unlink()


def compare_windows(path: str, output: str) -> dict[str, Any]:
    """Return how many windows of a snapshot are others than those that AudioEncoder cuts."""
    from audioclip_beam.model.audio import AudioEncoder
    from tests.support.corpus import read
    from tests.support.stub_media import vector_of

    rows = read(Path(output)).sort_by("start")
    cut = [(track.start, track.end, vector_of(track).tolist()) for track in AudioEncoder.windows(path)]
    found = list(zip(*(rows[name].to_pylist() for name in ("start", "end", "embedding")), strict=True))
    return {
        "different": abs(len(cut) - len(found)) + sum(ours != theirs for ours, theirs in zip(found, cut, strict=False))
    }


class _Watch:
    """An import hook that prints when the encoder of a head has its first vector, in seconds since a time."""

    def __init__(self, head: str, began: float) -> None:
        self.head, self.began = head, began

    def find_spec(self, name: str, *_: object) -> Any:
        """Return the spec of the encoder's module, whose encoder is then watched."""
        if name != f"audioclip_beam.model.{self.head}.encoder":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_watch(module: Any) -> None:
            execute(module)
            kind = getattr(module, f"{self.head.capitalize()}Encoder")
            encode = kind.encode_rows

            def watched(encoder: Any, contents: Any, *rest: Any, **options: Any) -> Any:
                found = encode(encoder, contents, *rest, **options)
                if len(contents) == 1:  # not the canary
                    FOUND["vector"] = time.time() - self.began
                return found

            kind.encode_rows = watched

        spec.loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


FOUND = dict[str, Any]()


def first_run(head: str, began: str, source: str, output: str) -> dict[str, Any]:
    """Embed one file by the command, in a process that was started at `began`."""
    sys.meta_path.insert(0, _Watch(head, float(began)))  # type: ignore[arg-type]
    from audioclip_beam.pipeline.cli import main

    with redirect_stdout(io.StringIO()):
        main(["embed", "--input", source, "--output", output, "--checkpoint", "untrained"])
    return FOUND | {"end": time.time() - float(began)}


def first(folder: Path, sizes: Sizes) -> None:
    contents = {"text": ("a.txt", b"dog barking\n"), "image": ("a.jpg", picture(0)), "audio": ("a.wav", sound(0))}
    for head, (name, data) in contents.items():
        (folder / name).write_bytes(data)
        found = []
        for turn in range(sizes.rounds):
            found.append(child("first_run", head, time.time(), folder / name, folder / f"{head}{turn}"))
        best = min(found, key=lambda each: each["vector"])
        print(
            f"first       {head}: {best['vector']:.2f} s to the first vector, {best['end']:.2f} s to the end",
            flush=True,
        )


def measured(call: Callable[[], object], clock: str) -> dict[str, Any]:
    """Return the seconds of a call."""
    now = time.perf_counter if clock == "wall" else time.process_time
    began = now()
    call()
    return {"seconds": now() - began}


def encode_run(head: str, pattern: str, clock: str) -> dict[str, Any]:
    """Encode all files of a glob by the encoder alone; recordings are short, so each is one row."""
    from glob import glob

    from audioclip_beam.model import AudioEncoder, ImageEncoder

    encoder = (ImageEncoder if head == "image" else AudioEncoder).load("untrained", device="cpu")
    paths = sorted(glob(pattern, recursive=True))
    encoder.encode(paths[:4])
    return measured(lambda: encoder.encode(paths), clock)


def embed_run(head: str, pattern: str, output: str, clock: str) -> dict[str, Any]:
    """Embed all files of a glob by the command."""
    from audioclip_beam.pipeline.cli import main

    flags = ["--input", pattern, "--output", output, "--head", head, "--checkpoint", "untrained", "--device", "cpu"]
    with redirect_stdout(io.StringIO()):
        return measured(lambda: main(["embed", *flags]), clock)


def end_to_end(folder: Path, sizes: Sizes) -> None:
    for head, (few, many) in sizes.end_to_end.items():
        for which, number in (("few", few), ("many", many)):
            (folder / head / which).mkdir(parents=True)
            for each in range(number):
                data = picture(each, 640, 480) if head == "image" else sound(each, 5 * 44_100, 44_100, format="FLAC")
                (folder / head / which / f"{each}.{'jpg' if head == 'image' else 'flac'}").write_bytes(data)
        shares, rates = [], []
        for turn in range(sizes.rounds):
            seconds = {"alone": 0.0, "run": 0.0}
            for sign, which in ((-1, "few"), (1, "many")):
                pattern, output = f"{folder}/{head}/{which}/*.*", f"{folder}/{head}-{which}-{turn}"
                alone = child("encode_run", head, pattern, sizes.clock, smoke=sizes.smoke)["seconds"]
                run = child("embed_run", head, pattern, output, sizes.clock, smoke=sizes.smoke)["seconds"]
                seconds["alone"] += sign * alone
                seconds["run"] += sign * run
            shares.append(seconds["alone"] / seconds["run"])
            rates.append((many - few) / seconds["alone"])
        print(
            f"end_to_end  {head}: the encoder alone {statistics.median(rates):.1f} files per {sizes.clock} second, a run "
            f"{statistics.median(shares):.3f} of it ({', '.join(f'{share:.3f}' for share in shares)})",
            flush=True,
        )


def contents_to_decode(smoke: bool) -> Iterator[tuple[str, str, bytes, int]]:
    """Yield (name, head, bytes, how often it is decoded) of each content."""
    times = 1 if smoke else 40
    yield "JPEG of 12 megapixels", "image", picture(0, 4000, 3000), max(1, times // 4)
    yield "JPEG of 640 x 480 pixels", "image", picture(0, 640, 480), times * 5
    yield "5 s of FLAC", "audio", sound(0, 5 * 44_100, 44_100, format="FLAC"), times
    minute = 1 if smoke else 60
    yield "a minute of MP3 at 48 kHz", "audio", sound(0, minute * 48_000, 48_000, format="MP3"), max(1, times // 4)


def decode(folder: Path, sizes: Sizes) -> None:
    for name, milliseconds in child("decode_run", "smoke" if sizes.smoke else "", smoke=sizes.smoke).items():
        print(f"decode      {name}: {milliseconds:.1f} ms of CPU time", flush=True)


def decode_run(smoke: str = "") -> dict[str, Any]:
    """Return the CPU milliseconds per content of decoding and preparing it as the encoder does."""
    from audioclip_beam.model.audio import AudioEncoder
    from audioclip_beam.model.audio.prepare import prepare as prepare_track
    from audioclip_beam.model.image.pictures import prepare as prepare_picture
    from audioclip_beam.model.image.settings import ImageSettings

    settings, found = ImageSettings("untrained"), dict[str, Any]()
    for name, head, data, times in contents_to_decode(bool(smoke)):

        def decode_it(head: str = head, data: bytes = data) -> None:
            if head == "image":
                prepare_picture(data, settings)
                return
            for track in AudioEncoder.windows(data):
                prepare_track(track, None, False)

        decode_it()
        began = time.process_time()
        for _ in range(times):
            decode_it()
        found[name] = (time.process_time() - began) / times * 1000
    return found


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    each.__name__: each
    for each in (stub_run, bare_run, requests_run, compare_windows, first_run, encode_run, embed_run, decode_run)
}
ALL: dict[str, Callable[[Path, Sizes], None]] = {
    each.__name__: each for each in (plumbing, many, requests, long, first, end_to_end, decode)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*ALL, []], help="default: all")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of end_to_end")
    parser.add_argument("--hours", type=float, default=Sizes.hours, help="of long recordings")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--smoke", action="store_true")
    sizes = parser.parse_args(arguments, Sizes())
    sizes.end_to_end = {"image": (64, 448), "audio": (16, 112)}
    if sizes.smoke:
        sizes.heads, sizes.kinds = HEADS[:1], ("mp3",)
        sizes.plumbing, sizes.many, sizes.requests, sizes.rounds = (2, 6), 8, 3, 1
        sizes.hours, sizes.end_to_end = 0.01, dict.fromkeys(HEADS, (1, 2))
    for name in sizes.what or ALL:
        with tempfile.TemporaryDirectory() as folder:
            ALL[name](Path(folder), sizes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        if sys.argv[2] != "first_run":  # imports are measured there alone
            import torch  # noqa: F401

            import audioclip_beam.pipeline.embed
            import audioclip_beam.pipeline.run.runner  # noqa: F401

        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
