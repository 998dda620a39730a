"""report.html: what it says, that data cannot become markup in it, and that it is one small file without a script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.metrics import OUTCOMES
from audioclip_beam.pipeline.publish import publish_snapshot as publish_module
from audioclip_beam.pipeline.report.html import ensure_report
from audioclip_beam.pipeline.report.sample import read_sample
from audioclip_beam.pipeline.snapshots.listing import read_file_list
from audioclip_beam.pipeline.snapshots.run_directory import run_path
from tests.support.browser import CHROMIUM, contrast, show_page
from tests.support.corpus import embed, write_jsonl
from tests.support.pages_of_reports import Page, manifest_of, page_of
from tests.support.preloaded import preloaded_programs
from tests.support.snapshots import edit_manifest, random_batches, write_snapshot

HOSTILE = [
    "<script>alert(1)</script>",
    "</title></svg></script><img src=x onerror=alert(1)>",
    "\x1b[31mred",
    "a \u202e b",
    '"quoted" & {{ more }} {% raw %}',
]


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


def test_every_snapshot_has_a_page(output: Path) -> None:
    """The manifest names it; it has the counts, the change since the previous snapshot, and the warning."""
    manifest = manifest_of(output)
    assert manifest["report"] == page_of(output).name
    body = page_of(output).read_text(encoding="utf-8").partition("<body>")[2]
    for part in (
        "random weights, for testing only",
        "rejected: null text",
        "Since the previous snapshot",
        "The fingerprint is the same.",
        "Rows per second over the run",
        str(manifest["previous"]),
        "Map of 56 rows",
        "limit: 77 tokens",
    ):
        assert part in body
    assert {name: sum(rows) for name, rows in manifest["pace"]["rows"].items()} == {
        name: manifest["counts"][name] for name in OUTCOMES
    }
    assert "<dt>embedded</dt><dd>1</dd>" in body
    assert "<dt>reused</dt><dd>55</dd>" in body


def test_charts_show_their_values_on_hover(output: Path) -> None:
    """Each has a name for screen readers; a span of the run shows a line per outcome."""
    page = Page(page_of(output).read_text(encoding="utf-8"))
    assert page.attributes["aria-label"] == {
        "Rows by outcome",
        "Rows by number of tokens; the model reads 77",
        "Rows by the norm of their vector",
        "Rows per second over the run",
        "Seconds by stage",
        "Map of 56 rows",
    }
    titles = page.titles[1:]
    assert titles[:3] == ["embedded: 1 row", "reused: 55 rows", "rejected: null text: 1 row"]
    for unit, rows in (("tokens", 56), ("norm", 56)):
        shown = [title.rpartition(": ")[2] for title in titles if unit in title.partition(":")[0].split()]
        assert sum(int(text.split()[0]) for text in shown) == rows
    assert any(re.fullmatch(r"model: \d+\.\d\d s", title) for title in titles)
    assert any(title.startswith("second 0 to 1\nread: ") and "\nreused: " in title for title in titles)


def test_data_cannot_become_markup(output: Path) -> None:
    """Tags, template syntax, control characters and direction marks of ids and texts are shown, also on hover."""
    text = page_of(output).read_text(encoding="utf-8")
    assert not {"\x1b", "\u202e"} & set(text)
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "object", "link", "a"}
    assert not [name for name in page.attributes if name.startswith("on")]
    shown = [title for title in page.titles if re.search(r" \d+$", title)]
    assert len(shown) == 55
    assert {re.sub(r" \d+$", "", title) for title in shown} == {
        HOSTILE[0], HOSTILE[1], "\\x1b[31mred", "a \\u202e b", HOSTILE[4],
    }  # fmt: skip


def test_the_page_needs_nothing_but_itself(output: Path) -> None:
    """No script, no other file and no network; a policy in the page forbids all of them."""
    page = Page(page_of(output).read_text(encoding="utf-8"))
    assert not page.attributes.keys() & {"src", "srcset", "data", "action", "href"}
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.attributes["content"]


@pytest.mark.slow
def test_the_page_of_10_000_long_hostile_texts_is_small(tmp_path: Path) -> None:
    """Texts are cut by width and by bytes: characters without a width, and those that HTML spells longer."""
    texts = [
        "&" * 50 + "\U000e0100" * 500,
        "<\"&'>" * 200,
        "e" + "\u0301" * 900,
        "\x1b\u202e" * 400,
        "\U0001f409" * 300,
    ]
    source = write_jsonl(
        tmp_path / "a.jsonl", [{"id": f"{n}{'&' * 99}", "text": f"{texts[n % 5]} {n}"} for n in range(10_000)]
    )
    embed(source, tmp_path / "out", id_field="id")
    page = page_of(tmp_path / "out")
    assert "Map of 256 rows" in page.read_text(encoding="utf-8")
    assert page.stat().st_size < 300_000


@pytest.mark.slow
def test_the_command_prints_the_path_remakes_the_page_and_opens_it(output: Path, tmp_path: Path) -> None:
    """It is made from the part files alone, is the same page as before, and opens in the browser of the machine."""
    output = shutil.copytree(output, tmp_path / "out")
    page = page_of(output)
    before = page.read_text(encoding="utf-8")
    assert ensure_report(str(output)) == str(page)
    page.unlink()
    assert ensure_report(str(output)) == str(page)
    assert page.read_text(encoding="utf-8") == before
    page.write_text("something else")
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > "$0.opened"\n')
    browser.chmod(0o755)
    command = [preloaded_programs() / "audioclip", "report", str(output), "--remake", "--open"]
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(page)
    assert (tmp_path / "browser.opened").read_text().strip() == page.as_uri()
    assert page.read_text(encoding="utf-8") == before


def test_the_sample_has_the_lowest_hashes(output: Path) -> None:
    """So it does not depend on the runner or its batches; its size is bounded by rows, not by files."""
    manifest = manifest_of(output)
    rows = read_sample(str(output), manifest["snapshot"], TEXT, read_file_list(str(output), manifest))
    assert len(rows) == 56
    assert rows.column_names == ["label", "size", "embedding"]


def test_a_page_of_no_rows(tmp_path: Path) -> None:
    """Charts that would be empty are a sentence instead."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": None}])
    embed(tmp_path / "a.jsonl", tmp_path / "out", allow_empty=True)
    text = page_of(tmp_path / "out").read_text(encoding="utf-8")
    assert text.count("No row has a vector.") == 2
    assert "This is the first snapshot." in text
    assert "Map of" not in text


