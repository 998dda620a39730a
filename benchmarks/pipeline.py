"""The cost of the pipeline around the model, and of a nightly run after few changes.

    python benchmarks/pipeline.py [plumbing] [overlap] [memory] [end_to_end] [night] [nights] [unchanged] [workers] [start]

plumbing    rows per CPU second from jsonl to Parquet with a stub model, divided by those of pyarrow alone, and of
            pyarrow with the checksums that we write: of each page, and of the whole file
overlap     seconds of a run of 300,000 rows with a device that takes 10 or 20 us per text, divided by the larger of two:
            those of the device alone, and those of the run without it
memory      peak of a process for 1,000, 100,000 and 1,000,000 rows, and for 1,000,000 rows of one text, with a stub
            model; and of 1, 2 and 4 processes together with the real one, pages that they share counted once
end_to_end  rows/s of a whole run, divided by texts/s of TextEncoder.encode alone on the same texts
night       the same texts again, a shard touched: time of the first run, divided by that of the second; and of one
            with 1 % of the texts changed
nights      bytes read and written and CPU seconds of nights over 100,000 rows in 20 shards, with a stub model: the first,
            1 % appended as a shard, one shard changed, the same shard again, and 1 % of the rows changed in every shard
unchanged   seconds of the command if no shard changed, for 20 shards and for 5,000
workers     two worker processes of one thread each, compared with one process of two threads, with and without the
            start (from the difference between 4,000 rows and 12,000)
start       seconds from the command to each step up to the first text in the model and the end; of --help, log and current

Texts are WordNet's glosses. Every measurement is a separate process; pairs run in alternation, and ratios are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from corpora import ROOT, VOCABULARY, write_shards

DIM = 1024


def child(what: str, *arguments: object, **environment: str) -> dict[str, float]:
    """Return the figures of one measurement in a separate process."""
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def stub_run(folder: str, output: str, *flags: str, delay: float = 0.0) -> None:
    """Run EmbedCorpus with a model that takes no time of the CPU, and waits `delay` seconds per text."""
    from instant import InstantHead

    from audioclip_beam.pipeline.cli.embed_command import parse_options
    from audioclip_beam.pipeline.embed import EmbedCorpus
    from audioclip_beam.pipeline.run.runner import run

    options = parse_options(["--input", f"{folder}/*.jsonl", "--output", output, *flags])
    corpus = EmbedCorpus(options, InstantHead(DIM, delay=delay))
    run(corpus, options)
    corpus.close()


def plumbing_run(folder: str, output: str, *flags: str, delay: float = 0.0) -> None:
    """Run EmbedCorpus as stub_run does, without the report's page, which costs the same for any number of rows."""
    from audioclip_beam.pipeline.publish import publish_snapshot

    publish_snapshot.write_report = lambda *_: "report.html"
    stub_run(folder, output, *flags, delay=delay)


def device_run(folder: str, output: str, delay: str, *flags: str) -> None:
    """Run EmbedCorpus as plumbing_run does, with a device that takes `delay` microseconds per text."""
    plumbing_run(folder, output, *flags, delay=float(delay) / 1e6)


def sleep_run(rows: str, delay: str) -> None:
    """Wait as the device does for so many texts, in batches of the pipeline's size."""
    for start in range(0, int(rows), 16384):
        time.sleep(min(16384, int(rows) - start) * float(delay) / 1e6)


