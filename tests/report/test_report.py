"""report.html: what it counts does not depend on how rows were cut, data cannot write it, and a browser shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_text.pipeline import publish as publish_module
from audioclip_text.pipeline.metrics import MAX_SPANS, OUTCOMES, pace_by_span, rows_by_second
from audioclip_text.pipeline.report.html import report
from audioclip_text.pipeline.report.sample import sample
from audioclip_text.pipeline.schemas import vector_type
from audioclip_text.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_text.pipeline.snapshots.run_directory import run_path
from audioclip_text.pipeline.writers.statistics import MAX_TOKENS, FileStats, norm_of
from tests.support.corpus import embed, write_jsonl

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\x1b[31mred",
    "a \u202e b",
    '"quoted" & more',
]


def batch(tokens: list[int], vectors: np.ndarray) -> pa.RecordBatch:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=vector_type(vectors.shape[1]))
    return pa.RecordBatch.from_pydict({"n_tokens": pa.array(tokens, pa.int16()), "embedding": column})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(2, 300), st.floats(1, 1000, width=32)), min_size=1, max_size=40), st.data())
def test_histograms_add_up_however_rows_are_cut(rows: list[tuple[int, float]], data: st.DataObject) -> None:
    """Two pieces counted apart are the whole counted at once; every row is in each; bins are near the norms."""
    vectors = np.array([[length, 0.0, 0.0] for _, length in rows], np.float32)
    tokens = [count for count, _ in rows]
    cut = data.draw(st.integers(0, len(rows)))
    apart = FileStats()
    for part in (slice(None, cut), slice(cut, None)):
        if tokens[part]:
            one = FileStats()
            one.add_vectors(batch(tokens[part], vectors[part]))
            apart += one
    whole = FileStats()
    whole.add_vectors(batch(tokens, vectors))
    assert apart == whole
    assert whole.token_counts == Counter(min(count, MAX_TOKENS) for count in tokens)
    bins = np.array(sorted(whole.norm_bins.elements()))
    np.testing.assert_allclose(norm_of(bins), np.sort(vectors[:, 0]), rtol=0.01)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 1000), st.floats(0, 500)), max_size=20),
    st.floats(-100, 100),
    st.floats(0, 10_000),
)
def test_the_pace_loses_no_row(done: list[tuple[str, int, float]], off: float, total: float) -> None:
    """Whatever clocks say and however long it took: every row is in a span, and there are few of those."""
    stats = FileStats()
    for outcome, rows, took in done:
        stats.add_seconds(outcome, rows_by_second(rows, took))
    pace = pace_by_span(stats.by_second, time.time() + off, total)
    for outcome in OUTCOMES:
        assert sum(pace["rows"][outcome]) == sum(rows for kind, rows, _ in done if kind == outcome)
        assert 1 <= len(pace["rows"][outcome]) <= MAX_SPANS
    assert pace["seconds"] * len(pace["rows"]["read"]) >= total


def test_rows_are_spread_over_the_time_they_took() -> None:
    """A batch that took ten seconds does not appear as a spike at its end."""
    pace = pace_by_span({"embedded": rows_by_second(1000, 10.0)}, time.time() - 20, 25.0)
    assert pace["seconds"] == 1
    assert sum(pace["rows"]["embedded"]) == 1000
    assert [rows for rows in pace["rows"]["embedded"] if rows][1:-1] == [100] * 9
    assert not any(pace["rows"]["embedded"][:8])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots of rows with hostile ids and texts."""
    folder = tmp_path_factory.mktemp("report")
    rows = [{"id": f"{n} {HOSTILE[n % 5]}", "text": f"{HOSTILE[n % 5]} {n}"} for n in range(60)]
    write_jsonl(folder / "a.jsonl", rows)
    embed(folder / "a.jsonl", folder / "out", id_field="id")
    write_jsonl(folder / "a.jsonl", [*rows[5:], {"id": "<b>x</b>", "text": None}, {"id": "new", "text": "a new text"}])
    embed(folder / "a.jsonl", folder / "out", id_field="id")
    return folder / "out"


