"""docs/reading.md: which reader opens which vectors, as its table says."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.writers.engine_limits import engine_notes
from tests.support.output_readers import READERS, refuses
from tests.support.pages import read_page
from tests.support.snapshots import directory_of, random_batches, write_snapshot

TABLE = {
    name: cells.split(" | ")
    for name, cells in re.findall(r"^\| (.+?) \| ((?:yes|no).*) \|$", read_page("docs/reading.md"), re.MULTILINE)
}
# The columns of the table; the first one has two layouts, of which a model in bfloat16 gives the second.
LAYOUTS: dict[str, tuple[int, dict[str, str]]] = {
    "plain": (0, {}),
    "compressed": (0, {"dtype": "bfloat16"}),
    "byte_stream_split": (1, {"encoding": "byte_stream_split"}),
    "float16": (2, {"stored": "float16"}),
}
ERRORS = {
    ("Spark 3.5", "byte_stream_split"): "Unsupported encoding: BYTE_STREAM_SPLIT",
    ("Spark 3.5", "float16"): "CANNOT_READ_FILE_FOOTER",
}


# Columns by their names, of types and names that engines may refuse, and of others.
KEPT = {
    "created": pa.array([1001], pa.timestamp("ns")),
    "seen": pa.array([1], pa.timestamp("us", "UTC")),
    "in a list": pa.array([[1001]], pa.list_(pa.timestamp("ns"))),
    "in a struct": pa.array([{"a": 1.5}], pa.struct({"a": pa.float16()})),
    "time_ms": pa.array([1], pa.time32("ms")),
    "time_us": pa.array([1], pa.time64("us")),
    "time_ns": pa.array([1], pa.time64("ns")),
    "half": pa.array([1.5], pa.float16()),
    "unsigned": pa.array([2**64 - 1], pa.uint64()),
    "day": pa.array([1], pa.date32()),
    "price": pa.array([Decimal("1.10")], pa.decimal128(38, 2)),
    "long price": pa.array([Decimal("1.10")], pa.decimal256(50, 2)),
    "short price": pa.array([Decimal("1.10")], pa.decimal32(5, 2)),
    "pairs": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))),
    "nothing": pa.nulls(1),
    "bytes": pa.array([b"abcd"], pa.binary(4)),
    "Text": pa.array(["x"]),
    "a.b": pa.array(["x"]),
    "a b": pa.array(["x"]),
}


def named(name: str) -> set[str]:
    """Return the engines that the notes on a kept field name."""
    notes = engine_notes(pa.schema([pa.field(name, KEPT[name].type)]), ["id", "text", "embedding", name], {name: name})
    return {engine for note in notes for engine in note.partition(" cannot read")[0].split(", ")}


@pytest.fixture(scope="module")
def kept_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file with each of the columns."""
    paths = {}
    for number, (name, column) in enumerate(KEPT.items()):
        paths[name] = tmp_path_factory.mktemp("kept") / f"{number}.parquet"
        pq.write_table(pa.table({"id": ["a"], "text": ["t"], "embedding": [[0.5]], name: column}), paths[name])
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["DuckDB", "Polars", "pandas", "Hugging Face datasets", "LanceDB"])
def test_the_notes_name_what_an_engine_refuses(engine: str, kept_files: dict[str, Path]) -> None:
    """These types and names, and no others."""
    assert [name for name in KEPT if engine in named(name)] == [
        name for name, path in kept_files.items() if refuses(engine, path)
    ]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
def test_the_notes_name_what_spark_refuses(kept_files: dict[str, Path]) -> None:
    """It opens no column of such a file."""
    answers = dict(zip(KEPT, READERS["Spark 3.5"]([*kept_files.values()]), strict=True))
    assert [name for name in KEPT if "Spark 3.5" in named(name)] == [
        name for name, answer in answers.items() if isinstance(answer, str)
    ]


def test_the_page_has_a_line_for_each_engine_that_a_note_names() -> None:
    """The second table of the page."""
    page = read_page("docs/reading.md")
    for engine in set().union(*map(named, KEPT)):
        assert re.search(rf"^\| [^|]+ \| [^|]*{re.escape(engine)}[^|]* \|", page, re.MULTILINE), engine


EXTRA = [name for name in READERS if name.startswith(("Daft", "DataFusion", "arrow-go"))]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a part file of each layout."""
    paths = {}
    for layout, (_, options) in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(layout)
        stored = options.get("stored", "float32")
        write_snapshot(folder, random_batches(300, 16, stored=stored), 16, **options)  # type: ignore[arg-type]
        (paths[layout],) = directory_of(folder).glob("part-*.parquet")
    return paths


def test_every_reader_is_in_the_table() -> None:
    """So none is promised that no test runs."""
    assert TABLE.keys() == READERS.keys()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)  # the first build of arrow-go
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.extra] if name in EXTRA else []) for name in READERS]
)
def test_a_reader_opens_what_the_table_says(name: str, parts: dict[str, Path]) -> None:
    """Every number has the bits that were stored, and what cannot be read is refused with the reason."""
    answers = dict(zip(parts, READERS[name]([*parts.values()]), strict=True))
    for layout, answer in answers.items():
        column, options = LAYOUTS[layout]
        if TABLE[name][column] == "no":
            assert isinstance(answer, str)
            assert ERRORS[name, layout] in answer
            continue
        assert isinstance(answer, dict), answer
        stored = options.get("stored", "float32")
        expected = {
            id: vector
            for batch in random_batches(300, 16, stored=stored)
            for id, vector in zip(batch["id"].to_pylist(), batch["embedding"].to_pylist(), strict=True)
        }
        assert answer.keys() == expected.keys()
        found = np.array([answer[id] for id in expected])
        np.testing.assert_array_equal(found.astype(stored), np.array([*expected.values()], stored), err_msg=layout)
        np.testing.assert_array_equal(found.astype(np.float32), found.astype(stored).astype(np.float32))
