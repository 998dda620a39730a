"""`validate`: a valid snapshot passes, and every kind of damage is found and named, with exit status 1."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audioclip_beam.model.fingerprint import fingerprint
from audioclip_beam.model.text.head import CANARY_TEXTS
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.schemas import vector_type
from audioclip_beam.pipeline.snapshots.listing import write_shard_list
from audioclip_beam.pipeline.snapshots.manifest import Manifest, Provenance
from audioclip_beam.pipeline.validation.checks import ValidationResult
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support.corpus import ENCODERS, StubHead, embed, read, write_jsonl
from tests.support.snapshots import (
    batch_of,
    directory_of,
    edit_files,
    edit_manifest,
    files_of,
    random_batches,
    rewrite,
    write_snapshot,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot by the stub model: 40 embedded rows, some of them long, and rows rejected for two reasons."""
    folder = tmp_path_factory.mktemp("validate")
    rows = [
        {"id": f"r{n}", "text": f"caption number {n}" + " again" * (100 * (n % 10 == 0)), "lang": "en"}
        for n in range(40)
    ]
    rows += [{"id": "e", "text": ""}, {"id": "p", "text": "poison"}, {"id": "q", "text": "more poison"}]
    shard = write_jsonl(folder / "a.jsonl", rows)
    embed(shard, folder / "out", id_field="id", unique_ids=True, keep_fields=["lang"], max_file_rows=16)
    return folder / "out"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def failed(result: ValidationResult) -> dict[str, list[str]]:
    return {check.name: check.examples for check in result.checks if check.status == "FAILED"}


def part(output: Path) -> Path:
    """The first part file."""
    return min(directory_of(output).glob("part-*.parquet"))


def sign(output: Path, path: Path) -> None:
    """Let the list of files describe the bytes of a changed file."""
    data = path.read_bytes()
    described = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_files(output, lambda files: [replace(file, **described) if file.name == path.name else file for file in files])


