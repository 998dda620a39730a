"""The benchmark of the pipeline around the heads of pictures and sounds, with a few small files and stub heads."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the benchmark, which finds its neighbours in its folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    path = ROOT / "benchmarks" / "media_pipeline.py"
    spec = importlib.util.spec_from_file_location("media_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "media_pipeline", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_figures(benchmark: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Bytes are read twice, known ones once, unchanged files never; windows are those that are cut by hand."""
    benchmark.main(["plumbing", "many", "long", "decode", "--smoke"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert [names.count(name) for name in ("plumbing", "many", "long", "decode")] == [1, 4, 1, 4]
    assert sum("retouched" in line and "0 embedded, 8 reused" in line for line in lines) == 1
    assert all("0 windows differ" in line for line in lines if line.startswith("long"))
