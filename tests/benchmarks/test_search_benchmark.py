"""benchmarks/search.py runs each of its steps on a few rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def test_each_step_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps run in this process, without its measuring of memory."""
    spec = importlib.util.spec_from_file_location("search_benchmark", ROOT / "benchmarks" / "search.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)

    def measure(step: Callable[..., None], *arguments: object) -> object:
        step(*arguments)
        return benchmark.Cost(1.0, 1.0, 1.0)

    monkeypatch.setattr(benchmark, "measure", measure)
    benchmark.main(["--rows", "300", "--labels", "20", "--pairs", "10", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("300 rows of 1024 numbers")
    assert [line.count("|") for line in lines[1:]] == [7] * 8
    assert list(tmp_path.iterdir()) == []
