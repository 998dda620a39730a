"""docs/reading.md: which reader opens which vectors, as its table says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.output_readers import READERS
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
