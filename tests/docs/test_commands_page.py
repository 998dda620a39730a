"""docs/commands.md: the help of every command."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.pages import ROOT, read_page


def one_value(page: str) -> str:
    """Return `page` with the value of a flag of two names after the last name only, as Python 3.13 and newer print it."""
    return re.sub(r"(--\w+) ([A-Z]+), (--\w+ \2)\b", r"\1, \3", page)


def test_the_page_contains_the_help_of_every_command() -> None:
    """Make the page again and compare: a flag that is added, removed or reworded changes it."""
    command = [sys.executable, "scripts/help.py"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert one_value(page) == one_value(read_page("docs/commands.md")), "python scripts/help.py > docs/commands.md"