def page_of(output: Path) -> Path:
    return Path(run_path(str(output), str(current_name(str(output))))) / "report.html"


def test_every_snapshot_has_a_page(output: Path) -> None:
    """Named in the manifest; with the counts, the change since the snapshot before, and the warning."""
    manifest = read_manifest(str(output), str(current_name(str(output))))
    assert manifest is not None
    assert manifest["report"] == page_of(output).name
    text = page_of(output).read_text(encoding="utf-8")
    body = text.partition("<body>")[2]
    for part in (
        "untrained",
        "rejected: null text",
        "Since the snapshot before",
        "Rows a second over the run",
        str(manifest["previous"]),
        "A map of 56 rows",
    ):
        assert part in body
    assert {what: sum(rows) for what, rows in manifest["pace"]["rows"].items()} == {
        what: manifest["counts"][what] for what in OUTCOMES
    }
    assert re.search(r"<b>1</b><span>embedded", body)
    assert re.search(r"<b>55</b><span>reused", body)


def test_data_cannot_write_the_page(output: Path) -> None:
    """Tags, control characters and direction marks of ids and texts are shown, not done; nothing comes from elsewhere."""
    body = page_of(output).read_text(encoding="utf-8").partition("<body>")[2]
    assert "&lt;script&gt;alert(1)" in body
    assert "<script>alert" not in body
    assert "<img" not in body
    assert not {"\x1b", "\u202e"} & set(body)
    head = page_of(output).read_text(encoding="utf-8").partition("<body>")[0]
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", head + body)


def test_the_command_prints_its_path_makes_it_again_and_opens_it(output: Path, tmp_path: Path) -> None:
    """From the part files alone, with the same figures; in whatever browser the machine has."""
    page = page_of(output)
    before = page.read_text(encoding="utf-8")
    assert report(str(output)) == str(page)
    page.unlink()
    assert report(str(output)) == str(page)
    page.write_text("scribbled over")
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > "$0.opened"\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "audioclip_text.pipeline", "report", str(output), "--remake", "--open"]
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(page)
    assert (tmp_path / "browser.opened").read_text().strip() == page.as_uri()
    plain = [re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text) for text in (before, page.read_text(encoding="utf-8"))]
    assert plain[0] == plain[1]


def test_the_sample_is_the_lowest_hashes(output: Path) -> None:
    """So it is the same whatever runner or batches; rows, not files, bound it."""
    manifest = read_manifest(str(output), str(current_name(str(output))))
    assert manifest is not None
    rows = sample(str(page_of(output).parent), manifest["files"])
    assert len(rows) == 56
    assert rows.column_names == ["id", "text", "embedding"]


def test_a_page_that_cannot_be_made_costs_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest has a note instead."""

    def fails(*_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(publish_module, "write_report", fails)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog barking"}])
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert "report" not in manifest
    assert any("report.html could not be made: RuntimeError: no ink" in note for note in manifest["notes"])


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(output: Path, tmp_path: Path, scheme: str) -> None:
    """Offline, in both schemes: every plot is drawn and nothing is said on the console."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--window-size=1200,2600"]
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--blink-settings=preferredColorScheme=" + "10"[scheme == "dark"],
    ]
    picture = tmp_path / f"{scheme}.png"
    command += [f"--screenshot={picture}", "--dump-dom", f"file://{page_of(output)}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000, "a page with hardly anything on it"
    assert "CONSOLE" not in shown.stderr
    body = shown.stdout.partition("<body>")[2]
    assert body.count('class="main-svg"') >= 6
    assert len(re.findall(r'class="plotly-graph-div js-plotly-plot"', body)) == 6
    ink = {"light": "rgb(29, 36, 48)", "dark": "rgb(230, 233, 239)"}[scheme]
    assert f"fill: {ink}" in body
