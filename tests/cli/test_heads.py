"""The heads by the suffixes of --input, and their flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from audioclip_beam.pipeline.cli import main


@pytest.mark.parametrize(
    ("flag", "value", "heads"),
    [
        ("--variant", "jina", "image and audio"),
        ("--media_field", "photo", "image and audio"),
        ("--max_pixels", "7", "image"),
        ("--window", "5", "audio"),
    ],
)
def test_flags_of_other_heads_are_refused(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, heads: str
) -> None:
    """A flag that two heads share names both."""
    assert main(["embed", "--input", "a.txt", "--output", "out", flag, value]) == 2
    assert (
        f"{flag} is a flag of --head {heads}, and --input has texts: give --head, or leave it out"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--variant", "yina", "'yina' is not one of audioclip, jina; did you mean jina?"),
        ("--window", "nan", "'nan' is neither whole nor 0.001 to 300 seconds"),
        ("--window", "ten", "'ten' is neither whole nor 0.001 to 300 seconds"),
        ("--window", "301", "'301' is neither whole nor 0.001 to 300 seconds"),
        ("--hop", "whole", "'whole' is not 0.001 to 300 seconds"),
        ("--hop", "0", "'0' is not 0.001 to 300 seconds"),
        ("--max_pixels", "0", "'0' is not a whole number of at least 1"),
    ],
)
def test_values_that_a_head_cannot_take(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, message: str
) -> None:
    assert main(["embed", "--head", "audio", "--input", "a.wav", "--output", "out", flag, value]) == 2
    assert f"{flag}: {message}" in capsys.readouterr().err


def test_inputs_of_several_heads_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The suffixes of --input choose the head."""
    assert main(["embed", "--input", "a.wav", "*.JPG", "--output", "out", "--checkpoint", "untrained"]) == 2
    error = capsys.readouterr().err
    assert (
        "--input names files of several heads: a.wav (sounds), *.JPG (images): give --head audio or --head image, "
        in error
    )


def test_files_of_pictures_have_no_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message does not speak of lines of txt."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    embed = ["embed", "--input", f"{tmp_path}/a.jpg", "--head", "image", "--output", f"{tmp_path}/out"]
    assert main([*embed, "--checkpoint", "untrained", "--id_field", "name"]) == 2
    assert "--id_field name: files of images have no fields: leave the flag out" in capsys.readouterr().err
