"""What a night over many small files costs: python benchmarks/nights.py [--shards 50000] [--fabricate]

Makes files of one row each and a first snapshot of them, and runs `audioclip embed` when nothing changed, and when one file
was deleted, added or changed. Prints for each night the seconds of the command, its CPU seconds, the most memory of its
process, the shards that were opened, and the part files that were written. The text head is a small one with random weights,
so that what is measured is the cost of files.

With --fabricate the rows of the first snapshot are made up instead of read: a million files are not read for it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from corpora import ROOT

from audioclip_beam.pipeline.flags import MAX_FILE_ROWS

VOCABULARY = ROOT / ".cache" / "bpe_simple_vocab_16e6.txt.gz"

COUNT = """
import sys
opened = 0
def count(event, arguments):
    global opened
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(sys.argv[1]):
        opened += 1
sys.addaudithook(count)
from audioclip_beam.pipeline.cli import main
main(sys.argv[2:])
print(opened)
"""


def make_shards(folder: Path, shards: int) -> None:
    """Write files of one row, a thousand in each folder."""
    for number in range(shards):
        if number % 1000 == 0:
            (folder / f"{number // 1000:05}").mkdir(parents=True)
        (folder / f"{number // 1000:05}/{number:08}.txt").write_text(f"dog barking {number % 20}\n")


def command(source: Path, output: Path, glob: str = "**/*.txt") -> list[str]:
    """Return the arguments of `audioclip`."""
    model = ["--checkpoint", str(source.parent / "head.pt"), "--tokenizer_path", str(VOCABULARY)]
    return ["embed", "--input", f"{source}/{glob}", "--output", str(output), *model]


def in_a_process(function: Callable[..., None], *arguments: Path) -> None:
    """Call a function in another process: what this one has in memory counts as memory of those that it starts."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def make_head(path: Path) -> None:
    """Write a text head of one layer that gives vectors of 32 numbers."""
    import torch

    from audioclip_beam.model.text.shapes import text_shapes

    torch.manual_seed(1)
    torch.save({name: torch.randn(shape) * 0.1 for name, shape in text_shapes(64, 1, dim=32).items()}, path)


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Run `audioclip`; return its seconds, its CPU seconds and the most memory of its process in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "audioclip_beam.pipeline", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"audioclip {' '.join(arguments)} failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def opened_shards(source: Path, arguments: list[str]) -> int:
    """Run `audioclip` again; return how many times it opened a shard."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(source), *arguments], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return int(done.stdout.splitlines()[-1])


def directory_of(output: Path) -> Path:
    """Return the directory of the current snapshot."""
    return output / "snapshots" / json.loads((output / "current.json").read_text())["snapshot"]


def fabricate(source: Path, output: Path) -> None:
    """Make a snapshot of 10 shards, then have it name all, with rows and vectors for each."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from audioclip_beam.model.text.head import TEXT
    from audioclip_beam.pipeline.content import content_hash
    from audioclip_beam.pipeline.embedded_batch import EmbeddedBatch
    from audioclip_beam.pipeline.readers.input_files import find_shards
    from audioclip_beam.pipeline.snapshots.listing import read_file_list, write_file_list, write_shard_list
    from audioclip_beam.pipeline.writers.write_files import WriteFiles

    measure(command(source, output, "00000/0000000?.txt"))
    directory = directory_of(output)
    manifest = json.loads((directory / "manifest.json").read_text())
    (first,) = (file for file in read_file_list(str(output), manifest) if file.is_part)
    schema = pq.read_schema(directory / first.name)
    (directory / first.name).unlink()
    shards = find_shards([f"{source}/**/*.txt"]).table
    rows = len(shards)
    names, texts = shards["name"].combine_chunks(), pa.array(f"dog barking {number % 20}" for number in range(rows))
    vectors = np.random.default_rng(0).standard_normal(rows * manifest["dim"]).astype(np.float32)
    columns = {
        "id": pc.binary_join_element_wise(names, "0", "#"),
        "content_hash": content_hash(texts),
        "shard": names,
        "text": texts,
        "n_tokens": pa.repeat(pa.scalar(5, pa.int16()), rows),
        "truncated": pa.repeat(False, rows),
        "embedding": pa.FixedSizeListArray.from_arrays(vectors, type=schema.field("embedding").type),
    }
    batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    write = WriteFiles(str(directory), TEXT, schema, MAX_FILE_ROWS)
    write.setup()
    write.start_bundle()
    written = [*write.process(EmbeddedBatch(batch)), *(each.value for each in write.finish_bundle())]
    files = [replace(each.file, made_by=first.made_by) for each in written if each.file]
    listed = {"segment": 0, "rows": 1, "without_texts": 0}
    for name, value in listed.items():
        kind = pa.int32() if name == "segment" else pa.int64()
        shards = shards.append_column(name, pa.repeat(pa.scalar(value, kind), rows))
    shards = shards.append_column("damaged", pa.nulls(rows, pa.string()))
    totals = {**manifest["totals"], "read": rows, "vectors": rows}
    manifest |= {
        "files": write_file_list(str(directory), files),
        "shards": write_shard_list(str(directory), shards),
        "totals": totals,
        "segments": [{"shards": rows, "bytes": 0, "damaged": 0, "written": rows, "rows": totals}],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))


def main() -> None:
    """Print the table of nights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=50_000)
    parser.add_argument("--fabricate", action="store_true")
    parser.add_argument("--folder", help="where the files are made (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source, output = Path(folder, "in"), Path(folder, "out")
        make_shards(source, given.shards)
        in_a_process(make_head, Path(folder, "head.pt"))
        print("| night | seconds | CPU seconds | MB | shards opened | part files written |")
        print("| --- | --- | --- | --- | --- | --- |")
        run = command(source, output)
        if given.fabricate:
            in_a_process(fabricate, source, output)
        else:
            show("first run", measure(run), given.shards, output)
        nights = [measure(run) for _ in range(3)]
        show("nothing changed", tuple(map(min, zip(*nights, strict=True))), opened_shards(source, run), output)
        some = source / "00000"
        changes: dict[str, Callable[[], object]] = {
            "one deleted": (some / "00000003.txt").unlink,
            "one added": lambda: (some / "new.txt").write_text("cat meowing\n"),
            "one changed": lambda: (some / "00000005.txt").write_text("a cow\n"),
            "one changed, shards counted": lambda: (some / "00000006.txt").write_text("a cow moos\n"),
        }
        for name, change in changes.items():
            change()
            if name.endswith("counted"):
                print(f"| {name} | | | | {opened_shards(source, run):,} | |")
            else:
                show(name, measure(run), None, output)


def show(name: str, figures: tuple[float, ...], opened: int | None, output: Path) -> None:
    """Print a line of the table."""
    wall, cpu, memory = figures
    new = sum(path.stat().st_nlink == 1 for path in directory_of(output).glob("part-*.parquet"))
    shards = "" if opened is None else f"{opened:,}"
    print(f"| {name} | {wall:.2f} | {cpu:.2f} | {memory:,.0f} | {shards} | {new:,} |", flush=True)


if __name__ == "__main__":
    main()
