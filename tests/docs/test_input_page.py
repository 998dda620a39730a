"""docs/input.md: its examples run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.pipeline.cli import main
from tests.support.corpus import read
from tests.support.pages import ROOT, command_line, commands, read_page, sections
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import save_small_head

SECTIONS = sections(read_page("docs/input.md"))


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_head: str, vocabulary: Path) -> None:
    """The commands embed the examples of all text formats, and documents with their chunks."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    flags = ["--checkpoint", small_head, "--tokenizer_path", str(vocabulary)]
    assert main([*shlex.split(command_line(SECTIONS["Formats"], "embed", {}))[1:], *flags]) == 0
    assert read(tmp_path / "out/texts").num_rows == 296
    subprocess.run(["sh", "-c", command_line(SECTIONS["Fields"], "printf", {})], check=True, timeout=60)
    assert main([*shlex.split(command_line(SECTIONS["Fields"], "embed", {}))[1:], *flags]) == 0
    assert sorted(read(tmp_path / "out/pages")["id"].to_pylist()) == ["d", "d1", "e"]


def test_files_of_sounds_and_pictures() -> None:
    """The commands are those of the README, whose test runs them."""
    assert set(commands(SECTIONS["Sounds and pictures"])) <= set(commands(read_page("README.md")))


def test_tars_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands pack a folder and embed it, with the ids and kept fields that the section names."""
    section = SECTIONS["Tars of pictures and sounds"]
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


def test_lists_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands write a list and embed what it names; one that does not exist costs its row."""
    section = SECTIONS["Lists of files"].replace("s3://bucket/8.jpg", "none.jpg")
    (tmp_path / "photos/cats").mkdir(parents=True)
    (tmp_path / "photos/cats/7.jpg").write_bytes(encoded(picture(7), "JPEG"))
    monkeypatch.chdir(tmp_path)
    subprocess.run(["sh", "-c", command_line(section, "printf", {})], check=True, timeout=60)
    embed = shlex.split(command_line(section, "embed", {}))[1:]
    assert main([*embed, "--checkpoint", save_small_head(tmp_path / "small.pt")]) == 0
    rows = read(tmp_path / "out/photos").select(["id", "label"]).to_pylist()
    assert rows == [{"id": "list.jsonl#0", "label": "cat"}]
    assert read(tmp_path / "out/photos", "rejected")["reason"].to_pylist() == ["missing file"]


def test_columns_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command embeds a file as datasets writes it, which is not installed here."""
    section = SECTIONS["Pictures and sounds in Parquet"]
    column = [{"bytes": encoded(picture(n), "JPEG"), "path": None} for n in range(2)]
    pq.write_table(pa.table({"image": column, "labels": [0, 1]}), tmp_path / "beans.parquet")
    monkeypatch.chdir(tmp_path)
    embed = shlex.split(command_line(section, "embed", {}))[1:]
    assert main([*embed, "--checkpoint", save_small_head(tmp_path / "small.pt")]) == 0
    assert read(tmp_path / "out/beans").sort_by("labels")["id"].to_pylist() == ["beans.parquet#0", "beans.parquet#1"]
