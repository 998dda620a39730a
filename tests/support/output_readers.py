"""Readers of Parquet in other languages and engines: each gives the vectors of part files by id."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from tests.support.engines import spark_python
from tests.support.environments import create_environment
from tests.support.paths import ROOT
from tests.support.tools import require, run_online

Vectors = dict[str, list[float]]

ENGINES = ("daft==0.7.26", "datafusion==55.0.0")

_HERE = Path(__file__).parent

# Each defines `read`: a function from the path of a file to its vectors by id.
_SPARK = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", False).getOrCreate()
def read(path):
    return {row["id"]: row["embedding"] for row in spark.read.parquet(path).collect()}
"""
_DAFT = """
import daft
def read(path):
    rows = daft.read_parquet(path).select("id", "embedding").to_pydict()
    return dict(zip(rows["id"], [[float(number) for number in row] for row in rows["embedding"]]))
"""
_DATAFUSION = """
import datafusion
def read(path):
    rows = datafusion.SessionContext().read_parquet(path).select("id", "embedding").to_pydict()
    return dict(zip(rows["id"], [[float(number) for number in row] for row in rows["embedding"]]))
"""
_PRINT = """
import json, sys
for path in sys.argv[1:]:
    try:
        print(json.dumps(read(path)))
    except Exception as error:
        print(json.dumps(str(error)))
"""


def _program(*command: object) -> list[Vectors | str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def spark(paths: Sequence[Path]) -> list[Vectors | str]:
    """Return what Spark's default reader gives."""
    require("java")
    return _program(spark_python(), "-c", _SPARK + _PRINT, *paths)


def daft(paths: Sequence[Path]) -> list[Vectors | str]:
    """Return what Daft gives."""
    return _program(
        create_environment("daft-datafusion", *ENGINES, pinned=False) / "python", "-c", _DAFT + _PRINT, *paths
    )


def datafusion(paths: Sequence[Path]) -> list[Vectors | str]:
    """Return what DataFusion gives."""
    return _program(
        create_environment("daft-datafusion", *ENGINES, pinned=False) / "python", "-c", _DATAFUSION + _PRINT, *paths
    )


def arrow_go(paths: Sequence[Path]) -> list[Vectors | str]:
    """Return what arrow-go gives; its first build takes minutes of CPU time, later ones a second."""
    require("go")
    program = ROOT / ".cache" / "tests-arrow-go"
    run_online(["go", "build", "-o", program, "."], folder=_HERE / "arrow_go")
    return [_rows(program, path) for path in paths]


def hyparquet(paths: Sequence[Path]) -> list[Vectors | str]:
    """Return what hyparquet gives."""
    require("npm")
    folder = ROOT / ".cache" / "tests-hyparquet"
    shutil.copytree(_HERE / "hyparquet", folder, dirs_exist_ok=True)
    if not (folder / "node_modules").exists():
        run_online(["npm", "ci"], folder=folder)
    return [_rows("node", folder / "print_rows.js", path) for path in paths]


def _rows(*command: object) -> Vectors:
    """Return the vectors that a program prints row by row."""
    rows = [row for row in _program(*command) if isinstance(row, dict)]
    return {str(row["id"]): row["embedding"] for row in rows}


def _in_process(read: Callable[[str], tuple[object, object]]) -> Callable[[Sequence[Path]], list[Vectors | str]]:
    """Return a reader of files from a function that returns the ids and the vectors of one file."""

    def read_all(paths: Sequence[Path]) -> list[Vectors | str]:
        return [
            {str(id): [*map(float, vector)] for id, vector in zip(*read(str(path)), strict=True)}  # type: ignore[call-overload]
            for path in paths
        ]

    return read_all


def _pyarrow(path: str) -> tuple[object, object]:
    table = ds.dataset(path).to_table()
    return table["id"].to_pylist(), table["embedding"].to_pylist()


def _duckdb(path: str) -> tuple[object, object]:
    rows = duckdb.sql(f"SELECT id, embedding FROM '{path}'").fetchall()
    return [row[0] for row in rows], [row[1] for row in rows]


def _polars(path: str) -> tuple[object, object]:
    import polars as pl

    frame = pl.read_parquet(path)
    return frame["id"].to_list(), frame["embedding"].to_list()


def _pandas(path: str) -> tuple[object, object]:
    frame = pd.read_parquet(path)
    return frame["id"], frame["embedding"]


def _datasets(path: str) -> tuple[object, object]:
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=path, split="train", cache_dir=f"{path}.cache")
    return rows["id"], rows["embedding"]


def _lancedb(path: str) -> tuple[object, object]:
    import lancedb  # it and the two above take seconds, for which each process of the tests would wait

    rows = ds.dataset(path).scanner(columns=["id", "embedding"]).to_reader()
    table: pa.Table = lancedb.connect(f"{path}.lancedb").create_table("rows", rows).to_arrow()
    return table["id"].to_pylist(), table["embedding"].to_pylist()


def refuses(name: str, path: Path) -> bool:
    """Return whether an engine that runs in this process cannot read all columns of a file."""
    import lancedb
    import polars as pl
    from datasets import load_dataset

    read: dict[str, Callable[[], object]] = {
        "DuckDB": lambda: duckdb.sql(f"SELECT * FROM '{path}'").fetchall(),
        "Polars": lambda: pl.read_parquet(path),
        "pandas": lambda: pd.read_parquet(path),
        "Hugging Face datasets": lambda: load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=f"{path}.cache"
        ),
        "LanceDB": lambda: lancedb.connect(f"{path}.lancedb").create_table(
            "rows", ds.dataset(path).scanner().to_reader()
        ),
    }
    try:
        read[name]()
    except Exception:  # of many classes
        return True
    return False


# By the names that docs/reading.md gives them.
READERS: dict[str, Callable[[Sequence[Path]], list[Vectors | str]]] = {
    "pyarrow": _in_process(_pyarrow),
    "DuckDB": _in_process(_duckdb),
    "Polars": _in_process(_polars),
    "pandas": _in_process(_pandas),
    "Hugging Face datasets": _in_process(_datasets),
    "LanceDB": _in_process(_lancedb),
    "Daft": daft,
    "DataFusion": datafusion,
    "Spark 3.5": spark,
    "arrow-go": arrow_go,
    "hyparquet": hyparquet,
}
