"""docs/input.md: its examples run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from audioclip_beam.pipeline.cli import main
from tests.support.corpus import read
from tests.support.pages import command_line, read_page, sections
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import save_small_head


def test_tars_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands pack a folder and embed it, with the ids and kept fields that the section names."""
    section = sections(read_page("docs/input.md"))["Tars of pictures and sounds"]
    folder = tmp_path / "photos/cats"
    folder.mkdir(parents=True)
    (folder / "7.jpg").write_bytes(encoded(picture(7), "JPEG"))
    (folder / "7.txt").write_text("a cat")
    (folder / "7.json").write_text('{"license": "CC0"}')
    monkeypatch.chdir(tmp_path)
    subprocess.run(shlex.split(command_line(section, "tar --sort", {})), check=True, timeout=60)
    embed = shlex.split(command_line(section, "embed", {}))[1:]
    assert main([*embed, "--checkpoint", save_small_head(tmp_path / "small.pt")]) == 0
    rows = read(tmp_path / "out/photos").select(["id", "txt", "json.license"]).to_pylist()
    assert rows == [{"id": "photos.tar#./cats/7", "txt": "a cat", "json.license": "CC0"}]
    assert "`photos.tar#./cats/7`" in section
