"""The README is true: its commands and snippets are run, its output is the demo's, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands that are not run here, and why.
NOT_RUN = {
    "./scripts/demo.sh": "it installs packages; its embed and its look at the result are run below",
    "./scripts/test.sh": "it runs these tests",
    "source .venv/bin/activate": "the environment of the tests stands in",
    "audioclip-text fetch full": "537 MB from the network; a file of the same format stands in, fetch has its own tests",
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def environment() -> dict[str, str]:
    """The console script of this environment comes first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command: list[str], directory: Path) -> str:
    """Output of a command in `directory`; the test fails with its errors where it fails."""
    done = subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Path, vocabulary: Path) -> Path:
    """A folder that looks like a checkout into which the checkpoint was fetched."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".cache").mkdir()
    for file in (checkpoint_file, vocabulary):
        (folder / ".cache" / file.name).symlink_to(file)
    return folder


def test_the_readme_is_short() -> None:
    """Whoever comes new reads it to its end."""
    assert len(README.splitlines()) < 150


PAGES = sorted(
    str(page.relative_to(ROOT)) for part in (".", "docs", "benchmarks") for page in (ROOT / part).glob("*.md")
)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Relative links name files that exist, and headings that the page they lead to has."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}, link


def test_every_page_stands_in_the_readme() -> None:
    """Whoever looks for a page finds it from the first one."""
    linked = set(re.findall(r"\]\((docs/\S+?\.md)[)#]", README))
    assert linked >= {page for page in PAGES if page.startswith("docs/")}


@pytest.mark.slow
def test_every_command_works_as_it_stands(checkout: Path) -> None:
    """The README's commands, one after the other, with the checkpoint in place; rejected rows are those of the demo."""
    commands = [line for block in blocks("sh") for line in block.splitlines() if line]
    assert set(NOT_RUN) <= set(commands)
    said = {command: run(["bash", "-c", command], checkout) for command in commands if command not in NOT_RUN}
    embed, plan = (next(command for command in said if f" {name} " in command) for name in ("embed", "plan"))
    assert commands.count(embed) == 2
    assert "298 read = 0 embedded + 296 reused + 2 rejected" in said[embed]
    assert "296 rows reused, 0 rows to embed" in said[plan]
    assert (checkout / ".cache" / "text-head.safetensors").stat().st_size > 250_000_000


@pytest.mark.slow
def test_the_output_is_the_demos(checkout: Path) -> None:
    """What the README shows is what the demo prints, but for times, rates, names of snapshots and the numbers' ends."""
    demo = (ROOT / "scripts" / "demo.sh").read_text()
    (embed,) = re.findall(r"^\.venv/bin/(audioclip-text embed .+)$", demo, re.MULTILINE)
    (show,) = re.findall(r"^\.venv/bin/(python scripts/show\.py .+)$", demo, re.MULTILINE)
    script = f"checkpoint=untrained; {embed}; echo; {show}"
    (shown,) = blocks("text")
    assert plain(run(["bash", "-c", script], checkout)) == plain(shown)


def plain(output: str) -> list[str]:
    """Lines without what differs from run to run and machine to machine."""
    output = re.sub(r"\d{8}T\d{6}Z-[0-9a-f]{8}", "SNAPSHOT", output)
    output = re.sub(r"[\d,.]+ (s\b|rows/s|texts/s)", r"N \1", output)
    output = re.sub(r"([+-]\d\.\d)\d+", r"\1", output)
    return output.splitlines()


@pytest.mark.slow
def test_every_snippet_runs(checkout: Path) -> None:
    """The README's Python, each block as a program of its own, prints what its comments say."""
    printed = [run([sys.executable, "-c", code], checkout) for code in blocks("python")]
    assert printed[0] == "float32 (2, 1024)\n"
    assert sorted(printed[1].splitlines()) == ["dog barking (1024,)", "rain on a tin roof (1024,)"]