def test_a_page_tells_what_was_carried_over(tmp_path: Path) -> None:
    """The counts of a run are not taken for those of the snapshot; a damaged snapshot before it costs the comparison."""
    output = tmp_path / "out"
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(1230)])
    first, _ = embed(tmp_path / "*.jsonl", output)
    assert "carried over unread" not in page_of(output).read_text(encoding="utf-8")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "another"}])
    embed(tmp_path / "*.jsonl", output)
    text = page_of(output).read_text(encoding="utf-8")
    for name, value in (("rows in the snapshot", "1,231"), ("carried over unread", "1,230"), ("read", "1")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert '<th scope="row">rows</th><td>1,230</td><td>1,231</td>' in text
    (Path(run_path(str(output), first["snapshot"])) / "manifest.json").write_text("")
    text = Path(ensure_report(str(output), remake=True)).read_text(encoding="utf-8")
    assert f"The previous snapshot, {first['snapshot']}, no longer exists or cannot be read." in text


def test_a_histogram_that_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the manifest and the place, as for any other fault in it."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}])
    embed(tmp_path / "a.jsonl", tmp_path / "out")
    edit_manifest(tmp_path / "out", lambda manifest: manifest.update(sizes={"2t": 1}))
    assert main(["report", str(tmp_path / "out"), "--remake"]) == 1
    assert "manifest.json is not a valid manifest: sizes has the key '2t'" in capsys.readouterr().err


def test_part_files_that_do_not_fit_together(tmp_path: Path) -> None:
    """Files with another type of a column, or without rows in a row group, are named."""
    write_snapshot(tmp_path, random_batches(20, 4), 4, max_rows=10)
    first, second = sorted(page_of(tmp_path).parent.glob("part-*"))
    table = pq.read_table(first)
    pq.write_table(table.set_column(table.column_names.index("text"), "text", table["text"].cast(pa.binary())), first)
    with pytest.raises(SnapshotError, match=f"one of {first}, {second} has other columns than the others: audioclip"):
        ensure_report(str(tmp_path), remake=True)
    with pq.ParquetWriter(first, table.schema) as writer:
        writer.write_table(table.slice(0, 0))
    with pytest.raises(SnapshotError, match=f"{first} cannot be read"):
        ensure_report(str(tmp_path), remake=True)


def test_a_page_that_cannot_be_written_costs_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest has a note instead."""

    def fail(*_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(publish_module, "write_report", fail)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog barking"}])
    manifest, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert "report" not in manifest
    assert any("report.html could not be written: RuntimeError: no ink" in note for note in manifest["notes"])


def test_a_damaged_file_that_is_carried_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The note in the manifest, and the error of `report`, name the file and a remedy."""
    output = tmp_path / "out"
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(50)])
    embed(tmp_path / "*.jsonl", output)
    (part,) = page_of(output).parent.glob("part-*.parquet")
    data = bytearray(part.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(byte ^ 255 for byte in data[middle : middle + 8])
    part.write_bytes(data)
    write_jsonl(tmp_path / "b.jsonl", [{"text": "another"}])
    manifest, _ = embed(tmp_path / "*.jsonl", output)
    error = f"{page_of(output).parent / part.name} cannot be read (could not verify page integrity"
    remedy = f"): audioclip validate {output} lists all faults"
    (note,) = (note for note in manifest["notes"] if "report.html" in note)
    assert note.startswith(f"report.html could not be written: {error}")
    assert note.endswith(remedy)
    assert main(["report", str(output)]) == 1
    shown = capsys.readouterr().err.strip()
    assert error in shown
    assert shown.endswith(remedy)


@pytest.mark.slow
def test_a_job_starts_without_the_libraries_of_the_page() -> None:
    """Importing the pipeline does not import Jinja2."""
    code = "import sys, audioclip_beam.pipeline.embed; print(*({'jinja2', 'markupsafe'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(1240, False), (1240, True), (780, False), (380, True)])
def test_a_browser_shows_the_page(output: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """Offline, from a copied directory, on a phone and in both themes: all is drawn, and text can be read."""
    copy = shutil.copytree(page_of(output).parent, tmp_path / "copied")
    shown = show_page(copy / "report.html", tmp_path, width=width, dark=dark)
    assert shown.picture.stat().st_size > 40_000, "there is hardly anything on the page"
    assert shown.console == []
    measures = shown.measures
    assert measures["window"] == width
    assert measures["content"] <= width
    assert len(measures["charts"]) == 6
    assert all(chart_width >= 260 and height >= 26 for chart_width, height in measures["charts"])
    assert measures["overlaps"] == []
    assert measures["outside"] == 0
    assert measures["covered"] == []
    assert measures["smallest"] >= 10
    assert all(contrast(ink, measures["surface"]) >= 4.5 for ink in measures["inks"])
    assert contrast(measures["surface"], "rgb(0, 0, 0)" if dark else "rgb(255, 255, 255)") < 1.5
