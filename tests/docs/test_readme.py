"""README.md: its commands and snippet run, its output is the demo's, and its links and those of all pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks, read_page, run_blocks

README = read_page("README.md")

# Commands that are not run here, and why.
NOT_RUN = {
    "./scripts/setup.sh": "it installs packages",
    "source .venv/bin/activate": "the tests run in their own environment",
    "audioclip fetch full": "537 MB from the network; a file of the same format is in its place",
}

PAGES = sorted(
    str(page.relative_to(ROOT)) for part in (".", "docs", "benchmarks") for page in (ROOT / part).glob("*.md")
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Path, vocabulary: Path) -> Path:
    """Return a directory that looks like a checkout into which the checkpoint was fetched."""
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "scripts"):
        (directory / name).symlink_to(ROOT / name)
    (directory / ".cache").mkdir()
    for file in (checkpoint_file, vocabulary):
        (directory / ".cache" / file.name).symlink_to(file)
    return directory


def test_the_readme_is_short() -> None:
    """Check that a new user can read it to its end."""
    assert len(README.splitlines()) < 130


def leads_somewhere(page: str, link: str) -> bool:
    """Return whether a relative link of a page names a file that exists, and a heading of it."""
    path, _, heading = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if not heading or not target.exists():
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}


def test_every_link_leads_somewhere() -> None:
    """Check the relative links of all pages."""
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(((?!https://)[^)]+)\)", read_page(page))]
    assert len(links) > 50
    assert [link for link in links if not leads_somewhere(*link)] == []


def test_every_path_exists() -> None:
    """Check the paths of this project that the pages name in code marks, those of test files among them."""
    names = r"`((?:\./)?(?:benchmarks|docs|examples|model|pipeline|scripts|tests)/[\w./-]*)"
    paths = [(page, path) for page in PAGES for path in re.findall(names, read_page(page))]
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path[1]).exists()] == []


def test_the_readme_links_every_page() -> None:
    """Check that each page can be reached from the first one."""
    linked = set(re.findall(r"\]\(([^)#]+\.md)[)#]", README))
    assert linked >= set(PAGES) - {"README.md"}


@pytest.mark.slow
def test_every_command_works_as_shown(checkout: Path) -> None:
    """Run the commands one after the other, with the checkpoint in place; the rejected rows are those of the demo."""
    outputs = run_blocks(README, "sh", checkout, skip=NOT_RUN)
    command = next(command for command in outputs if " embed " in command)
    assert README.count(f"{command}\n") == 2, "embed is shown twice; this is the output of the second run"
    assert outputs[command].startswith("unchanged since ")
    assert "298 read = 0 embedded + 296 reused + 2 rejected" in outputs[f"{command} --force"]
    plan = next(output for command, output in outputs.items() if " plan " in command)
    assert "296 rows reused, 0 rows to embed" in plan
    assert (checkout / ".cache" / "text-head.safetensors").stat().st_size > 250_000_000


@pytest.mark.slow
def test_the_output_is_that_of_the_demo(checkout: Path) -> None:
    """Compare the block with what the demo prints first, and look at the rest: a table of rows, and the rejected rows."""
    demo = read_page("scripts/demo.sh")
    embed, sounds, pictures = re.findall(r"^\.venv/bin/(audioclip embed .+)$", demo, re.MULTILINE)
    (show,) = re.findall(r"^\.venv/bin/(python scripts/show\.py .+)$", demo, re.MULTILINE)
    (output,) = run_blocks(f"```sh\ncheckpoint=untrained; {embed}; echo; {show}\n```", "sh", checkout).values()
    (shown,) = blocks(README, "text")
    summary, table, rejected = re.split(r"^out/demo/snapshots/.*\n|^rejected rows\n", output, flags=re.MULTILINE)
    assert comparable(summary) == comparable(shown)
    assert "embedding: fixed_size_list<element: float not null>[1024]" in table
    assert re.search(r"^  captions\.txt#0 +14 +\[.+\] +A dog barks twice", table, re.MULTILINE)
    assert re.findall(r"^  (\S+), row (\d+): (.+?) \(", rejected, re.MULTILINE) == [
        ("labels.parquet", "40", "null text"),
        ("titles.jsonl.gz", "21", "malformed record"),
    ]
    for command, rows in ((sounds, "7 read = 7 embedded"), (pictures, "6 read = 6 embedded")):
        (output,) = run_blocks(f"```sh\ncheckpoint=untrained; {command}\n```", "sh", checkout).values()
        assert rows in output
    searches = "\n".join(line.removeprefix(".venv/bin/") for line in demo.partition(show)[2].splitlines() if line)
    outputs = run_blocks(f"```sh\n{searches}\n```".replace("$checkpoint", "untrained"), "sh", checkout)
    printed = [line for output in outputs.values() for line in output.splitlines() if line]
    titles = "sounds for a text and for a picture", "pictures for a sound"
    assert printed[::9] == [f"{title} (checkpoint: untrained)" for title in titles]
    queries = "rain on a roof", "examples/pictures/sun.jpg", "examples/sounds/surf.mp3"
    assert (printed[1], printed[5], printed[10]) == queries
    assert "/examples/pictures/" in printed[-1]


def comparable(output: str) -> list[str]:
    """Return the lines without what differs from run to run and machine to machine."""
    output = re.sub(r"\d{8}T\d{6}Z-[0-9a-f]{8}", "SNAPSHOT", output)
    output = re.sub(r"[\d,.]+ (s\b|rows/s|texts/s)", r"N \1", output)
    return output.strip().splitlines()


@pytest.mark.slow
def test_the_snippet_prints_what_it_says(checkout: Path) -> None:
    """Run the five lines of Python as a program, with texts, sounds and pictures."""
    (snippet,) = blocks(README, "python")
    assert len([line for line in snippet.splitlines() if line]) <= 5
    run_blocks(README, "python", checkout)
