"""docs/commands.md: the help of every command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.pages import ROOT, read_page


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="from Python 3.13 on argparse prints help in another form")
def test_the_page_contains_the_help_of_every_command() -> None:
    """Make the page again and compare: a flag that is added, removed or reworded changes it."""
    command = [sys.executable, "scripts/help.py"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert page == read_page("docs/commands.md"), "python scripts/help.py > docs/commands.md"
