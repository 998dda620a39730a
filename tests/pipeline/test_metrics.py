"""What a run reports: the same in the manifest, in Beam's metrics, and on the page that explains them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import apache_beam as beam
import pytest

from audioclip_beam.pipeline.cli.embed_command import run_summary
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.metrics import NAMESPACE, SECONDS
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import choose_runner
from audioclip_beam.pipeline.snapshots.commit import read_manifest
from audioclip_beam.pipeline.snapshots.manifest import Counts, Manifest
from tests.support.corpus import StubHead, write_jsonl

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, int], str]:
    """Return (manifest, Beam's counters, summary) of a run with good, bad and equal rows."""
    folder = tmp_path_factory.mktemp("metrics")
    rows: list[dict[str, object]] = [{"text": f"text {n % 40}"} for n in range(60)]
    write_jsonl(folder / "a.jsonl", [*rows, {"text": None}, {"other": 1}, {"text": ""}])
    options = EmbedOptions(input=[str(folder / "a.jsonl")], output=str(folder / "out"))
    corpus = EmbedCorpus(options, StubHead())
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    _ = pipeline | corpus
    result = pipeline.run()
    result.wait_until_finish()
    corpus.close()
    counters: Counter[str] = Counter()  # of several steps
    for counter in result.metrics().query()["counters"]:
        if counter.key.metric.namespace == NAMESPACE:
            counters[counter.key.metric.name] += counter.committed
    manifest = read_manifest(str(folder / "out"), str(corpus.snapshot))
    assert manifest is not None
    return manifest, counters, run_summary(str(folder / "out"), manifest)


def test_beams_counters_are_the_manifests_counts(finished_run: tuple[Manifest, dict[str, int], str]) -> None:
    """Both are equal if no bundle is retried; neither includes the canary's texts."""
    manifest, counters, _ = finished_run
    counts = manifest["counts"]
    assert (counts["read"], counts["embedded"], counts["rejected"], counts["model"]["items"]) == (63, 60, 3, 40)
    for name in ("read", "embedded", "reused", "rejected", "truncated"):
        assert counters.get(f"rows_{name}", 0) == counts[name]
    for name, amount in counts["model"].items():
        assert counters.get(f"model_{name}" if name in ("items", "units") else name, 0) == amount
    assert counts["rejected_by_reason"] == {"empty text": 1, "null text": 1, "missing field": 1}
    for reason in ("empty_text", "null_text", "missing_field"):
        assert counters[f"rows_rejected_{reason}"] == 1


def test_seconds_are_measured(finished_run: tuple[Manifest, dict[str, int], str]) -> None:
    """The manifest, Beam's metrics and the summary contain the time of each stage."""
    manifest, counters, summary_text = finished_run
    seconds = manifest["seconds"]
    assert set(seconds) == {"total", *SECONDS}
    assert 0 < seconds["read_seconds"] < seconds["total"]
    assert 0 < seconds["write_seconds"] < seconds["total"]
    for name in SECONDS:
        milliseconds = counters.get(name.replace("_seconds", "_msecs"), 0)
        assert milliseconds == pytest.approx(1000 * seconds[name], abs=3)  # each file's is rounded by itself
        assert re.search(rf"{name.removesuffix('_seconds')} [\d.]+ s", summary_text)


def test_the_page_explains_every_metric(finished_run: tuple[Manifest, dict[str, int], str]) -> None:
    """It has one line for each count, time and counter, and no other lines."""
    manifest, counters, _ = finished_run
    rows = re.findall(r"^\| `(counts|seconds)\.(\w+)(?:\.(\w+))?` \| (?:`(\w+)`)?", PAGE, re.MULTILINE)
    assert {name for kind, name, *_ in rows if kind == "counts"} == {*manifest["counts"], *Counts.__optional_keys__}
    assert {name for kind, name, *_ in rows if kind == "seconds"} == set(manifest["seconds"])
    assert {name for *_, name, _ in rows if name} >= set(manifest["counts"]["model"])
    beams = {name for name in counters if name.startswith(("num_", "failed_"))}
    explained = {counter for *_, counter in rows} | {name for name in counters if name.startswith("rows_rejected_")}
    assert set(counters) - beams <= explained
