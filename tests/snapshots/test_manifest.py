"""A damaged manifest gives each command that reads it one clear error, and the others none."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.plan_command import plan
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.io.json_file import read_json
from audioclip_beam.pipeline.snapshots import run_directory
from audioclip_beam.pipeline.snapshots.history import gc, log, rollback
from audioclip_beam.pipeline.snapshots.manifest import FORMAT, check_manifest
from audioclip_beam.pipeline.snapshots.run_directory import read_canary
from tests.support.corpus import StubHead, embed, write_jsonl
from tests.support.snapshots import directory_of, edit_manifest

Json = dict[str, object]

MAPS = {("options",), ("fingerprint_parts",), ("seconds",), ("counts", "rejected_by_reason"), ("pace", "rows")}
MAPS |= {
    ("counts", "model"),
    ("totals", "rejected_by_reason"),
    ("totals", "contents"),
    ("segments", 0, "rows", "contents"),
    ("segments", 0, "rows", "rejected_by_reason"),
}
MAPS |= {("deciding",), ("sizes",), ("norm_bins",)}

OPTIONAL = {("pace",), ("report",), ("kept_schema",), ("counts", "duplicate_ids")}

# The keys that each command reads, beside format and snapshot; None stands for all.
READS: dict[str, set[str] | None] = {
    "plan": None,
    "embed": None,
    "report": None,
    "search": None,
    "validate": None,
    "log": {"counts", "totals", "weights", "checkpoint", "created", "head"},
    "rollback": {"previous"},
    "gc": set(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard, a query, and OUT with two snapshots by the stub model; tests restore what they change."""
    folder = tmp_path_factory.mktemp("manifest")
    for texts in (("dog", ""), ("dog", "bird", "")):
        rows = [{"id": text or "none", "text": text} for text in texts]
        embed(write_jsonl(folder / "a.jsonl", rows), folder / "out", id_field="id", unique_ids=True)
    np.save(folder / "query.npy", np.ones(8, np.float32))
    return folder


@pytest.fixture
def manifest(folder: Path) -> Iterator[Json]:
    """The manifest of the current snapshot, which is restored after the test."""
    directory = directory_of(folder / "out")
    pointer, text = (folder / "out/current.json").read_text(), (directory / "manifest.json").read_text()
    yield json.loads(text)
    (folder / "out/current.json").write_text(pointer)
    (directory / "manifest.json").write_text(text)