def test_valid_snapshot(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check is printed, with exit status 0; the canary is not checked if the checkpoint is not available."""
    assert main(["validate", str(made)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "valid"
    by_check = {line.split()[0]: line for line in lines}
    assert "40 rows" in by_check["readable"]
    assert "4 rows truncated" in by_check["tokens"]
    assert "not checked" in by_check["canary"]
    assert "embedded with the checkpoint stub, and its model cannot be read" in by_check["canary"]
    names = [
        "pointer",
        "manifest",
        "files",
        "readable",
        "schema",
        "ids",
        "vectors",
        "hashes",
        "tokens",
        "counts",
        "canary",
    ]
    assert [line.split()[0] for line in lines[1:-1]] == names


def test_json_and_snapshot_flag(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the same result; --snapshot names a snapshot other than the current one."""
    name = directory_of(output).name
    embed(write_jsonl(tmp_path / "b.jsonl", [{"text": "dog"}]), output, max_shrink=0.0)
    part(output).unlink()
    assert main(["validate", str(output), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["valid"] is False
    (files,) = (check for check in result["checks"] if check["status"] == "FAILED")
    assert files["check"] == "files"
    assert files["faults"] == 1
    assert files["examples"][0].endswith("is missing")
    assert main(["validate", str(output), "--snapshot", name, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["valid"] is True
    assert result["snapshot"].endswith(name)


def flip(output: Path) -> None:
    data = bytearray(part(output).read_bytes())
    data[len(data) // 2] ^= 1
    part(output).write_bytes(data)


def swap(output: Path) -> None:
    first, second, *_ = sorted(directory_of(output).glob("part-*.parquet"))
    aside = first.with_suffix(".aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def reject_nothing(output: Path) -> None:
    next(directory_of(output).glob("rejected-*")).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (flip, "has sha256"),
        (swap, "bytes, expected"),
        (lambda output: part(output).unlink(), "is missing"),
        (lambda output: part(output).write_bytes(part(output).read_bytes()[:-1]), "bytes, expected"),
        (lambda output: rewrite(output, lambda table: table.slice(1), sign=False), "bytes, expected"),
        (reject_nothing, "has 0 bytes, expected"),
        (
            lambda output: shutil.copy(part(output), part(output).with_name("part-0.parquet")),
            "part-0.parquet is not in the list of files, and readers of part-*.parquet would read",
        ),
    ],
    ids=["bit flip", "files swapped", "file lost", "file cut", "row lost", "rejected file emptied", "extra part file"],
)
def test_damaged_files(output: Path, damage: Callable[[Path], object], found: str) -> None:
    """A file that is not the one that was written is named; its rows are not checked, and totals are not compared."""
    damage(output)
    result = validate(str(output))
    assert set(failed(result)) == {"files"}
    assert any(found in fault for fault in failed(result)["files"])


def test_other_files_are_no_fault(output: Path) -> None:
    """Files that readers do not take for rows are listed, and the snapshot is valid."""
    (directory_of(output) / "notes.txt").write_text("mine")
    (directory_of(output) / ".part-1.parquet.tmp").write_text("left over")
    result = validate(str(output))
    assert result.valid
    (files,) = (check for check in result.checks if check.name == "files")
    assert "the directory also contains .part-1.parquet.tmp, notes.txt" in files.summary


def test_bundle_that_ran_twice_leaves_no_duplicate_rows(tmp_path: Path) -> None:
    """The finished file of a failed attempt is removed before publishing, so a glob reads no row twice."""
    head = StubHead(weights="twice")
    encoder = head.encoder()

    class LeavingEncoder:
        """An encoder that leaves a file, as a worker does that is killed after it has finished one."""

        def __getattr__(self, name: str) -> object:
            if name == "encode_rows":
                for directory in (tmp_path / "out" / "snapshots").iterdir():
                    (directory / "part-0123.parquet").write_bytes(b"PAR1")
            return getattr(encoder, name)

    ENCODERS["twice/8"] = LeavingEncoder()  # type: ignore[assignment]
    embed(write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}]), tmp_path / "out", head)
    assert len(list(directory_of(tmp_path / "out").glob("part-*"))) == 1
    assert validate(str(tmp_path / "out")).valid


def put(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def with_vector(numbers: list[float]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return put(table, "embedding", pa.array([numbers, *table["embedding"].to_pylist()[1:]], vector_type(8)))

    return change


def first_value(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return put(table, name, pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type))

    return change


@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        (with_vector([0.0] * 7 + [np.nan]), "vectors", "has a vector with NaN or infinity"),
        (with_vector([np.inf] * 8), "vectors", "has a vector with NaN or infinity"),
        (with_vector([0.0] * 8), "vectors", "has a vector of zeros"),
        (lambda table: put(table, "id", pa.array(["twice"] * len(table))), "ids", "'twice' occurs more than once"),
        (first_value("text", "another text"), "hashes", "has another hash than that of its text"),
        (first_value("n_tokens", 1), "tokens", "has fewer than two tokens, the start and the end"),
        (lambda table: put(table, "truncated", pc.invert(table["truncated"])), "tokens", "is marked truncated, but one of"),
        (lambda table: table.drop_columns(["n_tokens"]), "schema", "has columns id string"),
        (lambda table: table.drop_columns(["lang"]), "schema", "has other kept fields than the first file"),
        (lambda table: table.replace_schema_metadata({}), "schema", "fingerprint is ''"),
        (
            lambda table: table.replace_schema_metadata({**table.schema.metadata, b"weights": b"trained"}),
            "schema",
            "weights is 'trained', expected 'untrained'",
        ),
        (
            lambda table: table.replace_schema_metadata({**table.schema.metadata, b"snapshot": b"another"}),
            "schema",
            "snapshot is 'another', expected '2",
        ),
        (lambda table: table.slice(1), "manifest", "the number of rows in part files of segment 0 is 39"),
    ],
    ids=[
        "NaN", "infinity", "zeros", "duplicate ids", "text changed", "no tokens", "truncation turned",
        "column lost", "kept field lost", "no provenance", "other provenance", "another run", "row lost",
    ],
)  # fmt: skip
def test_wrong_rows_in_files_with_a_right_digest(
    output: Path, change: Callable[[pa.Table], pa.Table], check: str, found: str
) -> None:
    """Rows that were wrong before the manifest was written are found by reading them."""
    rewrite(output, change)
    faults = failed(validate(str(output)))
    assert any(found in fault for fault in faults[check])


@pytest.mark.parametrize("kind", ["part", "rejected"])
def test_file_with_fewer_rows_than_its_entry(output: Path, kind: str) -> None:
    """Its number of rows is compared with the list of files."""
    rewrite(output, lambda table: table.slice(1), count=False, kind=kind)
    (fault,) = failed(validate(str(output)))["schema"]
    assert fault.startswith(kind)
    assert ": rows is " in fault


def test_unknown_reason(output: Path) -> None:
    """A rejected row has one of the documented reasons, even if file and manifest agree."""
    rewrite(output, first_value("reason", "bad luck"), kind="rejected")
    reasons = Counter(read(output, "rejected")["reason"].to_pylist())
    edit_manifest(output, edit_rows("rejected_by_reason", reasons))
    edit_manifest(output, set_in("counts", "rejected_by_reason", to=reasons))
    assert failed(validate(str(output))) == {"counts": ["'bad luck' is not a reason for rejecting a row"]}


def test_statistics_of_hashes(output: Path) -> None:
    """Runs choose row groups by them: they are those of the rows."""
    path = part(output)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    lowest = min(pq.read_table(path)["content_hash"].to_pylist())
    assert lowest in data[footer:]
    path.write_bytes(data[:footer] + data[footer:].replace(lowest, bytes(16)))
    sign(output, path)
    (fault,) = failed(validate(str(output)))["hashes"]
    assert "other hashes than its statistics say" in fault


def set_in(*path: str | int, to: object) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        place: object = manifest
        for key in path[:-1]:
            place = place[key]  # type: ignore[index]
        place[path[-1]] = to  # type: ignore[index]

    return change


def edit_rows(name: str, to: object) -> Callable[[Manifest], None]:
    """Change the totals and the only segment alike."""

    def change(manifest: Manifest) -> None:
        set_in("totals", name, to=to)(manifest)
        set_in("segments", 0, "rows", name, to=to)(manifest)

    return change


def reject_long_texts(manifest: Manifest) -> None:
    """Let the manifest be that of a run with --on_long reject."""
    manifest["fingerprint_parts"]["on_long"] = "reject"
    manifest["fingerprint"] = fingerprint(manifest["fingerprint_parts"])


NAN_CANARY = base64.b64encode(np.full(len(CANARY_TEXTS) * 8, np.nan, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        (set_in("counts", "read", to=44), "manifest", "counts.read is 44, expected 43"),
        (edit_rows("rejected_by_reason", {"empty text": 3}), "counts", "rejected rows by reason is"),
        (
            set_in("counts", "rejected_by_reason", to={"empty text": 1}),
            "manifest",
            "the sum of counts.rejected_by_reason is 1",
        ),
        (edit_rows("read", 44), "manifest", "totals.read is 44, expected 43"),
        (edit_rows("truncated", 0), "counts", "the number of truncated rows is 4, expected 0"),
        (set_in("totals", "truncated", to=0), "manifest", "totals is {"),
        (set_in("counts", "read", to=None), "manifest", "counts.read is None, expected an integer"),
        (set_in("files", "sha256", to="0" * 64), "manifest", "is not the list that the manifest describes"),
        (set_in("files", "entries", to=1), "manifest", "files.entries is 1, expected"),
        (set_in("files", "name", to="part-1.parquet"), "manifest", "part-1.parquet is missing"),
        (set_in("files", to=[]), "manifest", "files is [], expected an object"),
        (set_in("shards", "sha256", to="0" * 64), "files", ".parquet is not as the manifest says"),
        (set_in("shards", "name", to="_none.parquet"), "files", "_none.parquet is missing"),
        (set_in("shards", "entries", to=7), "files", ".parquet has 1 shard, expected 7"),
        (set_in("segments", 0, "shards", to=2), "files", "has shards by segment {0: 1}, expected {0: 2}"),
        (set_in("sizes", to={"2t": 1}), "manifest", "sizes has the key '2t'"),
        (set_in("norm_bins", to={"12345678": 1}), "manifest", "norm_bins has the key '1234"),
        (set_in("fingerprint", to="0" * 64), "manifest", "fingerprint is '0000"),
        (set_in("fingerprint_parts", "prompt", to="a {}"), "manifest", "fingerprint is"),
        (
            set_in("fingerprint_parts", "prompt", to="{} {}"),
            "manifest",
            "fingerprint_parts.prompt is '{} {}', and it must contain {} once",
        ),
        (
            set_in("fingerprint_parts", to={}),
            "manifest",
            "fingerprint_parts has no prompt, on_long, head, normalize, dtype, stored",
        ),
        (reject_long_texts, "tokens", "4 rows are truncated, expected none with --on_long reject"),
        (set_in("dim", to=1024), "schema", "has columns"),
        (set_in("dim", to=-1), "manifest", "dim is -1, expected 1 to"),
        (set_in("weights", to="trained"), "schema", "weights is 'untrained', expected 'trained'"),
        (set_in("checkpoint", "sha256", to="1"), "manifest", "is of the checkpoint '0000"),
        (set_in("snapshot", to="another"), "pointer", "is the manifest of 'another'"),
        (set_in("canary", "vectors", to="AAAA"), "canary", "the canary in the manifest cannot be decoded"),
        (set_in("canary", "vectors", to=NAN_CANARY), "canary", "the canary in the manifest contains NaN or infinity"),
        (set_in("canary", to={}), "manifest", "canary.contents is missing"),
    ],
)
def test_edited_manifest(output: Path, change: Callable[[Manifest], None], check: str, found: str) -> None:
    """A manifest is checked for consistency and against the files."""
    edit_manifest(output, change)
    faults = failed(validate(str(output)))
    assert any(found in fault for fault in faults[check]), faults


@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        ({"rows": 1}, "manifest", "the number of rows in part files of segment 0 is"),
        ({"name": "rejected-1.parquet"}, "manifest", "the number of rows in rejected files of segment 0 is"),
        ({"segment": 1}, "manifest", "is of segment 1, of 1"),
        ({"sha256": "0" * 64}, "files", "expected 0000000000000000..."),
        ({"name": "../../x.parquet"}, "manifest", "is not a plain name"),
        ({"name": "x.parquet"}, "manifest", "is not the name of a part file"),
        ({"lowest_hash": "00"}, "hashes", "the lowest hash is"),
    ],
)
def test_edited_list_of_files(output: Path, change: dict[str, object], check: str, found: str) -> None:
    """So is the list of files."""
    edit_files(output, lambda files: [replace(files[0], **change), *files[1:]])  # type: ignore[arg-type]
    faults = failed(validate(str(output)))
    assert any(found in fault for fault in faults[check]), faults