def bare_run(folder: str, output: str, checked: str = "") -> None:
    """Read and write the same columns by pyarrow alone; if `checked`, with checksums of pages and files, as we do."""
    import instant
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    from audioclip_beam.model.text.head import TEXT
    from audioclip_beam.pipeline.schemas import part_schema, vector_type
    from audioclip_beam.pipeline.writers.parquet_file import part_options

    noise = pa.array(instant.noise().ravel())
    schema = part_schema(TEXT, DIM, pa.schema([]))
    options = part_options(schema, "plain") | {"write_page_checksum": bool(checked)}
    os.makedirs(output)
    for file in sorted(Path(folder).glob("*.jsonl")):
        path = f"{output}/{file.stem}.parquet"
        with pq.ParquetWriter(path, schema, **options) as writer:
            for batch in pj.read_json(file).to_batches(max_chunksize=4096):
                rows = batch.num_rows
                columns = {
                    "id": batch["id"],
                    "text": batch["text"],
                    "content_hash": pa.repeat(pa.scalar(b"h" * 16, pa.binary(16)), rows),
                    "shard": pa.repeat(file.name, rows),
                    "n_tokens": pa.repeat(pa.scalar(18, pa.int16()), rows),
                    "truncated": pa.repeat(False, rows),
                    "embedding": pa.FixedSizeListArray.from_arrays(noise[: rows * DIM], type=vector_type(DIM)),
                }
                writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
        if checked:
            with open(path, "rb") as handle:
                hashlib.file_digest(handle, "sha256")


