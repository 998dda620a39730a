"""EmbedText in Beam YAML, run by Beam's YAML main: the example, bad rows, and wrong configurations."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.yaml.yaml_provider import InlineProvider

from audioclip_beam.model import TextEncoder
from audioclip_beam.pipeline.yaml_embed import EmbedText
from tests.support.preloaded import preloaded_programs
from tests.support.processes import run_yaml_main, start_process

ROOT = Path(__file__).parents[2]


def run_yaml(file: Path, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Beam's YAML main on a file, in `folder`."""
    command = [preloaded_programs() / "python", "-m", "apache_beam.yaml.main", f"--yaml_pipeline_file={file}"]
    command.append(f"--jinja_variables={json.dumps(variables)}")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False, env=os.environ)


def run_in_a_fork(file: Path, folder: Path, variables: dict[str, str]) -> tuple[int | None, str]:
    """Do the same in a process that starts at once; return exit status and stderr."""
    flags = [f"--yaml_pipeline_file={file}", f"--jinja_variables={json.dumps(variables)}"]
    process = start_process(run_yaml_main, str(folder), flags, stderr=folder / "stderr")
    process.join(timeout=240)
    return process.exitcode, (folder / "stderr").read_text()


def vectors_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the vector of each text in the Parquet file that was written."""
    (file,) = folder.glob("vectors*")
    table = pq.read_table(file)
    return {row["text"]: np.array(row["embedding"]) for row in table.to_pylist()}


@pytest.fixture
def encoder(small_head: str, vocabulary: Path) -> TextEncoder:
    return TextEncoder.load(small_head, tokenizer_path=vocabulary, device="cpu")


@pytest.mark.slow
def test_the_example_file_runs(small_head: str, tmp_path: Path, encoder: TextEncoder) -> None:
    """A YAML file is enough to read, embed and write; the fields that were read are kept."""
    for name in ("examples", ".cache"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = run_yaml(Path("examples/embed.yaml"), tmp_path, {"CHECKPOINT": small_head})
    assert done.returncode == 0, done.stderr[-3000:]
    found = vectors_of(tmp_path / "out" / "yaml")
    assert len(found) > 50
    np.testing.assert_allclose(np.array(list(found.values())), encoder.encode(list(found)), atol=1e-5)
    (file,) = (tmp_path / "out" / "yaml").glob("vectors*")
    schema = pq.read_schema(file)
    assert schema.names == ["id", "text", "seconds", "embedding"]
    assert schema.field("embedding").type.value_type == "float"


PIPELINE = """
pipeline:
  transforms:
    - type: Create
      config:
        elements: [{text: dog, n: 1}, {n: 2}, {text: {{ LONG }}, n: 3}, {text: cat, n: 4}]
    - type: EmbedText
      input: Create
      config:
        checkpoint: {{ CHECKPOINT }}
        tokenizer_path: {{ VOCABULARY }}
        on_long: reject
        device: cpu
        {{ HOW }}
    - type: WriteToParquet
      input: EmbedText
      config: {path: vectors}
    {% if ERRORS %}
    - type: WriteToJson
      name: Errors
      input: EmbedText.errors
      config: {path: errors}
    {% endif %}
providers:
  - type: python
    config: {}
    transforms: {EmbedText: audioclip_beam.pipeline.yaml_embed.EmbedText}
