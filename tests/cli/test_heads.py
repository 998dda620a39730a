"""The flags of the heads of pictures and sounds, whose files the pipeline cannot read yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from audioclip_beam.pipeline.cli import main


@pytest.mark.parametrize("command", ["embed", "plan"])
@pytest.mark.parametrize(("head", "encoder"), [("image", "ImageEncoder"), ("audio", "AudioEncoder")])
def test_media_cannot_be_read_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, head: str, encoder: str
) -> None:
    """The error names the encoder that embeds them; nothing is made."""
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    flags = ["--head", head, "--checkpoint", "untrained", "--input", f"{tmp_path}/a.wav", "--output", f"{tmp_path}/out"]
    assert main([command, *flags]) == 2
    error = capsys.readouterr().err
    assert f"--head {head}: media files cannot be read yet: embed them with {encoder} from Python" in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


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
    assert f"{flag} is a flag of --head {heads}, and --head is text: leave it out" in capsys.readouterr().err


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


def test_the_help_has_only_flags_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    """It lists neither the heads whose contents cannot be read nor their flags."""
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    printed = capsys.readouterr().out
    assert "--head {text}" in printed
    assert not {"--variant", "--window", "--max_pixels", "--media_field"} & set(printed.split())
    assert "head image" not in printed
