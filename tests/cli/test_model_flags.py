"""Flags of the model at the command line: long texts, and a text head that is not AudioCLIP's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Outcome, run_command
from tests.support.corpus import read

LONG = "many words " * 50


def embed(tmp_path: Path, head: str, vocabulary: Path, *flags: str) -> Outcome:
    """Run `audioclip embed` over a.txt in a new process."""
    command = ["embed", "--input", "a.txt", "--output", "out", "--checkpoint", head, "--device", "cpu"]
    return run_command(tmp_path, *command, "--tokenizer_path", vocabulary, *flags)


@pytest.mark.slow
def test_on_long_error_fails_the_run(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """A text over 77 tokens, new or reused, fails the run, which names shard and row; shorter ones are reused."""
    (tmp_path / "a.txt").write_text(f"dog\n{LONG}\ncat\n")
    message = (
        f"a.txt, row 1: the text has 102 tokens, more than the model reads: {LONG!r:.80}; shorten it, or choose "
        f"--on_long truncate or reject"
    )
    done = embed(tmp_path, small_head, vocabulary, "--on_long", "error")
    assert (done.status, done.stdout) == (1, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "current.json").exists()

    assert embed(tmp_path, small_head, vocabulary).status == 0
    reused = embed(tmp_path, small_head, vocabulary, "--on_long", "error")
    assert reused.status == 1
    assert message in reused.stderr

    (tmp_path / "a.txt").write_text("dog\ncat\n")
    done = embed(tmp_path, small_head, vocabulary, "--on_long", "error")
    assert done.status == 0, done.stderr
    assert "2 read = 0 embedded + 2 reused" in done.stdout
    assert read(tmp_path / "out")["truncated"].to_pylist() == [False, False]


@pytest.mark.slow
def test_another_text_head_is_noted(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """A run with a text head of other shapes says that its vectors are in another space, and the manifest keeps it."""
    (tmp_path / "a.txt").write_text("dog\n")
    done = embed(tmp_path, small_head, vocabulary)
    notice = (
        "small.pt is not AudioCLIP's text head (32 numbers per vector instead of 1024, width 64 instead of 512, 2 layers "
        "instead of 12): its vectors belong to another space and cannot be compared with those of AudioCLIP's texts, "
        "images or sounds"
    )
    assert done.status == 0, done.stderr
    assert done.stderr.count(notice) == 1
    current = json.loads((tmp_path / "out" / "current.json").read_text())
    assert notice in json.loads((tmp_path / "out" / current["manifest"]).read_text())["notes"]
