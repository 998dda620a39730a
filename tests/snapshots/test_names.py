"""Names in data and in files of OUT never lead out of OUT, and are escaped on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.history import gc, log, rollback
from audioclip_beam.pipeline.snapshots.manifest import is_run_name, require_plain_name
from audioclip_beam.pipeline.snapshots.run_directory import list_runs, run_path
from audioclip_beam.pipeline.snapshots.snapshot import open_snapshot
from tests.support.corpus import embed, read, write_jsonl
from tests.support.snapshots import edit_files, files_of

ROOT = Path(__file__).parents[2]
LEADING_AWAY = [
    "../../elsewhere",
    "..",
    ".",
    "",
    "/etc",
    "a/b",
    "a\\b",
    "gs://another-bucket/x",
    "part-x/../../../elsewhere.parquet",
    "part-*",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "x" * 300,
    None,
    3,
    ["20260101T000000Z-00000000"],
]


@pytest.fixture(scope="module")
def two_snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for texts in (("dog", "cat"), ("dog", "bird")):
        embed(write_jsonl(folder / "a.jsonl", [{"text": text} for text in texts]), folder / "out")
    return folder


@pytest.fixture
def output(tmp_path: Path, two_snapshots: Path) -> Path:
    """OUT with two snapshots, and a directory beside it that no command may change."""
    shutil.copytree(two_snapshots, tmp_path, dirs_exist_ok=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("manifest.json", "run.lock", "part-0.parquet", "precious"):
        (elsewhere / name).write_text("precious")
    return tmp_path / "out"


def precious(output: Path) -> list[str]:
    return [path.read_text() for path in sorted((output.parent / "elsewhere").iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEADING_AWAY, ids=repr)
def test_pointer_out_of_out_is_refused_by_every_command(
    output: Path, name: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name in current.json must be a plain name; with any other, every command fails and changes nothing."""
    (output / "current.json").write_text(json.dumps({"snapshot": name, "manifest": "../../x"}))
    before = sorted(output.rglob("*"))
    for command in (["log"], ["current"], ["rollback"], ["gc", "--keep", "1"]):
        assert main([command[0], str(output), *command[1:]]) == 1
        printed = capsys.readouterr().err
        assert "current.json names" in printed
        assert "\x1b" not in printed
    with pytest.raises(SnapshotError, match="current.json names"):
        embed(output.parent / "a.jsonl", output)
    assert sorted(output.rglob("*")) == before
    assert precious(output) == ["precious"] * 4


def test_pointer_without_a_name_is_refused(output: Path) -> None:
    """A JSON object without a snapshot is an error."""
    (output / "current.json").write_text('{"manifest": "x"}')
    with pytest.raises(SnapshotError, match="does not name a snapshot: restore it"):
        current_name(str(output))


@pytest.mark.parametrize("key", ["files", "shards"])
@pytest.mark.parametrize("name", LEADING_AWAY, ids=repr)
def test_manifest_with_file_names_out_of_out_is_refused(output: Path, name: object, key: str) -> None:
    """Neither its list of files nor that of its shards may have such a name."""
    snapshot = str(current_name(str(output)))
    path = output / "snapshots" / snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[key]["name"] = name
    path.write_text(json.dumps(manifest))
    found = rf"manifest\.json (names .* not a plain name|is not a valid manifest: {key}.name is)"
    with pytest.raises(SnapshotError, match=found):
        read_manifest(str(output), snapshot)
    with pytest.raises(SnapshotError, match=found):
        embed(output.parent / "a.jsonl", output)
    with pytest.raises(SnapshotError, match=found):
        open_snapshot(str(output))


@pytest.mark.parametrize("name", [name for name in LEADING_AWAY if isinstance(name, str)], ids=repr)
def test_list_with_file_names_out_of_out_is_refused(output: Path, name: str) -> None:
    """No command that reads the files follows a name out of the snapshot."""
    edit_files(output, lambda files: [replace(files[0], name=name), *files[1:]])
    found = r"_files-[0-9a-f]{16}\.parquet names .* not a plain name"
    with pytest.raises(SnapshotError, match=found):
        open_snapshot(str(output)).part_paths()
    with pytest.raises(SnapshotError, match=found):
        embed(output.parent / "a.jsonl", output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snapshot": "../../elsewhere"}, "is the manifest of '../../elsewhere', not of"),
        ({"files": None}, "is not a valid manifest: files is None, expected an object"),
        ({"files": ["part-0.parquet"]}, r"files is \['part-0.parquet'\], expected an object"),
        ({"fingerprint": 3, "counts": []}, r"fingerprint is 3, expected a string; counts is \[\], expected an object"),
    ],
)
def test_invalid_manifest_is_refused(output: Path, change: dict[str, object], message: str) -> None:
    """A manifest of another snapshot, or with values of another type, is an error."""
    snapshot = str(current_name(str(output)))
    path = output / "snapshots" / snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SnapshotError, match=message):
        read_manifest(str(output), snapshot)


@pytest.mark.parametrize("name", ["../../elsewhere", "../snapshots", "/etc", "", ".", "*", "a/b"])
def test_rollback_accepts_only_names_of_snapshots(output: Path, name: str) -> None:
    """A path is refused, also one that leads to a snapshot."""
    now = current_name(str(output))
    with pytest.raises(SnapshotError, match="has no finished snapshot"):
        rollback(str(output), name)
    with pytest.raises(SnapshotError, match="has no finished snapshot"):
        rollback(str(output), f"../snapshots/{now}")
    assert current_name(str(output)) == now


