"""docs/scaling.md: its figures are those that benchmarks/scaling.py computes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.support.pages import ROOT, read_page
from tests.support.preloaded import preloaded_programs

SPEC = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
assert SPEC
assert SPEC.loader
scaling = importlib.util.module_from_spec(SPEC)
sys.modules["scaling"] = scaling
SPEC.loader.exec_module(scaling)
PAGE = read_page("docs/scaling.md")
FOLDERS = [str(ROOT / "benchmarks"), str(ROOT)]
# The texts are made here, because WordNet is not installed everywhere.
SHUFFLE = f"""
import sys
sys.path[:0] = {FOLDERS!r}
import corpora, shuffle
corpora.glosses = lambda: [f"text number {{n}}" for n in range(1000)]
sys.argv[1:] = ["--rows", "1000", "--rounds", "1"]
shuffle.main()
"""


def test_the_page_shows_the_tables_that_the_formulas_give() -> None:
    """Compare the page with the formulas: a figure that changes in one place only fails the test."""
    for table in scaling.tables():
        assert table in PAGE
    assert f"{scaling.flop_per_node() / 1e6:.1f} million" in PAGE
    assert f"{scaling.flop_per_text() / 1e9:.2f} billion" in PAGE
    for name, text in scaling.figures().items():
        assert text in " ".join(PAGE.split()), name


@pytest.mark.slow
def test_the_benchmark_measures_every_step_of_the_page() -> None:
    """Run it on a tiny sample: it prints each step that the page uses, for buckets as a billion rows have them."""
    done = subprocess.run(
        [preloaded_programs() / "python", "-c", SHUFFLE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Geometry(bits=13, bucket_rows=122070" in done.stderr
    assert set(re.findall(r'^    "(\w+)": Step\(bytes=', done.stdout, re.MULTILINE)) == set(scaling.STEPS)


def test_flop_per_node_are_those_of_the_text_head() -> None:
    """Count two per weight of the transformer's matrices in the state dict."""
    from audioclip_beam.model.text.shapes import untrained_state

    state = untrained_state()
    weights = sum(
        tensor.numel() for name, tensor in state.items() if name.startswith("transformer") and tensor.dim() == 2
    )
    assert scaling.flop_per_node() == 2 * weights
