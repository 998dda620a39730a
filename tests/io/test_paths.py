"""Paths as people type them: home directories, and URLs with other slashes, schemes and letters."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from audioclip_beam.model import TextEncoder
from audioclip_beam.model import paths as model_paths
from audioclip_beam.model.checkpoint import CheckpointError, extract
from audioclip_beam.pipeline import AudioCLIPTextEmbeddings, EmbedOptions, TextEmbeddingHandler
from audioclip_beam.pipeline.changes import find_changes
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.parser import parse
from audioclip_beam.pipeline.io.paths import absolute_path, given_path
from audioclip_beam.pipeline.options import OptionsError
from audioclip_beam.pipeline.search import find_pairs
from audioclip_beam.pipeline.snapshots.history import current_path, gc, log, rollback
from audioclip_beam.pipeline.validation import validate
from tests.support.snapshots import directory_of, random_batches, write_snapshot


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home directory, which is also the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "{home}"),
        ("~/", "{home}/"),
        ("~/corpus", "{home}/corpus"),
        ("~/texts/**/*.txt", "{home}/texts/**/*.txt"),
        (f"~{pwd.getpwuid(os.getuid()).pw_name}/x", f"{pwd.getpwuid(os.getuid()).pw_dir}/x"),
        ("~*.txt", "~*.txt"),
        ("./~/x", "./~/x"),
        ("a/~b", "a/~b"),
        ("/a//b/", "/a//b/"),
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("FILE:///a/b", "/a/b"),
        ("file:///a%20b/c%C3%A9/100%", "/a b/cé/100%"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/", "s3://bucket/a/"),
        ("s3://bucket//a", "s3://bucket//a"),
        ("s3/bucket/a", "s3/bucket/a"),
        ("gsx/a", "gsx/a"),
        ("file", "file"),
        ("untrained", "untrained"),
    ],
)
def test_what_a_path_means(home: Path, given: str, expected: str) -> None:
    """What is not a home directory or a file URL stays as it is, and so does every result."""
    path = given_path(given)
    assert path == expected.format(home=home)
    assert given_path(path) == path


WRONG = {
    "s3:/bucket/a": "write s3://bucket/a$",
    "s3:bucket/a": "write s3://bucket/a$",
    "s3:///bucket/a": "write s3://bucket/a$",
    "s3:////bucket/a": "write s3://bucket/a$",
    "s3//bucket/a": "write s3://bucket/a$",
    "S3://bucket/a": "write s3://bucket/a$",
    "s3a://bucket/a": "write s3://bucket/a$",
    "s3:\\\\bucket/a": "write s3://bucket/a$",
    "gs:/bucket/a": "write gs://bucket/a$",
    "gs:///bucket/*.txt": r"write gs://bucket/\*\.txt$",
    "GS://bucket/a": "write gs://bucket/a$",
    "gcs://bucket/a": "write gs://bucket/a$",
    "gs://": "write gs://bucket/path$",
    "s3:": "write s3://bucket/path$",
    "file://host/a": "a file URL names no host: write file:///path, or the path alone$",
    "file:a": "a file URL has three slashes: write file:///path, or the path alone$",
    "file:////a": "a file URL has three slashes",
    "http://host/a": r"download it first, as in curl -O http://host/a$",
    "https:/host/a": "write https://host/a$",
    "hdfs://host/a": r"hdfs:// needs a client that is not installed: run pip install 'apache-beam\[hadoop\]'$",
    "azfs://account/a": r"run pip install 'apache-beam\[azure\]'$",
    "ftp://host/a": r"ftp:// is not known: paths are local, file:///path, gs://bucket/path or s3://bucket/path$",
    "~nosuchuser/a": "there is no user 'nosuchuser': write ./~nosuchuser/a for a name that begins with a tilde$",
}


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_url_is_an_error_with_the_right_form(given: str) -> None:
    """The message begins with what was given."""
    with pytest.raises(ValueError, match=WRONG[given]) as caught:
        given_path(given)
    assert str(caught.value).startswith(given)


def test_a_scheme_whose_client_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra."""
    monkeypatch.setattr(model_paths, "_is_installed", lambda _: False)
    for url, extra in (("s3://b/a", "aws"), ("gs://b/a", "gcp")):
        with pytest.raises(ValueError, match=rf"run pip install 'audioclip-beam\[{extra}\]'$"):
            given_path(url)


def test_no_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user id without a name."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ValueError, match="~/a: the home directory is not known: set HOME, or write the whole path"):
        given_path("~/a")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("in", "{home}/in"),
        ("in/", "{home}/in/"),
        ("in/../x/*.txt", "{home}/x/*.txt"),
        ("/in//x/", "/in/x/"),
        ("/", "/"),
        ("s3://b/in/", "s3://b/in/"),
        (".", "{home}"),
    ],
)
def test_an_absolute_path_means_the_same(home: Path, given: str, expected: str) -> None:
    """A slash at the end stays: a glob that ends in one means the files in that folder."""
    assert absolute_path(given) == expected.format(home=home)


