"""The progress line: rows, rows per second, and the time left from the start, by bytes read."""

from __future__ import annotations

import gzip
import re
import time
from pathlib import Path

import pytest

from audioclip_beam.model.text.head import CANARY_TEXTS, TEXT
from audioclip_beam.pipeline import metrics
from audioclip_beam.pipeline.cli import progress
from audioclip_beam.pipeline.cli.progress import Estimate
from tests.support.corpus import embed, write_jsonl
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubSounds, embed_media


def estimate(total_bytes: int, elapsed: float, **tally: int) -> Estimate:
    """Return the estimate after `elapsed` seconds, with these counts."""
    metrics.TALLY.clear()
    metrics.TALLY.update(tally)
    now = Estimate(total_bytes, TEXT)
    now.update(elapsed)
    return now


def test_time_left_while_reading() -> None:
    """Before a row is finished, the time left is that of reading."""
    now = estimate(1000, 10.0, bytes_read=250, rows_read=50, items_embedded=len(CANARY_TEXTS))
    assert now.seconds_left == 30.0
    assert str(now) == "25% of the input read, 00:30 left"


def test_time_left_while_embedding() -> None:
    """Afterwards the rows of the whole input are estimated from the bytes read."""
    now = estimate(1000, 10.0, bytes_read=500, rows_read=100)
    metrics.TALLY.update(rows_embedded=20)
    now.update(20.0)
    metrics.TALLY.update(rows_embedded=30)
    now.update(30.0)
    assert now.total_rows == 200
    assert now.seconds_left == 10.0 * (200 - 50) / 50


def test_nothing_read_yet() -> None:
    """Without a byte read the time left is unknown; an empty input is read at once."""
    assert estimate(1000, 3.0).seconds_left is None
    assert estimate(0, 3.0).share_read == 1.0


def test_all_read_and_no_row_finished() -> None:
    """In a run that shuffles the time left is unknown then, and not 0."""
    now = estimate(1000, 10.0, bytes_read=1000, rows_read=100)
    assert now.seconds_left is None
    metrics.TALLY.update(rows_embedded=1)
    now.update(20.0)
    assert now.seconds_left is None
    assert str(now) == "100% of the input read"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_run_counts_every_byte_once(tmp_path: Path, suffix: str) -> None:
    """After a run, the bytes read are the sizes of its shards."""
    plain = write_jsonl(tmp_path / "plain", [{"id": f"r{n}", "text": f"caption {n}"} for n in range(5000)])
    data = plain.read_bytes()
    shard = tmp_path / f"a.{suffix}"
    shard.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    metrics.TALLY.clear()
    embed(shard, tmp_path / "out", id_field="id")
    assert metrics.TALLY["bytes_read"] == shard.stat().st_size


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal a line is printed at intervals."""
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.05)
    with progress.show_progress(total_bytes=1000, head=TEXT):
        metrics.TALLY.update(bytes_read=500, rows_read=10, rows_embedded=5)
        time.sleep(0.3)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("audioclip: read 10, done 5 (")
    assert "rejected 0; 50% of the input read, " in line
    assert line.endswith(" left")


def test_the_time_left_counts_from_the_first_row_and_not_from_the_line_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are 30 seconds apart: the first one may have the time left, too."""
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.6)
    with progress.show_progress(total_bytes=1000, head=TEXT):
        metrics.TALLY.update(bytes_read=1000, rows_read=100, rows_embedded=5)
        time.sleep(1.3)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"100% of the input read, 00:\d\d left$", line)
    assert not line.endswith("00:00 left")


def test_hours_of_sounds(tmp_path: Path) -> None:
    """A run counts the recordings that it reads, and their hours; of texts there is nothing to add."""
    (tmp_path / "a.wav").write_bytes(sound_file(samples=36_000 * 4, rate=4000))
    (tmp_path / "b.wav").write_bytes(sound_file(samples=4000, rate=4000))
    metrics.TALLY.clear()
    embed_media(tmp_path / "*.wav", tmp_path / "out")
    now = Estimate(1, StubSounds())
    assert now.content == "2 recordings, 41 s"
    assert estimate(1000, 1.0, rows_read=5).content == ""