"""


def variables(small_head: str, vocabulary: Path, how: str, errors: str) -> dict[str, str]:
    long = "dog " * 100
    found = {"CHECKPOINT": small_head, "VOCABULARY": str(vocabulary), "HOW": how, "ERRORS": errors}
    return {**found, "LONG": long.strip()}


@pytest.mark.slow
def test_error_handling(small_head: str, vocabulary: Path, tmp_path: Path, encoder: TextEncoder) -> None:
    """Only rows without a text or with one that is too long go to the errors' output, with the reason."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE)
    settings = variables(small_head, vocabulary, "error_handling: {output: errors}", "yes")
    status, stderr = run_in_a_fork(file, tmp_path, settings)
    assert status == 0, stderr[-3000:]
    found = vectors_of(tmp_path)
    assert sorted(found) == ["cat", "dog"]
    np.testing.assert_allclose(found["dog"], encoder.encode(["dog"])[0], atol=1e-5)
    lines = [json.loads(line) for path in tmp_path.glob("errors*") for line in path.read_text().splitlines()]
    # Beam's JSON writes a row within a row as a list, its fields in an order that differs from run to run.
    errors = {number: line["msg"] for line in lines for number in line["element"] if isinstance(number, int)}
    assert set(errors) == {2, 3}
    assert "takes str, got NoneType" in errors[2]
    assert "102 tokens" in errors[3]


@pytest.mark.slow
def test_without_error_handling_a_bad_row_fails(small_head: str, vocabulary: Path, tmp_path: Path) -> None:
    """Nothing is dropped silently."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE)
    status, stderr = run_in_a_fork(file, tmp_path, variables(small_head, vocabulary, "", ""))
    assert status != 0
    assert "takes str, got NoneType" in stderr
    assert not list(tmp_path.glob("vectors*"))


def test_wrong_configurations_are_errors(small_head: str) -> None:
    """A missing field, an existing output field and unknown error_handling fail before anything runs."""
    rows = beam.Pipeline() | beam.Create([beam.Row(text="a", n=1)])
    with pytest.raises(ValueError, match=r"rows have no field 'caption', they have \['text', 'n'\]"):
        _ = rows | EmbedText(field="caption", checkpoint=small_head)
    with pytest.raises(ValueError, match="rows already have a field 'n'"):
        _ = rows | "again" >> EmbedText(output="n", checkpoint=small_head)
    for error_handling in ({}, {"output": "good"}, {"output": "bad", "retries": 3}):
        with pytest.raises(ValueError, match="give `output`, a name other than good, and optionally `threshold`"):
            EmbedText(checkpoint=small_head, error_handling=error_handling)


class _Row(NamedTuple):
    text: str
    self: int


def test_a_field_may_be_called_self(small_head: str, vocabulary: Path) -> None:
    """Rows are NamedTuples with any field; the new one may have that name, too."""
    settings = {"checkpoint": small_head, "tokenizer_path": str(vocabulary), "device": "cpu"}
    with beam.Pipeline("FnApiRunner") as pipeline:
        kept = pipeline | beam.Create([_Row("dog", 7)]).with_output_types(_Row) | EmbedText(**settings)
        added = (
            pipeline | "Other" >> beam.Create([beam.Row(text="dog")]) | "Add" >> EmbedText(**settings, output="self")
        )
        assert_that(kept | beam.Map(lambda row: (row.text, row.self, len(row.embedding))), equal_to([("dog", 7, 32)]))
        assert_that(added | "Size" >> beam.Map(lambda row: (row.text, len(row.self))), equal_to([("dog", 32)]), "added")


def test_too_many_errors_fail(small_head: str, vocabulary: Path) -> None:
    """`threshold` is the share of rows that may be errors: one of two is more than a tenth."""
    step = EmbedText(
        checkpoint=small_head,
        tokenizer_path=str(vocabulary),
        on_long="reject",
        device="cpu",
        error_handling={"output": "errors", "threshold": 0.1},
    )
    with pytest.raises(Exception, match="exceeded threshold: 1 / 2"), beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | beam.Create([beam.Row(text="dog"), beam.Row(text="dog " * 100)]) | step


def test_the_configuration_is_documented() -> None:
    """Beam YAML has a type and a description for each setting."""
    schema = InlineProvider({"EmbedText": EmbedText}).config_schema("EmbedText")
    described = {field.name: field.description for field in schema.fields}
    assert list(described)[:3] == ["field", "output", "checkpoint"]
    assert "error_handling" in described
    assert all(described.values()), described