def run(command: str, folder: Path) -> str | None:
    """Run a command on the current snapshot in OUT; return its error as one line, or None if it succeeds."""
    out, shard = folder / "out", folder / "a.jsonl"
    if command in ("plan", "embed"):
        try:
            if command == "embed":
                embed(shard, out, id_field="id")
            else:
                plan(["--input", str(shard), "--output", str(out), "--id_field", "id"], StubHead())
        except SnapshotError as error:
            return str(error)
        return None
    arguments = {
        "report": ["report", str(out), "--remake"],
        "search": ["search", str(out), str(folder / "query.npy")],
        "gc": ["gc", str(out), "--keep", "1", "--dry_run"],
    }.get(command, [command, str(out)])
    pointer = out / "current.json"
    before = pointer.read_bytes() if pointer.exists() else None
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
        status = main(arguments)
    if before is not None:
        pointer.write_bytes(before)  # rollback changes it
    if not status:
        return None
    lines = errors.getvalue().splitlines()
    assert status == 1
    if command == "validate":  # prints a result, in which the error is a fault
        return printed.getvalue()
    assert len(lines) == 1, lines
    return lines[0]


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each key whose presence a manifest promises; of a list, only in its first element."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            if (*path, key) not in MAPS:
                yield from paths_of(inner, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from paths_of(value[0], (*path, 0))


KEYS = [
    "format", "snapshot", "created", "tool_version", "fingerprint", "fingerprint_parts", "weights", "checkpoint",
    "checkpoint.name", "checkpoint.sha256", "dim", "options", "counts", "counts.read", "counts.embedded",
    "counts.reused", "counts.rejected", "counts.truncated", "counts.model", "counts.rejected_by_reason",
    "counts.duplicate_ids", "head", "limit",
    "lookup", "lookup.rows", "lookup.bytes", "lookup.left_out", "totals", "totals.read", "totals.vectors",
    "totals.rejected", "totals.truncated", "totals.without_texts", "totals.rejected_by_reason",
    "totals.contents", "segments",
    "segments.0.shards", "segments.0.bytes", "segments.0.damaged", "segments.0.written",
    "segments.0.rows", "segments.0.rows.read", "segments.0.rows.vectors", "segments.0.rows.rejected",
    "segments.0.rows.truncated", "segments.0.rows.without_texts", "segments.0.rows.rejected_by_reason",
    "segments.0.rows.contents",
    "deciding", "kept_schema", "sizes", "norm_bins", "seconds", "pace", "pace.seconds",
    "pace.rows", "files", "files.name", "files.entries", "files.sha256", "shards", "shards.name", "shards.entries",
    "shards.sha256", "model_files", "model_files.0.path", "model_files.0.version", "canary", "canary.contents",
    "canary.vectors", "previous", "notes", "report",
]  # fmt: skip


def place_of(manifest: Json, key: str) -> tuple[Callable[[], object], Callable[[object], None]]:
    """Return functions that remove a key from a manifest and that set it."""
    *outer, last = key.split(".")
    place: object = manifest
    for name in outer:
        place = place[int(name) if name.isdecimal() else name]  # type: ignore[index]
    assert isinstance(place, dict)
    return lambda: place.pop(last), lambda value: place.update({last: value})


def test_keys_are_all_keys(manifest: Json) -> None:
    """The list of keys that the tests damage is that of a real manifest."""
    assert sorted(KEYS) == sorted(".".join(map(str, path)) for path in paths_of(manifest))


@pytest.mark.parametrize("key", KEYS)
def test_missing_keys_and_wrong_types(folder: Path, manifest: Json, key: str) -> None:
    """A command that reads the key fails with an error that names it; any other succeeds."""
    remove, put = place_of(manifest, key)
    path = directory_of(folder / "out") / "manifest.json"
    name = key.replace(".0", "[0]")
    for change, expected in ((remove, f"{name} is missing"), (lambda: put(True), f"{name} is True, expected ")):
        change()
        path.write_text(json.dumps(manifest))
        optional = change is remove and tuple(key.split(".")) in OPTIONAL
        for command, reads in READS.items():
            if optional and command in ("plan", "embed"):
                continue  # a whole run
            error = run(command, folder)
            first = key.partition(".")[0]
            if optional or (reads is not None and first not in {*reads, "format", "snapshot"}):
                assert error is None, (command, error)
            else:
                assert error is not None, command
                if key == "format":
                    expected = "no format version" if change is remove else "format version True"
                assert expected in error, command


def test_wrong_types_of_elements(manifest: Json) -> None:
    """Values of dicts and elements of lists are checked, too, and a fault names the place."""
    for damage, expected in (
        ({"fingerprint_parts": {"dtype": 3}}, "fingerprint_parts.dtype is 3, expected a string"),
        ({"seconds": {"total": "1"}}, "seconds.total is '1', expected a number"),
        ({"notes": ["fine", None]}, "notes[1] is None, expected a string"),
        ({"pace": {"seconds": 1, "rows": {"read": [1, 2.5]}}}, "pace.rows.read[1] is 2.5, expected an integer"),
        ({"canary": {"contents": [1], "vectors": ""}}, "canary.contents[0] is 1, expected a string"),
        ({"previous": 3}, "previous is 3, expected a string or null"),
        ({"files": []}, "files is [], expected an object"),
    ):
        faults = check_manifest({**manifest, **damage}, str(manifest["snapshot"]))  # type: ignore[dict-item]
        assert faults == [expected]


def test_the_two_levels(manifest: Json) -> None:
    """What a command does not read is not checked; without a list of keys the values are checked as well."""
    name = str(manifest["snapshot"])
    assert check_manifest(manifest, name) == []
    counts = manifest["counts"]
    assert isinstance(counts, dict)
    damaged = {**manifest, "notes": 3, "counts": {**counts, "read": 99}}
    assert check_manifest(damaged, name, ("counts", "previous")) == []
    assert check_manifest(damaged, name) == ["notes is 3, expected a list"]
    del damaged["notes"]
    assert check_manifest(damaged, name) == ["notes is missing"]
    assert check_manifest({**damaged, "notes": []}, name) == [f"counts.read is 99, expected {counts['read']}"]


@pytest.mark.parametrize("version", [None, 0, 1, "2"])
@pytest.mark.parametrize("command", READS)
def test_other_format(folder: Path, manifest: Json, command: str, version: object) -> None:
    """A snapshot of another format, or of the time before formats had versions, is one clear error in each command."""
    manifest.pop("format")
    if version is not None:
        manifest["format"] = version
    (directory_of(folder / "out") / "manifest.json").write_text(json.dumps(manifest))
    found = "no format version" if version is None else f"format version {version!r}"
    error = run(command, folder)
    assert error is not None
    assert f"manifest.json has {found}, and this audioclip-beam reads format version 6 alone" in error


def test_missing_snapshots_have_one_message(folder: Path, tmp_path: Path) -> None:
    """Every command says the same of a missing current snapshot, and of a snapshot that does not exist."""
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    (directory_of(out) / "manifest.json").unlink()
    name = directory_of(out).name
    (tmp_path / "query.npy").write_bytes((folder / "query.npy").read_bytes())
    for command in ("search", "validate", "report"):
        assert f"{out} has no finished snapshot '{name}': audioclip log {out} lists" in str(run(command, tmp_path))
    with redirect_stderr(io.StringIO()) as errors, redirect_stdout(errors):
        assert main(["rollback", str(out), "20200101T000000Z-00000000"]) == 1
        assert main(["validate", str(out), "--snapshot", "../snapshots"]) == 1
    assert f"{out} has no finished snapshot '20200101T000000Z-00000000': audioclip log" in errors.getvalue()
    assert f"{out} has no finished snapshot '../snapshots': audioclip log" in errors.getvalue()
    (out / "current.json").unlink()
    for command in ("search", "validate", "report", "log", "rollback", "gc"):
        assert f"{out} has no current snapshot (no current.json): check the path" in str(run(command, tmp_path))


def test_edited_pointer_to_a_renamed_directory(folder: Path, tmp_path: Path) -> None:
    """A snapshot whose directory was renamed is not read under the new name."""
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    edit_manifest(out, lambda manifest: manifest.update(snapshot="another"))
    error = run("log", tmp_path)
    assert error is not None
    assert "is the manifest of 'another', not of" in error


def _remove_a_part(directory: Path) -> None:
    next(directory.glob("part-*")).unlink()


def _shorten_a_part(directory: Path) -> None:
    os.truncate(next(directory.glob("part-*")), 100)


def _remove_the_shards(directory: Path) -> None:
    next(directory.glob("_shards-*.parquet")).unlink()


def _remove_a_key(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["dim"]
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_remove_a_part, "lacks 1 of its files, or they have another size, among them part-"),
        (_shorten_a_part, "lacks 1 of its files, or they have another size, among them part-"),
        (_remove_the_shards, ".parquet is missing: restore it from a backup"),
        (_remove_a_key, "manifest.json is not a valid manifest: dim is missing"),
    ],
)
def test_rollback_refuses_a_snapshot_that_cannot_be_used(
    folder: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    """The good one stays the current one, whether the other one is named or not."""
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    pointer = (out / "current.json").read_bytes()
    earlier = min((out / "snapshots").iterdir())
    harm(earlier)
    for name in (None, earlier.name):
        with pytest.raises(SnapshotError, match=re.escape(message)):
            rollback(str(out), name)
    assert (out / "current.json").read_bytes() == pointer


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "not JSON": lambda data: data[:1000],
    "not a JSON object": lambda data: b"[]",
    "the canary cannot be decoded": lambda data: data.replace(b'"vectors": "', b'"vectors": "?', 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_current_manifest_is_damaged(
    folder: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The snapshot before is made the current one by its name, and the next run continues from there."""
    out = Path(shutil.copytree(folder / "out", tmp_path / "out"))
    shutil.copy(folder / "a.jsonl", tmp_path)
    before, current = sorted(path.name for path in (out / "snapshots").iterdir())
    path = out / "snapshots" / current / "manifest.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    error = run("embed", tmp_path)
    assert error is not None
    assert re.search(rf"{damage}.*: restore it from a backup, or make another snapshot the current one", error)
    if "canary" not in damage:
        with pytest.raises(SnapshotError, match=f"name one: audioclip rollback {out} NAME, of {before}"):
            rollback(str(out))
    rollback(str(out), before)
    assert len(log(str(out))) == (2 if "canary" in damage else 1)
    assert (f"{current} is not listed: {path} is {damage}" in caplog.text) == ("canary" not in damage)
    manifest, embedded = embed(tmp_path / "a.jsonl", out, id_field="id")
    assert embedded == ["bird"]
    (note,) = [note for note in manifest["notes"] if "not reused" in note]
    assert note.startswith(f"finished files of {current} are not reused: {path} is ")


def test_a_damaged_manifest_of_an_earlier_snapshot(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out of the log, and the others can be used."""
    out = Path(shutil.copytree(folder / "out", tmp_path / "out"))
    names = sorted(path.name for path in (out / "snapshots").iterdir())
    third = embed(write_jsonl(tmp_path / "b.jsonl", [{"id": "1", "text": "cat"}]), out, id_field="id")[0]["snapshot"]
    path = out / "snapshots" / names[0] / "manifest.json"
    path.write_bytes(b"")
    assert [entry.snapshot for entry in log(str(out))] == [names[1], third]
    assert f"{names[0]} is not listed: {path} is not JSON" in caplog.text
    with pytest.raises(SnapshotError, match="is not JSON"):
        rollback(str(out), names[0])
    assert rollback(str(out)) == str(out / "snapshots" / names[1])
    embed(tmp_path / "b.jsonl", out, StubHead(weights="other"), id_field="id")
    (out / "snapshots" / third / "manifest.json").write_bytes(b"")
    manifest, embedded = embed(folder / "a.jsonl", out, id_field="id")
    assert embedded == []
    assert f"vectors of {names[1]}, made with this fingerprint, are reused" in manifest["notes"]
    assert any(note.startswith(f"vectors of {third} are not reused: ") for note in manifest["notes"])


def test_the_current_snapshot_is_gone(folder: Path, tmp_path: Path) -> None:
    """A run could not publish, so it fails before it embeds anything; gc does not count what is left."""
    out = Path(shutil.copytree(folder / "out", tmp_path / "out"))
    name = directory_of(out).name
    (directory_of(out) / "manifest.json").unlink()
    for command in (lambda: embed(folder / "a.jsonl", out, id_field="id"), lambda: gc(str(out), 1)):
        with pytest.raises(SnapshotError, match=f"has no finished snapshot '{name}'"):
            command()
    assert len(list((out / "snapshots").iterdir())) == 2


def test_the_canary_of_a_run_costs_one_read_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the listing of its directory is not read, except for a run that has published since then."""
    name, reads = "20260101T000000Z-00000000", list[str]()
    directory = tmp_path / "snapshots" / name
    canary: dict[str, object] = {"contents": ["dog"], "vectors": "AAAAAA=="}

    def spy(path: str, *remedy: str) -> Json | None:
        reads.append(os.path.basename(path))
        return read_json(path, *remedy)

    monkeypatch.setattr(run_directory, "read_json", spy)
    directory.mkdir(parents=True)
    assert read_canary(str(tmp_path), name, {"part-1.parquet"}) is None
    assert reads == []
    (directory / "_canary.json").write_text(json.dumps(canary))
    assert read_canary(str(tmp_path), name, {"_canary.json"}) == canary
    assert reads == ["_canary.json"]
    (directory / "_canary.json").unlink()
    assert read_canary(str(tmp_path), name, {"_canary.json"}) is None
    manifest = {"format": FORMAT, "snapshot": name, "dim": 1, "canary": canary}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert read_canary(str(tmp_path), name, {"_canary.json"}) == canary
    reads.clear()
    assert read_canary(str(tmp_path), name, {"_canary.json", "manifest.json"}) == canary
    assert reads == ["manifest.json"]
