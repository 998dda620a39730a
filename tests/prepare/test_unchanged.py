"""A night on which nothing changed ends at once; whatever decides what a snapshot contains makes a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audioclip_beam.model.text.head import TEXT, TextHead
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.embed_command import parse_options
from audioclip_beam.pipeline.cli.parser import parse
from audioclip_beam.pipeline.inference.shared_encoder import ModelDescription
from audioclip_beam.pipeline.prepare import job
from audioclip_beam.pipeline.prepare.job import prepare_job
from audioclip_beam.pipeline.prepare.unchanged import Listing, compare_with_current, unchanged_since
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.history import rollback
from tests.support.snapshots import directory_of, edit_manifest


@pytest.fixture
def folder(tmp_path: Path, small_head: str, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards, a model, and OUT with a snapshot of them; the current directory."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}\nanother of {name}\n")
    shutil.copy(small_head, tmp_path / "head.pt")
    shutil.copy(vocabulary, tmp_path / "vocabulary.gz")
    monkeypatch.chdir(tmp_path)
    assert main(command()) == 0
    return tmp_path


def command(*flags: str, inputs: tuple[str, ...] = ("*.txt",), output: str = "out") -> list[str]:
    model = ["--checkpoint", "head.pt", "--tokenizer_path", "vocabulary.gz"]
    return ["embed", "--input", *inputs, "--output", output, *model, *flags]


def check(*flags: str, inputs: tuple[str, ...] = ("*.txt",)) -> str | None:
    return unchanged_since(vars(parse(command(*flags, inputs=inputs))))


def test_what_changes_and_what_does_not(folder: Path) -> None:
    """Shards by name, size and version, options with an effect, the model's files, and the snapshot's own files count."""
    name = current_name("out")
    assert check() == name
    # Where things are and how fast they are computed decides nothing.
    others = ("--batch_size", "7", "--device", "cpu", "--read_timeout", "9", "--download_model")
    assert check(*others) == name
    assert check(inputs=(str(folder / "b.txt"), "a.txt")) == name
    for flags in (
        ("--no_text",),
        ("--prompt", "a {}"),
        ("--dtype", "bfloat16"),
        ("--max_rejected", "1%"),
        ("--force",),
    ):
        assert check(*flags) is None, flags
    assert check(inputs=("a.txt",)) is None
    for path in (folder / "a.txt", folder / "head.pt", folder / "vocabulary.gz"):
        before = path.stat()
        os.utime(path)
        assert check() is None, path
        aside = path.rename(path.with_suffix(".aside"))  # so that the times and the inode can come back
        path.write_bytes(aside.read_bytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert check() is None, path
        assert main(command()) == 0
        name = current_name("out")
        assert check() == name
    (folder / "c.txt").write_text("a new shard\n")
    assert check() is None
    (folder / "c.txt").unlink()
    assert check() == name


def test_size_and_time_of_change_alone_decide_if_asked_to(folder: Path) -> None:
    """For a mount whose inodes or ctimes differ each night; the earlier snapshot need not have been made so."""
    name, alone = current_name("out"), ("--compare", "size_mtime")
    for path in (folder / "a.txt", folder / "b.txt", folder / "head.pt", folder / "vocabulary.gz"):
        before = path.stat()
        aside = path.rename(path.with_suffix(".aside"))
        shutil.copy(aside, path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (check(), check(*alone)) == (None, name), path
    os.utime(folder / "a.txt")
    assert check(*alone) is None
    assert main(command(*alone)) == 0
    name = current_name("out")
    assert check() == check(*alone) == name
    before = (folder / "a.txt").stat()
    (folder / "a.txt").write_text("longer\n")
    os.utime(folder / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check(*alone) is None


@pytest.mark.parametrize("what", ["embed", "plan"])
def test_a_night_that_is_not_unchanged_lists_once(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What was listed for the comparison is what the run reads; its notes are printed as in any run."""
    (folder / "in").mkdir()
    for name in ("a.txt", "b.txt", "._a.txt"):
        (folder / "in" / name).write_text(f"text of {name}\n")
    assert main(command(inputs=("in/*.txt",), output="out2")) == 0
    (folder / "in/c.txt").write_text("one more\n")
    scans, plain = list[str](), os.scandir

    def scandir(path: Any = ".") -> Any:
        scans.append(os.path.normpath(str(path)))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main([what, *command(inputs=("in/*.txt",), output="out2")[1:]]) == 0
    assert scans.count("in") == 1


