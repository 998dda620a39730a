"""docs/beam.md: every Python snippet runs as a program and prints what its comments say."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
from apache_beam.yaml.yaml_provider import InlineProvider

from audioclip_beam.pipeline.yaml_embed import EmbedText
from tests.support.pages import blocks, read_page, run_blocks, sections

PAGE = read_page("docs/beam.md")
SECTIONS = sections(PAGE)
SNIPPETS = [name for name, text in SECTIONS.items() if blocks(text, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("section", SNIPPETS)
def test_every_snippet_prints_what_it_says(
    section: str, tmp_path: Path, checkpoint_file: Path, vocabulary: Path
) -> None:
    """Run each snippet with a file of the released format in the place of "full"."""
    cache = tmp_path / ".cache"
    cache.mkdir()
    for file in (checkpoint_file, vocabulary):
        (cache / file.name).symlink_to(file)
    run_blocks(SECTIONS[section], "python", tmp_path)


def test_every_section_has_its_snippet() -> None:
    """Check that no snippet was left out by accident; Beam YAML's example has its own test."""
    assert SNIPPETS == [
        "A whole run",
        "RunInference",
        "Keys",
        "Errors",
        "GPUs that fail",
        "Pictures and sounds",
        "MLTransform",
        "RAG",
    ]


def test_the_provider_is_that_of_the_example() -> None:
    """Compare the lines for a YAML file with the end of examples/embed.yaml, which another test runs."""
    (shown,) = blocks(PAGE, "yaml")
    assert read_page("examples/embed.yaml").endswith(shown)


def test_the_configuration_is_complete() -> None:
    """Compare the table of EmbedText's settings with what Beam YAML itself derives from the function."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(EmbedText).parameters.items()}
    rows = []
    for field in InlineProvider({"EmbedText": EmbedText}).config_schema("EmbedText").fields:
        default = "" if defaults[field.name] is None else f"`{json.dumps(defaults[field.name])}`"
        rows.append(f"| `{field.name}` | {default} | {' '.join(field.description.split())} |")
    assert re.findall(r"^\| `.+$", SECTIONS["Beam YAML"], re.MULTILINE) == rows