def bytes_read() -> int:
    """Return what this process has read from files so far, in bytes (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def measured(run: Callable[..., object], *arguments: str) -> None:
    """Print CPU seconds, wall seconds, bytes read and peak bytes of a run, without earlier imports."""
    wall, cpu, read = time.perf_counter(), time.process_time(), bytes_read()
    run(*arguments)
    figures = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "read": bytes_read() - read}
    print(json.dumps(figures | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def encode_run(folder: str) -> None:
    """Run TextEncoder.encode over all texts of the shards."""
    from audioclip_beam.model import TextEncoder

    texts = [json.loads(line)["text"] for file in Path(folder).glob("*.jsonl") for line in file.open()]
    encoder = TextEncoder.load("untrained", tokenizer_path=VOCABULARY)
    encoder.encode(texts[:64])
    measured(lambda: encoder.encode(texts))


def embed_command(folder: Path, output: Path, *flags: str) -> list[str]:
    """Return the command line over the shards, with untrained weights."""
    command = [sys.executable, "-m", "audioclip_beam.pipeline", "embed", "--input", f"{folder}/*.jsonl"]
    return [*command, "--output", str(output), "--checkpoint", "untrained", "--tokenizer_path", str(VOCABULARY), *flags]


def embed(folder: Path, output: Path, *flags: str, threads: int | None = None) -> tuple[float, dict[str, object]]:
    """Run the command line over the shards; return wall seconds and the manifest."""
    command = embed_command(folder, output, *flags)
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    wall = time.perf_counter() - began
    name = json.loads((output / "current.json").read_text())["manifest"]
    return wall, json.loads((output / name).read_text())


def plumbing(folder: Path, rows: int = 300_000, rounds: int = 3) -> None:
    write_shards(folder / "in", rows)
    runs = {"default": [], "--unique_ids": ["--unique_ids"], "--no_dedupe": ["--no_dedupe"]}
    figures: dict[str, list[float]] = {}

    def measure(name: str, what: str, *flags: str) -> None:
        figures.setdefault(name, []).append(rows / child(what, folder / "in", folder / "out", *flags)["cpu"])

    for _ in range(rounds):
        for name, flags in runs.items():
            measure(name, "plumbing_run", *flags)
            if name == "default":
                for shard in (folder / "in").iterdir():
                    shard.touch()
                measure("all reused", "plumbing_run")
            shutil.rmtree(folder / "out")
        for name, flags in {"pyarrow": [], "pyarrow, with checksums": ["checked"]}.items():
            measure(name, "bare_run", *flags)
            shutil.rmtree(folder / "out")
    for name, rates in figures.items():
        shares = [
            statistics.median(rate / bare for rate, bare in zip(rates, figures[other], strict=True))
            for other in ("pyarrow", "pyarrow, with checksums")
        ]
        print(
            f"plumbing    {name:<23} {statistics.median(rates):>9,.0f} rows per CPU second, {shares[0]:.2f} of pyarrow, "
            f"{shares[1]:.2f} of it with checksums"
        )


def overlap(folder: Path, rows: int = 300_000, rounds: int = 3, delays: tuple[int, ...] = (10, 20)) -> None:
    write_shards(folder / "in", rows)
    for flags in ([], ["--no_dedupe"]):
        figures: dict[int, list[tuple[float, float]]] = {delay: [] for delay in delays}
        for _ in range(rounds):
            walls = {}
            for delay in (0, *delays):
                walls[delay] = child("device_run", folder / "in", folder / "out", delay, *flags)["wall"]
                shutil.rmtree(folder / "out")
            for delay in delays:
                device, plumbing = child("sleep_run", rows, delay)["wall"], walls[0]
                larger = max(device, plumbing)
                figures[delay].append((walls[delay] / larger, (device + plumbing) / larger))
                print(
                    f"overlap     plumbing {plumbing:.1f} s, device {device:.1f} s, both {walls[delay]:.1f} s",
                    flush=True,
                )
        for delay, pairs in figures.items():
            ratio, in_turn = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"overlap     {flags[0] if flags else 'default':<12} {delay} us per text: {ratio:.2f} times the larger one; "
                f"one after the other {in_turn:.2f}"
            )


def memory(folder: Path) -> None:
    first = 0.0
    for rows, one_text in ((1_000, False), (100_000, False), (1_000_000, False), (1_000_000, True)):
        write_shards(folder / "in", rows, one_text=one_text)
        peak = child("stub_run", folder / "in", folder / "out", "--id_field", "id")["peak"]
        first = first or peak
        print(
            f"memory      {rows:,} rows{' of one text' if one_text else ''}, stub model: {peak / 1e6:,.0f} MB, "
            f"{peak / first:.2f} times the first",
            flush=True,
        )
        shutil.rmtree(folder / "in")
        shutil.rmtree(folder / "out")
    write_shards(folder / "in", 4_000, shards=8)
    for processes in (1, 2, 4):
        flags = ["--direct_num_workers", str(processes)]
        flags += ["--direct_running_mode", "multi_processing"] if processes > 1 else []
        together, largest = _peaks(embed_command(folder / "in", folder / f"out{processes}", *flags))
        print(
            f"memory      4,000 glosses, float32, {processes} processes: {together / 1e6:,.0f} MB together, "
            f"{largest / 1e6:,.0f} MB the largest",
            flush=True,
        )


def _peaks(command: list[str]) -> tuple[int, int]:
    """Return the most bytes that a command and its processes had at a time, and the largest process of that moment.

    A page that several processes share counts for each of them in part, and once in all (Linux's PSS).
    """
    import psutil

    most = [0]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            sizes = []
            with suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                for each in (parent, *parent.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        sizes.append(each.memory_full_info().pss)
            most = max(most, sizes, key=sum)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return sum(most), max(most)


def end_to_end(folder: Path, rows: int = 20_000, rounds: int = 3) -> None:
    write_shards(folder / "in", rows)
    started, whole = [], []
    for turn in range(rounds):
        bare = child("encode_run", folder / "in")["wall"]
        wall, manifest = embed(folder / "in", folder / f"out{turn}")
        seconds = manifest["seconds"]
        inside, model = float(seconds["total"]), float(seconds["model_seconds"]) + float(seconds["prepare_seconds"])
        started.append(bare / inside)
        whole.append(bare / wall)
        print(
            f"end_to_end  encoder alone {rows / bare:,.1f} texts/s; whole run {rows / inside:,.1f} rows/s once started, "
            f"{started[-1]:.3f} of it; {rows / wall:,.1f} with the start, {whole[-1]:.3f}; encoding is "
            f"{model / inside:.3f} of the run's own time",
            flush=True,
        )
    print(
        f"end_to_end  medians {statistics.median(started):.3f} once started, {statistics.median(whole):.3f} with the start"
    )


def night(folder: Path, rows: int = 20_000) -> None:
    write_shards(folder / "in", rows)
    first, _ = embed(folder / "in", folder / "out", "--id_field", "id")
    os.utime(folder / "in" / "0.jsonl")
    second, manifest = embed(folder / "in", folder / "out", "--id_field", "id")
    print(
        f"night       first run {first:,.1f} s, a shard touched {second:,.1f} s: {first / second:,.1f} times as fast",
        end="; ",
    )
    print(f"{manifest['counts']['model']['items']} texts through the model")
    for shard in (folder / "in").glob("*.jsonl"):
        lines = shard.read_text().splitlines()
        lines[::100] = [line.replace('"text": "', '"text": "edited: ') for line in lines[::100]]
        shard.write_text("\n".join(lines) + "\n")
    third, manifest = embed(folder / "in", folder / "out", "--id_field", "id")
    print(
        f"night       1 % changed {third:,.1f} s, {manifest['counts']['model']['items']} of {rows} texts through the model"
    )


def nights(folder: Path, rows: int = 100_000, shards: int = 20) -> None:
    """Print what each night of a corpus that changes read and wrote, beside the bytes of the new rows themselves."""
    source, output = folder / "in", folder / "out"
    write_shards(source, rows, shards=shards)

    def edit(path: Path, every: int) -> None:
        lines = path.read_text().splitlines()
        lines[::every] = [line.replace('"text": "', '"text": "edited: ') for line in lines[::every]]
        path.write_text("\n".join(lines) + "\n")

    def append() -> None:
        lines = [json.dumps({"id": f"new{n}", "text": f"a new text, number {n}"}) for n in range(rows // 100)]
        (source / "new.jsonl").write_text("\n".join(lines) + "\n")

    def scatter() -> None:
        for path in source.glob("*.jsonl"):
            edit(path, 100)

    changes: dict[str, Callable[[], object]] = {
        "first": lambda: None,
        "1 % appended": append,
        "one shard changed": lambda: edit(source / "7.jsonl", 50),
        "the same one again": lambda: edit(source / "7.jsonl", 51),
        "1 % scattered": scatter,
    }
    for name, change in changes.items():
        change()
        figures = child("stub_run", source, output, "--id_field", "id", "--input_format", "jsonl")
        directory = output / "snapshots" / json.loads((output / "current.json").read_text())["snapshot"]
        manifest = json.loads((directory / "manifest.json").read_text())
        files = [path.stat() for path in directory.glob("*.parquet")]
        written = sum(file.st_size for file in files if file.st_nlink == 1)
        linked = sum(file.st_size for file in files if file.st_nlink > 1)
        print(
            f"nights      {name}: {manifest['counts']['read']:,} rows read, {figures['read']:,.0f} bytes read, {written:,} "
            f"written, {linked:,} linked, {figures['cpu']:.1f} s of CPU time, {len(manifest['segments'])} segments",
            flush=True,
        )


def unchanged(folder: Path) -> None:
    for shards in (20, 5_000):
        source, output = folder / f"in{shards}", folder / f"out{shards}"
        source.mkdir()
        for shard in range(shards):
            (source / f"{shard}.jsonl").write_text(json.dumps({"text": f"dog barking {shard % 20}"}) + "\n")
        _, first = embed(source, output)
        walls, times = [], []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall, again = embed(source, output)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            walls.append(wall)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            if again["snapshot"] != first["snapshot"]:
                raise SystemExit("a run over unchanged shards made a new snapshot")
        print(
            f"unchanged   {shards:,} shards: {min(walls):.1f} s, {statistics.median(times):.1f} s of CPU time",
            flush=True,
        )


def workers(folder: Path, few: int = 4_000, many: int = 12_000) -> None:
    for rows in (few, many):
        write_shards(folder / f"in{rows}", rows)
    set_ups = {
        "one process of two threads": (["--direct_num_workers", "1"], 2),
        "two processes of one thread": (["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"], 1),
    }
    walls: dict[tuple[str, int], float] = {}
    for turn in range(2):
        for name, (flags, threads) in set_ups.items():
            for rows in (few, many):
                wall, _ = embed(folder / f"in{rows}", folder / f"{name}{rows}{turn}", *flags, threads=threads)
                walls[name, rows] = min(wall, walls.get((name, rows), wall))
    for name in set_ups:
        rate = (many - few) / (walls[name, many] - walls[name, few])
        print(
            f"workers     {name:<28} {few / walls[name, few]:,.1f} rows/s of {few:,} with the start, {rate:,.1f} without it"
        )


def start_run(command: str, began: str) -> None:
    """Run a command line in this process, which was started at `began`, and print when it reached what, in seconds."""
    from audioclip_beam.pipeline.cli import main
    from audioclip_beam.pipeline.cli.parser import parse  # noqa: F401 - as a part of the first step

    marks = {"Python, and the command line parsed": time.time()}

    def mark(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            marks.setdefault(name, time.time())
            return function(*args, **kwargs)

        return marked

    class Finder:
        """An import hook that notes when a module is first looked for."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "audioclip_beam.pipeline.inference.shared_encoder":
                marks["shards listed, compared with the last run"] = time.time()
            elif name == "apache_beam" and "torch" in sys.modules:
                marks.setdefault("torch imported", time.time())
                from audioclip_beam.model.text.encoder import TextEncoder
                from audioclip_beam.pipeline.inference.shared_encoder import EncoderThread

                EncoderThread.describe = mark("Beam imported", EncoderThread.describe)
                EncoderThread.load = mark("checkpoint and vocabulary read, pipeline built", EncoderThread.load)
                TextEncoder.encode_rows = mark("weights packed: first text in the model", TextEncoder.encode_rows)

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    main(json.loads(command))
    marks["rows embedded and published, report drawn"] = time.time()
    print(json.dumps({name: when - float(began) for name, when in marks.items()}))


def start(folder: Path) -> None:
    folder.joinpath("in").mkdir(parents=True)
    (folder / "in" / "a.jsonl").write_text('{"text": "dog barking"}\n')
    whole, marks = [], []
    for turn in range(3):
        whole.append(embed(folder / "in", folder / f"out{turn}")[0])
        flags = ["--input", f"{folder}/in/*.jsonl", "--output", f"{folder}/marks{turn}", "--checkpoint", "untrained"]
        command = json.dumps(["embed", *flags, "--tokenizer_path", str(VOCABULARY)])
        marks.append(child("start_run", command, time.time()))
    print(f"start       one row, {min(whole):.2f} s to the end of the process; of one run, seconds from its start:")
    for name, seconds in min(marks, key=lambda each: max(each.values())).items():
        print(f"            {seconds:5.2f}  {name}")
    for flags in (["--help"], ["log", str(folder / "out0")], ["current", str(folder / "out0")]):
        print(f"            {min(_command(flags) for _ in range(3)):5.2f}  audioclip {flags[0]}")


def _command(flags: list[str]) -> float:
    """Return the seconds of a command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "audioclip_beam.pipeline", *flags], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


ALL = {
    each.__name__: each for each in (plumbing, overlap, memory, end_to_end, night, nights, unchanged, workers, start)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*ALL, []], help="default: all")
    for name in parser.parse_args().what or ALL:
        with tempfile.TemporaryDirectory() as folder:
            ALL[name](Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        what, *arguments = sys.argv[2:]
        if what in ("encode_run", "start_run"):
            {"encode_run": encode_run, "start_run": start_run}[what](*arguments)
        else:
            sys.path.insert(0, str(ROOT))
            import instant

            # `start` measures imports, the others do not: Beam and torch would be imported at their first use.
            import audioclip_beam.pipeline.embed
            import audioclip_beam.pipeline.run.runner  # noqa: F401

            instant.noise()
            runs = (stub_run, plumbing_run, device_run, sleep_run, bare_run)
            measured({run.__name__: run for run in runs}[what], *arguments)
    else:
        main()
