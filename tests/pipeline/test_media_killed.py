"""Nights of pictures that are killed: the result is the same, and no copy of a content is left."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from audioclip_beam.pipeline.layout import CONTENT_SPILL, is_copy
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.validation import validate
from tests.support import stub_media
from tests.support.corpus import read
from tests.support.faults import Faults
from tests.support.media_night import NEW, OPTIONS, crashing_media_run, prepare_media_night
from tests.support.processes import start_process
from tests.support.snapshots import files_of
from tests.support.stub_media import StubPictures, embed_media, vector_of

stub_models = stub_media.stub_models

CRASHES = int(os.environ.get("CRASHES", "4"))  # at points that are evenly spread over a night

Rows = dict[str, bytes]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, Rows, int]:
    """A folder with pictures and snapshots of them, {id: picture} of before and after, and the effects of the night."""
    folder = tmp_path_factory.mktemp("night")
    before, after = prepare_media_night(folder)
    faults = Faults(folder)
    shutil.copytree(folder / "out", folder / "whole")
    with faults.armed(None):
        manifest, embedded = embed_media(folder / "in/*", folder / "whole", StubPictures(), **OPTIONS)
    earlier = {path.name for path in (folder / "out").rglob("*.parquet")}
    parts = [file for file in files_of(folder / "whole", manifest) if file.is_part]
    assert {file.segment for file in parts if is_copy(file.name)} == {0}, "filtered"
    assert {file.segment for file in parts if file.name in earlier} == {0, 1}, "linked"
    merged = sum(file.rows for file in parts if file.segment == 2)
    assert merged == 11, "2 merged, 1 renamed, 6 packed again, 2 new"
    assert sorted(embedded) == sorted(NEW)
    return folder, before, after, faults.seen.total()


@pytest.mark.slow
@pytest.mark.usefixtures("stub_models")
@pytest.mark.parametrize("point", range(CRASHES + 1))
def test_crash_anywhere_in_a_night_of_pictures(night: tuple[Path, Rows, Rows, int], tmp_path: Path, point: int) -> None:
    """Before or after any effect on a file, copies of contents included: the next run is exact, and reads no more."""
    folder, before, after, effects = night
    output = folder / f"out{point}"
    shutil.copytree(folder / "out", output)
    former = current_name(str(output))
    nth, late, effect = 1 + (effects - 1) * point // max(1, CRASHES - 1), point % 2 == 1, "any"
    if point == CRASHES:  # when the manifest is written
        nth, late, effect = 1, True, "manifest"
    process = start_process(crashing_media_run, str(folder), output.name, nth, late, effect, stderr=tmp_path / "errors")
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL or nth > effects - 5, (tmp_path / "errors").read_text()
    published = current_name(str(output)) != former
    check_rows(output, after if published else before)
    manifest, embedded = embed_media(folder / "in/*", output, StubPictures(), **OPTIONS)
    assert set(embedded) <= set(() if published else NEW)
    check_rows(output, after)
    assert manifest["counts"]["read"] == (0 if published else 10)
    assert manifest["totals"]["rejected"] == 3
    assert all((path / "manifest.json").exists() for path in (output / "snapshots").iterdir()), "a dead run was left"
    assert not [*output.rglob("*.tmp"), *output.rglob(f"{CONTENT_SPILL}*")]


def check_rows(output: Path, expected: Rows) -> None:
    """Compare the current snapshot with {id: picture}."""
    table = read(output, columns=["id", "embedding"])
    assert table["id"].to_pylist() == sorted(expected)
    for row in table.to_pylist():
        np.testing.assert_array_equal(np.float32(row["embedding"]), vector_of(expected[row["id"]]))
    report = validate(str(output))
    assert report.valid, report
