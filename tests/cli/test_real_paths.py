"""Paths, links, pipes and folders at the command line, as people and machines have them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from audioclip_beam.pipeline.cli import main
from tests.support.commands import Outcome, run_command
from tests.support.corpus import read
from tests.support.pages import environment_of_the_tests


def run_shell(folder: Path, line: str, **environment: str) -> Outcome:
    """Run a line of bash in a folder, in which `audioclip` is the program."""
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**environment_of_the_tests(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


PIPE = "is a pipe, which can be read only once: write it to a file first"


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
@pytest.mark.parametrize("others", [["more.jsonl"], []])
def test_a_pipe_of_the_shell_is_refused_at_once(
    tmp_path: Path,
    kind: str,
    others: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `<(cat pipe.jsonl)` gives a command, behind another file too: exit status 2 and the remedy; nothing is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.jsonl").write_text('{"text": "a dog"}\n' * 50)
    reading, writing = os.pipe()
    os.write(writing, b'{"text": "a dog"}\n' * 50)
    os.close(writing)
    inputs = "--input", *others, f"/dev/fd/{reading}", "--input_format", kind
    assert main(["embed", *inputs, "--output", "out", "--checkpoint", "untrained", "--read_timeout", "60"]) == 2
    os.close(reading)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert PIPE in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "cat pipe.txt | audioclip embed {model} --output out --input /dev/stdin --input_format txt",
        "mkfifo p.txt; audioclip plan {model} --output out --input p.txt",
    ],
)
def test_a_pipe_is_refused_at_once(tmp_path: Path, line: str) -> None:
    """Exit status 2 and the remedy; nothing is made, and nothing waits for a writer."""
    (tmp_path / "pipe.txt").write_text("a dog\n" * 50)
    done = run_shell(tmp_path, line.format(model="--checkpoint untrained --read_timeout 60"))
    assert (done.status, done.stdout) == (2, "")
    assert PIPE in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_tilde_after_an_equals_sign(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """The shell leaves it; every path is in the home directory, and no folder is named ~."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "more.jsonl").write_text('{"text": "a dog"}\n')
    shutil.copy(small_head, home / "small.pt")
    shutil.copy(vocabulary, home / "vocabulary.gz")
    line = (
        "audioclip embed --output=~/corpus --input=~/'*.jsonl' --checkpoint=~/small.pt --tokenizer_path=~/vocabulary.gz "
        "&& audioclip log '~/corpus'"
    )
    done = run_shell(tmp_path, line, HOME=str(home))
    assert done.status == 0, done.stderr
    assert read(home / "corpus")["id"].to_pylist() == ["more.jsonl#0"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.slow
def test_a_linked_folder_and_a_link_to_nothing(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """Rows of the folder behind a link are read, and the other link is noted, in the manifest too."""
    for name in ("data/2026/a.txt", "store/2025/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("dog\n")
    (tmp_path / "data/2025").symlink_to("../store/2025")
    (tmp_path / "data/2024").symlink_to("../store/2024")
    model = ["--checkpoint", small_head, "--tokenizer_path", vocabulary]
    done = run_command(tmp_path, "embed", "--input", "data/**/*.txt", "--output", "out", *model)
    assert done.status == 0, done.stderr
    assert read(tmp_path / "out")["id"].to_pylist() == ["2025/b.txt#0", "2026/a.txt#0"]
    note = "links to nothing that exists are not followed: data/2024"
    assert note in done.stderr
    current = json.loads((tmp_path / "out/current.json").read_text())
    assert note in json.loads((tmp_path / "out" / current["manifest"]).read_text())["notes"]


@pytest.mark.slow
def test_commands_from_another_folder(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """The files of the model are found although the run had their relative paths; a message names the missing one."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "a.txt").write_text("dog\ncat\n")
    shutil.copy(small_head, first / "small.pt")
    shutil.copy(vocabulary, first / "vocabulary.gz")
    model = ["--checkpoint", "small.pt", "--tokenizer_path", "vocabulary.gz"]
    done = run_command(tmp_path, "embed", "--input", "a.txt", "--output", "out/", *model, directory=first)
    assert done.status == 0, done.stderr
    for output in ("../first/out", "../first/out/", first / "out"):
        done = run_command(tmp_path, "search", output, "dog", "--json", directory=second)
        assert done.status == 0, done.stderr
        assert json.loads(done.stdout)["queries"][0]["hits"][0]["text"] == "dog"
    done = run_command(tmp_path, "validate", "../first/out", directory=second)
    assert done.status == 0, done.stderr
    assert "the checkpoint gives the 16 vectors in the manifest again" in done.stdout
    done = run_command(tmp_path, "report", "../first/out", "--remake", directory=second)
    assert done.status == 0, done.stderr
    for name in ("small.pt", "vocabulary.gz"):
        (first / name).rename(second / name)
    done = run_command(tmp_path, "search", "../first/out", "dog", directory=second)
    assert done.status == 0, "they are found in the current folder, by the names that the run was given"
    (second / "small.pt").unlink()
    done = run_command(tmp_path, "search", "../first/out", "dog", directory=second)
    assert done.status == 2
    assert f"no checkpoint at {first}/small.pt" in done.stderr


@pytest.mark.slow
def test_an_output_in_another_one(tmp_path: Path) -> None:
    """Exit status 2 at once, and nothing is made."""
    (tmp_path / "out/snapshots/20260101T000000Z-01234567").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("dog\n")
    start = time.monotonic()
    done = run_command(tmp_path, "embed", "--input", "a.txt", "--output", "out/new", "--checkpoint", "untrained")
    assert done.status == 2
    assert f"--output out/new is inside of {tmp_path}/out, which has snapshots of its own" in done.stderr
    assert not (tmp_path / "out/new").exists()
    assert time.monotonic() - start < 60
