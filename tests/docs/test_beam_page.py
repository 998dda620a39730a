"""docs/beam.md is true: every Python snippet is run as a program of its own, and prints what it says."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.yaml.yaml_provider import InlineProvider

from audioclip_text.pipeline.inference.yaml_transform import EmbedText

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "beam.md").read_text(encoding="utf-8")
SECTIONS = dict(zip(*[iter(re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))
SNIPPETS = [name for name, text in SECTIONS.items() if "```python" in text]


@pytest.mark.parametrize("section", SNIPPETS)
def test_every_snippet_prints_what_it_says(section: str, tmp_path: Path, checkpoint_file: Path) -> None:
    """With a file of the released format in the place of "full"."""
    cache = tmp_path / ".cache"
    cache.mkdir()
    for file in (checkpoint_file, ROOT / ".cache" / "bpe_simple_vocab_16e6.txt.gz"):
        (cache / file.name).symlink_to(file)
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = re.findall(r"print\(.+\)  # (.+)$", code, re.MULTILINE)
    assert said
    assert sorted(done.stdout.splitlines()) == sorted(said)


def test_no_section_lacks_its_snippet() -> None:
    """None is left out by accident; Beam YAML's example has a test of its own."""
    assert SNIPPETS == ["RunInference", "Keys", "Errors", "MLTransform", "RAG"]


def test_the_provider_is_the_examples() -> None:
    """What the page says to put into a YAML file is what the example has, which is run elsewhere."""
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert (ROOT / "examples" / "embed.yaml").read_text().endswith(shown)


def test_the_configuration_is_whole() -> None:
    """The table of EmbedText's settings is what Beam YAML itself would say of them."""
    defaults = {name: found.default for name, found in inspect.signature(EmbedText).parameters.items()}
    wanted = []
    for field in InlineProvider({"EmbedText": EmbedText}).config_schema("EmbedText").fields:
        default = "" if defaults[field.name] is None else f"`{json.dumps(defaults[field.name])}`"
        wanted.append(f"| `{field.name}` | {default} | {' '.join(field.description.split())} |")
    assert re.findall(r"^\| `.+$", SECTIONS["Beam YAML"], re.MULTILINE) == wanted