@pytest.mark.usefixtures("folder")
def test_a_listing_that_was_compared_with_another_snapshot_is_not_used() -> None:
    """Another run may publish meanwhile: names of shards follow the current snapshot."""
    Path("c.txt").write_text("one more\n")
    listing = compare_with_current(vars(parse(command())))
    assert isinstance(listing, Listing)
    assert [shard.name for shard in listing.shards] == ["a.txt", "b.txt", "c.txt"]
    Path("c.txt").unlink()
    assert main(command("--force")) == 0
    prepared = prepare_job(parse_options(command()[1:]), listing=listing)
    assert prepared.carry_over.inputs["name"].to_pylist() == ["a.txt", "b.txt"]


@pytest.mark.usefixtures("folder")
def test_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """No snapshot is made, and the exit status is 0; --force makes one."""
    capsys.readouterr()
    name = current_name("out")
    assert main(command()) == 0
    assert capsys.readouterr().out == f"unchanged since {name}: nothing to do; --force runs anyway\n"
    assert main(["plan", *command()[1:]]) == 0
    assert capsys.readouterr().out == f"unchanged since {name}: embed would do nothing\n"
    assert [path.name for path in Path("out/snapshots").iterdir()] == [name]
    assert main(command("--force")) == 0
    assert current_name("out") != name
    assert check() == current_name("out")
    rollback("out")
    assert check() == name


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_plan_after_a_night_without_new_texts_has_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    """It is that of the runs that used the model, however long ago the last one was."""
    for _ in range(6):
        before = current_name("out")
        os.utime("a.txt")
        assert main(command()) == 0
        assert current_name("out") != before
    Path("b.txt").write_text("text of b\nsomething new\n")
    capsys.readouterr()
    assert main(["plan", *command()[1:]]) == 0
    assert "tokens/s of earlier runs with this fingerprint" in capsys.readouterr().out


def test_a_damaged_snapshot_is_made_again(folder: Path) -> None:
    """So is one that another version of the readers has made; another version of this program changes nothing."""
    part = next(directory_of(folder / "out").glob("part-*"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    assert check() is None
    part.write_bytes(whole)
    assert check() == current_name("out")
    edit_manifest(folder / "out", lambda manifest: manifest.update(tool_version="0.0.1"))
    assert check() == current_name("out")
    edit_manifest(folder / "out", lambda manifest: manifest["deciding"].update(readers=0))
    assert check() is None


@pytest.mark.usefixtures("folder")
def test_a_model_that_is_replaced_while_a_run_reads_it_makes_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has embedded with the file that it found."""
    plain = job.describe_model

    def describe(*model: Any) -> ModelDescription:
        described = plain(*model)
        os.utime("head.pt")
        return described

    monkeypatch.setattr(job, "describe_model", describe)
    assert main(command("--force")) == 0
    assert check() is None


@pytest.mark.usefixtures("folder")
def test_another_unicode_or_ftfy_makes_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide the token ids of rare strings."""
    versions = TEXT.versions()
    monkeypatch.setattr(TextHead, "versions", lambda head: versions | {"ftfy": "0"})
    assert check() is None


@pytest.mark.usefixtures("folder")
def test_neither_beam_nor_torch_nor_pandas_is_imported() -> None:
    """Their imports take longer than the whole check. pyarrow imports pandas for some calls."""
    code = (
        "import sys; from audioclip_beam.pipeline.cli import main; status = main(sys.argv[1:]); "
        "print(status, sorted({'apache_beam', 'pandas', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *command()], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done
