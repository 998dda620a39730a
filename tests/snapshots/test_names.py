"""What data and files of OUT say never leads out of OUT, and never acts on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from audioclip_text.pipeline.cli import main
from audioclip_text.pipeline.errors import SnapshotError
from audioclip_text.pipeline.readers.base import InputError
from audioclip_text.pipeline.readers.shards import find_shards
from audioclip_text.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_text.pipeline.snapshots.history import gc, log, rollback
from audioclip_text.pipeline.snapshots.manifest import is_run_name, plain_name
from audioclip_text.pipeline.snapshots.run_directory import list_runs, run_path
from tests.support.corpus import embed, read, write_jsonl

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
    """OUT with two snapshots, and a directory beside it that is nobody's business."""
    shutil.copytree(two_snapshots, tmp_path, dirs_exist_ok=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("manifest.json", "run.lock", "part-0.parquet", "precious"):
        (elsewhere / name).write_text("precious")
    return tmp_path / "out"


def precious(output: Path) -> list[str]:
    return [path.read_text() for path in sorted((output.parent / "elsewhere").iterdir())]


@pytest.mark.parametrize("name", LEADING_AWAY, ids=repr)
def test_a_pointer_that_leads_away_is_refused_by_every_command(
    output: Path, name: object, capsys: pytest.CaptureFixture[str], vocabulary: Path
) -> None:
    """current.json is a file like any other: what it names is a plain name, or nothing is done."""
    (output / "current.json").write_text(json.dumps({"snapshot": name, "manifest": "../../x"}))
    before = sorted(output.rglob("*"))
    for command in (["log"], ["current"], ["rollback"], ["gc", "--keep", "1"]):
        assert main([command[0], str(output), *command[1:]]) == 1
        said = capsys.readouterr().err
        assert "current.json names" in said
        assert "\x1b" not in said
    with pytest.raises(SnapshotError, match="current.json names"):
        embed(output.parent / "a.jsonl", output)
    assert sorted(output.rglob("*")) == before
    assert precious(output) == ["precious"] * 4


def test_a_pointer_without_a_name_is_refused(output: Path) -> None:
    """An object of anything else is no pointer."""
    (output / "current.json").write_text('{"manifest": "x"}')
    with pytest.raises(SnapshotError, match="names no snapshot: restore it"):
        current_name(str(output))


@pytest.mark.parametrize("name", LEADING_AWAY, ids=repr)
def test_a_manifest_whose_files_lead_away_is_refused(output: Path, name: object) -> None:
    """Neither reuse nor a listing follows a file's name out of the snapshot."""
    snapshot = str(current_name(str(output)))
    path = output / "snapshots" / snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["name"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        SnapshotError, match=r"manifest\.json (names .* no plain name|is not a complete manifest: files\[0\].name is)"
    ):
        read_manifest(str(output), snapshot)
    with pytest.raises(SnapshotError, match=r"manifest\.json (names|is not a complete manifest)"):
        embed(output.parent / "a.jsonl", output)
    with pytest.raises(SnapshotError, match=r"manifest\.json (names|is not a complete manifest)"):
        log(str(output))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snapshot": "../../elsewhere"}, "is the manifest of '../../elsewhere', not of"),
        ({"files": None}, "is not a complete manifest: files is None, and must be list"),
        ({"files": ["part-0.parquet"]}, r"files\[0\].name is missing"),
        ({"fingerprint": 3, "counts": []}, "fingerprint is 3, and must be str; counts is .*, and must be dict"),
    ],
)
def test_a_manifest_of_another_making_is_refused(output: Path, change: dict[str, object], message: str) -> None:
    """Before anything in it is used."""
    snapshot = str(current_name(str(output)))
    path = output / "snapshots" / snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SnapshotError, match=message):
        read_manifest(str(output), snapshot)


@pytest.mark.parametrize("name", ["../../elsewhere", "../snapshots", "/etc", "", ".", "*", "a/b"])
def test_rollback_takes_the_name_of_a_snapshot_alone(output: Path, name: str) -> None:
    """A path to one is none, whether it is there or not."""
    now = current_name(str(output))
    with pytest.raises(SnapshotError, match="has no finished snapshot"):
        rollback(str(output), name)
    with pytest.raises(SnapshotError, match="has no finished snapshot"):
        rollback(str(output), f"../snapshots/{now}")
    assert current_name(str(output)) == now


