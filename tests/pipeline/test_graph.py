"""The job graph stays small however many files there are, and carries batches, not shards, to the model."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from audioclip_text.pipeline.embed import EmbedCorpus
from audioclip_text.pipeline.options import EmbedOptions
from tests.support.stub import StubHandler


def graph_bytes(folder: Path, shards: int) -> int:
    """The size of the graph of a job over `shards` shards of one row."""
    (folder / "in").mkdir(parents=True)
    for n in range(shards):
        (folder / "in" / f"{n:07}.txt").touch()
    options = EmbedOptions(input=[str(folder / "in" / "*")], output=str(folder / "out"))
    corpus = EmbedCorpus(options, StubHandler())
    pipeline = beam.Pipeline(options=PipelineOptions())
    try:
        _ = pipeline | corpus
        return len(pipeline.to_runner_api().SerializeToString())
    finally:
        corpus.close()


@pytest.mark.slow
@pytest.mark.parametrize("shards", [10, 20_000])
def test_the_graph_does_not_grow_with_the_corpus(tmp_path: Path, shards: int) -> None:
    """It contains paths and options, never a list of files."""
    assert graph_bytes(tmp_path, shards) < 200_000
