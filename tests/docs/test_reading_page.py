"""docs/reading.md: every command and snippet runs over a real snapshot, and prints what the page says."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import signal
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import soundfile

from audioclip_beam.pipeline.cli import main
from tests.support.engines import spark_python
from tests.support.environments import create_environment
from tests.support.pages import ROOT, blocks, commands, environment_of_the_tests, read_page, run_blocks, sections
from tests.support.postgres import postgres_server
from tests.support.snapshots import directory_of, random_batches, write_snapshot
from tests.support.stub_media import StubPictures, StubSounds, embed_media
from tests.support.tools import free_port, require

PAGE = read_page("docs/reading.md")
SECTIONS = sections(PAGE)
MEDIA = SECTIONS["Sounds and pictures"]
ELSEWHERE = "Spark", "Sounds and pictures"  # these have their own tests
SNIPPETS = [name for name, text in SECTIONS.items() if blocks(text, "python") and name not in ELSEWHERE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """Return a directory with the demo's texts embedded into out/corpus, and with a vector in bark.npy."""
    folder = tmp_path_factory.mktemp("reading")
    command = ["embed", "--input", f"{ROOT}/examples/shards/*", "--output", str(folder / "out" / "corpus")]
    assert main([*command, "--checkpoint", "untrained", "--tokenizer_path", str(vocabulary)]) == 0
    np.save(folder / "bark.npy", np.random.default_rng(5).standard_normal(1024, np.float32))
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """Return environment variables with SNAPSHOT as the page exports it, and without access to Hugging Face's hub."""
    variables = environment_of_the_tests()
    variables |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface"), "TQDM_DISABLE": "1"}
    (export,) = commands(PAGE.partition("\n## ")[0])
    (output,) = run_blocks(f"```sh\n{export}; printenv SNAPSHOT\n```", "sh", folder, environment=variables).values()
    snapshot = output.strip()
    assert snapshot == f"out/corpus/snapshots/{directory_of(folder / 'out' / 'corpus').name}"
    return {**variables, "SNAPSHOT": snapshot}


@pytest.mark.slow
@pytest.mark.parametrize("section", SNIPPETS)
def test_every_snippet_prints_what_it_says(section: str, folder: Path, environment: dict[str, str]) -> None:
    """Run each snippet as a program of its own."""
    run_blocks(SECTIONS[section], "python", folder, environment=environment)


@pytest.mark.slow
@pytest.mark.network
def test_spark_prints_what_the_page_says(folder: Path, environment: dict[str, str]) -> None:
    """Run the snippet of Spark with Spark 3.5."""
    require("java")
    run_blocks(SECTIONS["Spark"], "python", folder, environment=environment, python=spark_python())


def test_every_reader_has_its_snippet() -> None:
    """Check that no snippet was left out by accident."""
    assert SNIPPETS == ["pyarrow", "DuckDB", "Polars", "pandas", "Hugging Face datasets", "LanceDB", "FAISS"]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with snapshots of the examples, by stubs, and of the pictures in a tar."""
    folder = tmp_path_factory.mktemp("media")
    embed_media(ROOT / "examples/sounds/*", folder / "out/sounds", StubSounds(1024))
    embed_media(ROOT / "examples/pictures/*", folder / "out/pictures", StubPictures(1024))
    with tarfile.open(folder / "pictures.tar", "w") as tar:
        tar.add(ROOT / "examples/pictures", ".")
    embed_media(folder / "pictures.tar", folder / "out/tar", StubPictures(1024))
    return folder


@pytest.mark.slow
def test_readers_of_sounds_and_pictures(media: Path) -> None:
    """Run the snippets; the last one writes contents that can be decoded, and the same of pictures in a tar."""
    variables = {
        **environment_of_the_tests(),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(media / "hub"),
        "TQDM_DISABLE": "1",
    }
    export, *_ = commands(MEDIA)
    names = "printenv SOUNDS; printenv PICTURES"
    (output,) = run_blocks(f"```sh\n{export}; {names}\n```", "sh", media, environment=variables).values()
    variables |= dict(zip(("SOUNDS", "PICTURES"), output.split(), strict=True))
    run_blocks(MEDIA, "python", media, environment=variables)
    clips = pq.read_table(media / "audio.parquet").to_pylist()
    lengths = {row["id"]: soundfile.info(io.BytesIO(row["audio"]["bytes"])).duration for row in clips}
    assert lengths == {row["id"]: pytest.approx(row["end"] - row["start"], abs=1e-4) for row in clips}
    pictures = {row["image"]["bytes"] for row in pq.read_table(media / "image.parquet").to_pylist()}
    assert pictures == {path.read_bytes() for path in (ROOT / "examples/pictures").iterdir()}
    variables["PICTURES"] = str(directory_of(media / "out/tar"))
    run_blocks(f"```python\n{blocks(MEDIA, 'python')[-1]}```", "python", media, environment=variables)
    assert pictures == {row["image"]["bytes"] for row in pq.read_table(media / "image.parquet").to_pylist()}


@pytest.mark.slow
def test_search_as_on_the_page(folder: Path, environment: dict[str, str]) -> None:
    """Run the three searches: two tables and one JSON object."""
    tables = list(run_blocks(SECTIONS["Search"], "sh", folder, environment=environment).values())
    assert len(tables[0].splitlines()) == 9
    assert tables[1].startswith("{")
    assert len(tables[2].splitlines()) == 4


@pytest.mark.slow
def test_validate_as_on_the_page(folder: Path, environment: dict[str, str]) -> None:
    """Run the check: all rows are checked, the canary is embedded again, and the snapshot is valid."""
    (output,) = run_blocks(SECTIONS["Validate"], "sh", folder, environment=environment).values()
    assert output.endswith("valid\n")
    assert "296 rows" in output
    assert "the checkpoint gives the 16 vectors in the manifest again" in output


@pytest.mark.slow
def test_a_batch_is_a_matrix_without_a_copy(folder: Path) -> None:
    """Check that the matrix for FAISS is in the memory that Arrow allocated."""
    for batch in ds.dataset(sorted(directory_of(folder / "out" / "corpus").glob("part-*"))).to_batches(
        columns=["embedding"]
    ):
        vectors = batch["embedding"]
        matrix = vectors.flatten().to_numpy(zero_copy_only=True).reshape(-1, 1024)
        assert matrix.ctypes.data == vectors.values.buffers()[1].address + vectors.offset * 4096
        assert matrix.dtype == np.float32


def test_half_precision_can_be_read(tmp_path: Path) -> None:
    """Read float16 vectors with each reader: the numbers are those that were stored."""
    import polars as pl  # half a second, which each process of the tests would need

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
    """Return the page's environment variables, and those of a running PostgreSQL."""
    with postgres_server(folder) as variables:
        yield {**environment, **variables, "PATH": f"{variables['PATH']}:{environment['PATH']}"}


