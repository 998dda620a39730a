#!/usr/bin/env python3
"""Print the share of lines that the last ./scripts/test.sh --coverage ran, for each package of model/ and pipeline/."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[1]


def lines_by_package(coverage: Coverage) -> dict[str, tuple[int, int]]:
    """Return {package: (lines that ran, lines)}; modules that are in no package of pipeline/ count as "pipeline"."""
    totals: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for top in ("model", "pipeline"):
        for path in sorted((ROOT / top).rglob("*.py")):
            _, lines, _, missing, _ = coverage.analysis2(str(path))
            package = str(path.parent.relative_to(ROOT))
            covered, total = totals[package]
            totals[package] = covered + len(lines) - len(missing), total + len(lines)
    return totals


def main() -> int:
    """Print the table."""
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    for package, (covered, total) in lines_by_package(coverage).items():
        print(f"{package:24} {covered:5} of {total:5} lines {100 * covered / max(total, 1):5.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