# By a command line, the name of the argument that it gives a path to.
ARGUMENTS = {
    "embed --output={}": "output",
    "embed --checkpoint={}": "checkpoint",
    "embed --model_path={}": "checkpoint",
    "embed --tokenizer_path={}": "tokenizer_path",
    "plan --output {}": "output",
    "fetch vocabulary --dir={}": "dir",
    "extract {} target": "checkpoint",
    "extract full {}": "target",
    "log {}": "output",
    "current {}": "output",
    "search {} dog": "output",
    "search out dog --checkpoint={}": "checkpoint",
    "search out dog --tokenizer_path={}": "tokenizer_path",
    "validate {}": "output",
    "validate out --checkpoint={}": "checkpoint",
    "report {}": "output",
    "changes {}": "output",
    "changes out --output={}": "target",
    "rollback {}": "output",
    "gc {} --keep 3": "output",
}


@pytest.mark.parametrize("line", ARGUMENTS)
def test_every_path_of_a_command_line(home: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A tilde that the shell left is expanded, a file URL is a path, and a wrong URL is a usage error."""
    for given, expected in (("~/x.pt", f"{home}/x.pt"), ("file:///x.pt", "/x.pt"), ("s3://b/x.pt", "s3://b/x.pt")):
        arguments = parse(line.format(given).split())
        assert getattr(arguments, ARGUMENTS[line]) == expected
    assert main(line.format("s3:/b/x.pt").split()) == 2
    assert "s3:/b/x.pt is not a URL" in capsys.readouterr().err


def test_every_input_of_a_command_line(home: Path) -> None:
    arguments = parse(["embed", "--input", "~/*.txt", "file:///b.txt", "--input=~/c.txt"])
    assert arguments.input == [f"{home}/*.txt", "/b.txt", f"{home}/c.txt"]


def test_the_paths_of_options(home: Path) -> None:
    """Strings and pathlib's paths; pathlib takes a slash from a URL, and the message shows the right form."""
    options = EmbedOptions(
        input=["~/a.txt", Path("~/b.txt")], output=Path("~/out"), checkpoint="~/x", tokenizer_path="~/v"
    )
    assert options.input == [f"{home}/a.txt", f"{home}/b.txt"]
    assert (options.output, options.checkpoint) == (f"{home}/out", f"{home}/x")
    assert options.values["tokenizer_path"] == f"{home}/v"
    assert EmbedOptions(input="~/a.txt").input == [f"{home}/a.txt"]
    for name, value in (("output", Path("s3://b/out")), ("input", ["a.txt", "gs:/b/a"]), ("tokenizer_path", "s3:b/v")):
        with pytest.raises(OptionsError, match=rf"^--{name} .*: write (s3|gs)://b/"):
            EmbedOptions(**{name: value})


def test_the_paths_of_functions(home: Path) -> None:
    """Those of the commands take a path as the commands do."""
    write_snapshot(home / "out", random_batches(3, 4), 4)
    directory = str(directory_of(home / "out"))
    assert current_path("~/out") == rollback("~/out", Path(directory).name) == validate("~/out").path == directory
    assert [entry.snapshot for entry in log("~/out")] == [Path(directory).name]
    assert gc("~/out", 1) == []
    find_changes("~/out", target="~/changes")
    assert find_pairs("~/out", "~/out", "~/pairs").pairs == 3
    with pytest.raises(CheckpointError, match=f"^{home}/head.pt must end in .safetensors"):
        extract("untrained", "~/head.pt")
    assert {path.name for path in home.iterdir()} == {"out", "changes", "pairs"}


def test_the_paths_of_encoders_and_handlers(home: Path) -> None:
    """Those of a checkpoint and a vocabulary, before anything is read."""
    handler = TextEmbeddingHandler("~/x.pt", tokenizer_path="file:///v.gz")
    assert handler._settings.files == (f"{home}/x.pt", "/v.gz")
    embeddings = AudioCLIPTextEmbeddings(columns=["a"], checkpoint="~/x.pt", tokenizer_path="~/v.gz")
    assert embeddings._handler._settings.files == (f"{home}/x.pt", f"{home}/v.gz")
    with pytest.raises(FileNotFoundError, match=f"no vocabulary file at {home}/v.gz"):
        TextEncoder.load("untrained", tokenizer_path="~/v.gz")
    for call in (TextEmbeddingHandler, TextEncoder.load):
        with pytest.raises(ValueError, match="write s3://b/x.pt"):
            call("s3:/b/x.pt")
