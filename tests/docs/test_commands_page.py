"""docs/commands.md is what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_holds_the_help_of_every_command() -> None:
    """A flag that is added, dropped or worded anew stands on the page."""
    command = [sys.executable, "scripts/help.py"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), (
        "python scripts/help.py > docs/commands.md"
    )