def test_list_of_shards_that_is_none(output: Path) -> None:
    """A list whose digest is right, and that the next run could not read."""
    (path,) = directory_of(output).glob("_shards-*.parquet")
    path.write_bytes(b"PAR1")
    digest = hashlib.sha256(b"PAR1").hexdigest()
    edit_manifest(output, lambda manifest: manifest["shards"].update(sha256=digest))
    (fault,) = failed(validate(str(output)))["files"]
    assert "is not a list of files or shards" in fault


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        (1, "other.jsonl", "has rows of the shard 'a.jsonl', which is not listed in its segment"),
        (10, 7, "the shard 'a.jsonl' has 43 rows, expected 7"),
    ],
)
def test_list_of_shards_with_other_rows(output: Path, column: int, value: object, found: str) -> None:
    """Rows of a shard that is not listed, and a shard with other rows than listed."""
    directory = directory_of(output)
    manifest = json.loads((directory / "manifest.json").read_text())
    shards = pq.read_table(directory / manifest["shards"]["name"])
    other = shards.set_column(column, shards.field(column), [pa.array([value], shards.field(column).type)])
    edit_manifest(output, lambda edited: edited.update(shards=write_shard_list(str(directory), other)))
    faults = failed(validate(str(output)))["counts"]
    assert any(found in fault for fault in faults), faults