@pytest.mark.slow
def test_pgvector_takes_every_row(folder: Path, postgres: dict[str, str]) -> None:
    """Run the page's four commands: ids are found by distance, and the numbers come back to the last bit."""
    outputs = list(run_blocks(SECTIONS["PostgreSQL with pgvector"], "sh", folder, environment=postgres).values())
    assert "COPY 296" in outputs[1]
    assert outputs[3].splitlines() == ["captions.txt#0", "captions.txt#55"]
    rows = ds.dataset(sorted(directory_of(folder / "out" / "corpus").glob("part-*"))).to_table().sort_by("id")
    query = 'SELECT embedding FROM captions ORDER BY id COLLATE "C"'
    answer = subprocess.run(
        ["psql", "-At", "-c", query], cwd=folder, env=postgres, capture_output=True, text=True, check=True
    )
    lines = answer.stdout.splitlines()
    vectors = np.array([line.strip("[]").split(",") for line in lines]).astype(np.float32)
    np.testing.assert_array_equal(vectors, np.array(rows["embedding"].to_pylist(), np.float32))


@pytest.mark.slow
def test_the_files_have_the_layout_that_bigquery_expects(folder: Path) -> None:
    """Check the command against the flags of its reference, and a file against the layout that list inference requires."""
    (command,) = commands(SECTIONS["BigQuery"])
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("program", choices=["bq"])
    parser.add_argument("action", choices=["load"])
    parser.add_argument("--source_format", choices=["PARQUET"], required=True)
    parser.add_argument("--parquet_enable_list_inference", choices=["true", "false"])
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("table")
    parser.add_argument("source")
    arguments = parser.parse_args(shlex.split(command))
    assert arguments.parquet_enable_list_inference == "true"
    assert re.fullmatch(r"\w+\.\w+", arguments.table)
    assert arguments.source.count("*") == 1
    assert arguments.source.startswith("gs://")
    file = pq.ParquetFile(min(directory_of(folder / "out" / "corpus").glob(arguments.source.rpartition("/")[2])))
    columns = {column.path: column for column in map(file.schema.column, range(len(file.schema)))}
    vector = columns["embedding.list.element"]  # the names must be `list` and `element`
    assert (vector.physical_type, vector.max_repetition_level) == ("FLOAT", 1)
    known = {"BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY", "INT32", "INT64", "BOOLEAN", "FLOAT", "DOUBLE"}
    assert {column.physical_type for column in columns.values()} <= known
    assert {column.logical_type.type for column in columns.values()} <= {"STRING", "INT", "NONE"}


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.network
def test_embedding_atlas_opens_a_snapshot(folder: Path, environment: dict[str, str]) -> None:
    """Run the page's command: it serves all rows with their texts and positions on the map."""
    *_, install, command = commands(SECTIONS["Embedding Atlas"])
    (requirement,) = (word for word in shlex.split(install) if "==" in word)
    programs = create_environment("embedding-atlas", requirement, pinned=False)
    command = command.replace(".atlas/bin/embedding-atlas", str(programs / "embedding-atlas"))
    port = free_port()
    command += f" --host 127.0.0.1 --port {port} --no-auto-port"
    variables = {key: value for key, value in environment.items() if key != "PYTHONPATH"} | {"HOME": str(folder)}
    process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=variables, start_new_session=True)
    try:
        assert b"Embedding Atlas" in get(f"http://127.0.0.1:{port}/", process)
        rows = folder / "atlas.parquet"
        rows.write_bytes(get(f"http://127.0.0.1:{port}/data/dataset.parquet", process))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    table = pd.read_parquet(rows)
    assert len(table) == 296
    assert np.isfinite(table[["projection_x", "projection_y"]].to_numpy()).all()
    assert "A dog barks twice, then whines at the door" in set(table["text"])


def get(url: str, process: subprocess.Popen[bytes]) -> bytes:
    """Return the answer of a server that may still be starting."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")
