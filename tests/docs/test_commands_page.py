"""docs/commands.md: the help of every command."""

from __future__ import annotations

import subprocess
import sys

from tests.support.pages import ROOT, read_page


def test_the_page_contains_the_help_of_every_command() -> None:
    """Make the page again and compare: a flag that is added, removed or reworded changes it."""
    command = [sys.executable, "scripts/help.py"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert page == read_page("docs/commands.md"), "python scripts/help.py > docs/commands.md"