def test_links_are_not_followed(output: Path) -> None:
    """Linked directories and names that no run has are left alone; a linked file is removed, and its target is not."""
    elsewhere, snapshots = output.parent / "elsewhere", output / "snapshots"
    os.symlink(elsewhere, snapshots / "20200101T000000Z-00000000")
    others = ["strange [*]", "mine", "20200101T000000Z-0000000", "20200101T000000Z-00000000-copy"]
    for name in others:
        (snapshots / name).mkdir()
    dead = snapshots / "20200101T000001Z-00000000"
    dead.mkdir()
    (dead / "inside").symlink_to(elsewhere, target_is_directory=True)
    for name in ("run.lock", "part-0.parquet", "manifest.json"):
        (dead / name).symlink_to(elsewhere / name)
    link = "20200101T000000Z-00000000"
    assert link not in list_runs(str(output))
    oldest = min(name for name in list_runs(str(output)) if name != dead.name)
    assert gc(str(output), 1) == [dead.name, oldest]
    assert not dead.exists()
    assert link not in "\n".join(map(str, log(str(output))))
    with pytest.raises(SnapshotError, match="has no finished snapshot"):
        rollback(str(output), link)
    assert (snapshots / link).is_symlink()
    assert all((snapshots / name).is_dir() for name in others)
    assert precious(output) == ["precious"] * 4


def test_lock_that_is_a_link(output: Path) -> None:
    """The check whether a run is alive does not write to the target of a link, and only the link is removed."""
    dead = output / "snapshots" / "20200101T000001Z-00000000"
    dead.mkdir()
    (dead / "run.lock").symlink_to(output.parent / "elsewhere/precious")
    assert gc(str(output), 2) == [dead.name]
    assert not dead.exists()
    assert precious(output) == ["precious"] * 4


def test_ids_that_look_like_paths_are_ids(tmp_path: Path) -> None:
    """Such ids are stored in the id column, and no file is named after them."""
    ids = ["../../escape", "/etc/passwd", "..", "a\0b", "\x1b[31m", "<script>alert(1)</script>", "con", "~/x"]
    shard = write_jsonl(tmp_path / "in/a.jsonl", [{"id": name, "text": f"text {name}"} for name in ids])
    embed(shard, tmp_path / "out", id_field="id")
    assert sorted(read(tmp_path / "out")["id"].to_pylist()) == sorted(ids)
    assert all(require_plain_name(path.name.lstrip("._"), "test") for path in (tmp_path / "out").rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_odd_names_of_shards(tmp_path: Path) -> None:
    """A shard may have any name: the name becomes part of ids and of no path."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a\nb.txt", "\x1b[2J.txt", "$(touch pwned).txt", "--flag.txt", "ä*[x].txt", ".. .txt", "x\\..\\y.txt"):
        (folder / name).write_text("text\n")
    manifest, _ = embed(f"{folder}/*", tmp_path / "out")
    assert manifest["counts"]["embedded"] == 7
    assert {"a\nb.txt#0", "x\\..\\y.txt#0", "$(touch pwned).txt#0"} <= set(read(tmp_path / "out")["id"].to_pylist())
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_names_are_escaped_on_the_terminal(
    tmp_path: Path, small_head: str, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of files and fields in errors cannot move the cursor or reverse the direction of text."""
    (tmp_path / "\x1b[2J\u202egnp.doc").write_text("x")
    assert main(["embed", "--input", f"{tmp_path}/*", "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert r"\x1b[2J\u202egnp.doc" in printed
    assert "\x1b" not in printed
    write_jsonl(tmp_path / "a.jsonl", [{"\x1b[31mfield": 1}])
    model = "--checkpoint", small_head, "--tokenizer_path", str(vocabulary)
    assert main(["embed", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), *model]) == 2
    printed = capsys.readouterr().err
    assert r"the fields are '\x1b[31mfield'" in printed
    assert "\x1b" not in printed


@pytest.mark.slow
def test_rows_printed_by_show_are_escaped(tmp_path: Path) -> None:
    """scripts/show.py escapes the ids, texts and shard names that it prints."""
    rows = [{"id": "\x1b[31mred", "text": "a\x1b]0;title\x07b"}, {"id": "x", "text": "\x1b[2J"}, {"id": "y", "text": 1}]
    embed(write_jsonl(tmp_path / "a\x9b.jsonl", rows), tmp_path / "out", id_field="id")
    command = [sys.executable, str(ROOT / "scripts/show.py"), str(tmp_path / "out")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert r"\x1b[31mred" in shown
    assert r"a\x9b.jsonl, row 2: wrong type" in shown
    assert not set("\x1b\x07\x9b") & set(shown)


def test_names_of_runs_and_files_are_plain(output: Path) -> None:
    """Runs, finished or not, and their files have plain names, and odd names are not names of runs."""
    assert all(is_run_name(name) for name in list_runs(str(output)))
    assert is_run_name(".20260101T000000Z-0123abcd.0123456789abcdef-01234567.tmp")
    assert is_run_name(f".plan-{uuid4().hex}")
    assert not any(is_run_name(str(name)) for name in LEADING_AWAY if isinstance(name, str))
    for name in list_runs(str(output)):
        manifest = read_manifest(str(output), name)
        assert manifest
        assert all(Path(run_path(str(output), name), file.name).is_file() for file in files_of(output, manifest))