def test_damaged_list_of_files(output: Path) -> None:
    """A file that is listed twice, and a list that is not Parquet, or of other columns, or missing, are faults."""
    edit_files(output, lambda files: [*files, files[0]])
    assert any("is listed 2 times" in fault for fault in failed(validate(str(output)))["manifest"])
    (path,) = directory_of(output).glob("_files-*")
    for data, found in ((b"PAR1", "is not a list of files or shards"), (None, "is missing")):
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            edit_manifest(output, lambda manifest: manifest["files"].update(sha256=digest))  # noqa: B023
        assert any(found in fault for fault in failed(validate(str(output)))["manifest"])


@pytest.mark.parametrize("value", [None, 7, "x", [], {}, True, -1, 1e300])
def test_arbitrary_manifest_values_do_not_crash(made: Path, tmp_path: Path, value: object) -> None:
    """Each key of a manifest with another value: the command ends with a result."""
    original = json.loads((directory_of(made) / "manifest.json").read_text())
    output = Path(shutil.copytree(made, tmp_path / "out"))
    for key in original:
        edit_manifest(output, lambda manifest: (manifest.clear(), manifest.update({**original, key: value})))  # type: ignore[attr-defined, arg-type, typeddict-item]  # noqa: B023
        result = validate(str(output))
        assert result.as_lines()[-1].startswith("valid" if result.valid else "NOT VALID: "), key
    for key in original["files"]:
        files = {**original["files"], key: value}
        edit_manifest(output, lambda manifest: manifest.update({**original, "files": files}))  # type: ignore[arg-type]  # noqa: B023
        assert not validate(str(output)).valid, key


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"snapshot": "20200101T000000Z-00000000"}', "has no finished snapshot '20200101T000000Z-00000000'"),
        ("{}", "does not name a snapshot"),
        ("[", "is not JSON"),
        (None, "has no current snapshot (no current.json)"),
    ],
    ids=["pointer to nothing", "pointer without a name", "pointer that is not JSON", "no pointer"],
)
def test_pointer_to_nothing(output: Path, content: str | None, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first fault is printed, with exit status 1."""
    (output / "current.json").unlink() if content is None else (output / "current.json").write_text(content)
    assert main(["validate", str(output)]) == 1
    printed = capsys.readouterr().out
    assert found in printed
    assert printed.splitlines()[-1] == "NOT VALID: pointer"


def test_pointer_with_another_path(output: Path) -> None:
    """It may be all that another program reads of it; a snapshot that is given by its name is not looked for there."""
    name, path = directory_of(output).name, output / "current.json"
    path.write_text(json.dumps({"snapshot": name, "manifest": "snapshots/another/manifest.json"}))
    (fault,) = failed(validate(str(output)))["pointer"]
    assert fault.startswith("the manifest in current.json is 'snapshots/another/manifest.json', expected 'snapshots/")
    assert validate(str(output), name).valid


def test_control_characters_are_escaped(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids and file names are printed as visible characters, in JSON as ASCII."""
    rewrite(output, lambda table: put(table, "id", pa.array(["\x1b[2J\u202e"] * len(table))))
    (directory_of(output) / "\x1b[31m.txt").touch()
    for form, escaped in (([], r"\x1b[31m.txt"), (["--json"], r"\u001b[31m.txt")):
        main(["validate", str(output), *form])
        printed = capsys.readouterr().out
        assert escaped in printed
        assert "\x1b" not in printed
        assert "\u202e" not in printed


def test_normalized_vectors_have_length_one(tmp_path: Path) -> None:
    """With --normalize a length of 1.01 is a fault, and the rounding to half precision is not."""
    for stored, factor, valid in (("float32", 1.0, True), ("float16", 1.0, True), ("float16", 1.01, False)):
        out = tmp_path / f"{stored}{factor}"
        vectors = np.random.default_rng(3).standard_normal((64, 32))
        vectors *= factor / np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [str(n) for n in range(64)]
        write_snapshot(out, [batch_of(ids, ids, vectors.astype(stored))], 32, stored=stored, normalize="true")
        assert ("vectors" not in failed(validate(str(out)))) == valid


def test_ids_may_repeat_unless_unique_ids_forbids_it(tmp_path: Path) -> None:
    """Without --unique_ids a corpus may contain duplicate ids: with it a repeated id is a fault."""
    shard = write_jsonl(tmp_path / "a.jsonl", [{"id": n // 2, "text": f"t{n}"} for n in range(6)])
    embed(shard, tmp_path / "out", id_field="id")
    result = validate(str(tmp_path / "out"))
    assert result.valid
    summaries = {check.name: check.summary for check in result.checks}
    assert summaries["ids"] == "3 occur more than once, which the run did not forbid (--unique_ids)"
    edit_manifest(tmp_path / "out", set_in("options", "unique_ids", to=True))
    assert list(failed(validate(str(tmp_path / "out")))) == ["ids"]


def test_text_head_from_another_file(tmp_path: Path) -> None:
    """Files carried over from a run with another checkpoint file, of the same text head, are valid."""
    rows = [{"id": str(n), "text": f"caption {n}"} for n in range(20)]
    write_jsonl(tmp_path / "in/a.jsonl", rows)
    embed(tmp_path / "in/*.jsonl", tmp_path / "out", id_field="id")
    write_jsonl(tmp_path / "in/b.jsonl", [{"id": "new", "text": "new"}])
    manifest, texts = embed(tmp_path / "in/*.jsonl", tmp_path / "out", StubHead(sha256="1" * 64), id_field="id")
    made_by = {file.segment: file.made_by.checkpoint_sha256 for file in files_of(tmp_path / "out", manifest)}
    assert made_by == {0: "0" * 64, 1: "1" * 64}
    assert texts == ["new"]
    assert failed(validate(str(tmp_path / "out"))) == {}
    forged = Provenance("another", "stub", "1" * 64, "0")
    edit_files(tmp_path / "out", lambda files: [replace(file, made_by=forged) for file in files])
    assert "checkpoint_sha256 is '0000" in " ".join(failed(validate(str(tmp_path / "out")))["schema"])


@pytest.mark.slow
def test_canary_is_embedded_again(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], safetensors_file: Path
) -> None:
    """The available checkpoint must give the vectors of the canary again; a wrong --checkpoint is refused."""
    (tmp_path / "a.txt").write_text("dog\n")
    command = ["embed", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out")]
    assert main([*command, "--checkpoint", "untrained", "--tokenizer_path", str(vocabulary)]) == 0
    capsys.readouterr()
    result = validate(str(tmp_path / "out"), checkpoint=str(safetensors_file))
    assert result.valid
    assert result.checks[-1].summary == "the checkpoint gives the 16 vectors in the manifest again"

    def negate_one(manifest: Manifest) -> None:
        vectors = np.frombuffer(base64.b64decode(manifest["canary"]["vectors"]), "<f4").copy()
        vectors[:1024] *= -1
        manifest["canary"]["vectors"] = base64.b64encode(vectors.tobytes()).decode()

    edit_manifest(tmp_path / "out", negate_one)
    assert list(failed(validate(str(tmp_path / "out")))) == ["canary"]
    assert main(["validate", str(tmp_path / "out"), "--checkpoint", "gone.pt"]) == 2
    assert "no checkpoint at gone.pt" in capsys.readouterr().err


def test_rows_are_checked_in_batches(tmp_path: Path) -> None:
    """20,000 rows of 256 numbers, 20 MB, are read batch by batch, and every row is counted."""
    write_snapshot(tmp_path / "out", random_batches(20_000, 256), 256, max_rows=6000)
    before = pa.default_memory_pool().max_memory()
    result = validate(str(tmp_path / "out"))
    assert result.valid
    assert result.checks[3].summary == "20,000 rows"
    assert pa.default_memory_pool().max_memory() - before < 16 << 20


def test_file_that_is_not_parquet(output: Path) -> None:
    """A file with the right digest whose content is not Parquet is named."""
    path = part(output)
    path.write_bytes(b"PAR1")
    sign(output, path)
    assert "readable" in failed(validate(str(output)))


def test_damaged_page_in_a_file_with_a_right_digest(output: Path) -> None:
    """The checksums of pages are checked, too."""
    path = part(output)
    metadata = pq.ParquetFile(path).metadata.row_group(0).column(5)
    data = bytearray(path.read_bytes())
    data[metadata.data_page_offset + metadata.total_compressed_size - 8] ^= 0xFF
    path.write_bytes(data)
    sign(output, path)
    assert "readable" in failed(validate(str(output)))