def test_gc_follows_no_links(output: Path) -> None:
    """A linked directory is no run of ours; a linked file goes, what it leads to stays; strange names stay too."""
    elsewhere, snapshots = output.parent / "elsewhere", output / "snapshots"
    os.symlink(elsewhere, snapshots / "20200101T000000Z-00000000")
    (snapshots / "strange [*]").mkdir()
    dead = snapshots / "20200101T000001Z-00000000"
    dead.mkdir()
    (dead / "inside").symlink_to(elsewhere, target_is_directory=True)
    for name in ("run.lock", "part-0.parquet", "manifest.json"):
        (dead / name).symlink_to(elsewhere / name)
    assert "20200101T000000Z-00000000" not in list_runs(str(output))
    oldest = min(name for name in list_runs(str(output)) if name != dead.name)
    assert gc(str(output), 1) == [dead.name, oldest]
    assert not dead.exists()
    assert (snapshots / "20200101T000000Z-00000000").is_symlink()
    assert (snapshots / "strange [*]").is_dir()
    assert precious(output) == ["precious"] * 4


def test_a_dead_run_whose_lock_is_a_link_harms_nobody(output: Path) -> None:
    """Looking whether a run is alive writes nothing behind the link, and the run's end removes the link alone."""
    dead = output / "snapshots" / "20200101T000001Z-00000000"
    dead.mkdir()
    (dead / "run.lock").symlink_to(output.parent / "elsewhere/precious")
    with suppress(OSError):  # a lock that is a link may be refused
        gc(str(output), 2)
    assert precious(output) == ["precious"] * 4


def test_ids_that_look_like_paths_are_ids(tmp_path: Path) -> None:
    """They stand in the id column and nowhere else: no file is made of them."""
    ids = ["../../escape", "/etc/passwd", "..", "a\0b", "\x1b[31m", "<script>alert(1)</script>", "con", "~/x"]
    shard = write_jsonl(tmp_path / "in/a.jsonl", [{"id": own, "text": f"text {own}"} for own in ids])
    embed(shard, tmp_path / "out", id_field="id")
    assert sorted(read(tmp_path / "out")["id"].to_pylist()) == sorted(ids)
    assert all(plain_name(path.name.lstrip("."), "test") for path in (tmp_path / "out").rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_names_of_shards_are_ids_and_no_paths(tmp_path: Path) -> None:
    """A file may be called anything: its name is read, shown escaped, and written nowhere."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a\nb.txt", "\x1b[2J.txt", "$(touch pwned).txt", "--flag.txt", "ä*[x].txt", ".. .txt"):
        (folder / name).write_text("text\n")
    manifest, _ = embed(f"{folder}/*", tmp_path / "out")
    assert manifest["counts"]["embedded"] == 6
    assert {"a\nb.txt#0", "$(touch pwned).txt#0"} <= set(read(tmp_path / "out")["id"].to_pylist())
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    (folder / "x\\..\\y.txt").write_text("text\n")
    with pytest.raises(InputError, match="has a backslash in its name, and no glob matches that: rename the file"):
        find_shards([f"{folder}/*"])


def test_what_strangers_named_is_escaped_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files, fields and ids in errors move no cursor and turn no writing round."""
    (tmp_path / "\x1b[2J\u202egnp.doc").write_text("x")
    assert main(["embed", "--input", f"{tmp_path}/*", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert r"\x1b[2J\u202egnp.doc" in said
    assert "\x1b" not in said
    write_jsonl(tmp_path / "a.jsonl", [{"\x1b[31mfield": 1}])
    assert main(["embed", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert r"there are \x1b[31mfield" in said
    assert "\x1b" not in said


def test_the_sample_of_rows_is_escaped_too(tmp_path: Path) -> None:
    """scripts/show.py prints ids, texts and reasons of strangers."""
    rows = [{"id": "\x1b[31mred", "text": "a\x1b]0;title\x07b"}, {"id": "x", "text": "\x1b[2J"}, {"id": "y", "text": 1}]
    embed(write_jsonl(tmp_path / "a\x9b.jsonl", rows), tmp_path / "out", id_field="id")
    command = [sys.executable, str(ROOT / "scripts/show.py"), str(tmp_path / "out")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert r"\x1b[31mred" in shown
    assert r"a\x9b.jsonl, row 2: wrong type" in shown
    assert not set("\x1b\x07\x9b") & set(shown)


def test_our_own_names_are_plain(output: Path) -> None:
    """Runs, in the making too, and the files in them."""
    assert all(is_run_name(name) for name in list_runs(str(output)))
    assert is_run_name(".20260101T000000Z-0123abcd-7")
    assert not any(is_run_name(str(name)) for name in LEADING_AWAY if isinstance(name, str))
    for name in list_runs(str(output)):
        manifest = read_manifest(str(output), name)
        assert manifest
        assert all(Path(run_path(str(output), name), file["name"]).is_file() for file in manifest["files"])
