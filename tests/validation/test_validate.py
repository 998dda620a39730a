"""`validate`: a sound snapshot passes, and every kind of damage is found, named, and told to a scheduler."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audioclip_text.pipeline.cli import main
from audioclip_text.pipeline.schemas import vector_type
from audioclip_text.pipeline.snapshots.manifest import Manifest
from audioclip_text.pipeline.validation.result import ValidationResult
from audioclip_text.pipeline.validation.validate_snapshot import validate
from tests.support.corpus import ENCODERS, StubHandler, embed, write_jsonl
from tests.support.snapshots import batch_of, directory_of, edit_manifest, random_batches, rewrite, write_snapshot


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot by the stub model: 40 rows embedded, some of them long, and two kinds of rejected rows."""
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
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def failed(verdict: ValidationResult) -> dict[str, list[str]]:
    return {check.name: check.examples for check in verdict.checks if check.status == "FAILED"}


def part(output: Path) -> Path:
    """The first part file."""
    return min(directory_of(output).glob("part-*.parquet"))


def test_a_sound_snapshot(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check is told, exit status 0; the canary is not checked where the checkpoint is not at hand."""
    assert main(["validate", str(made)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "sound"
    said = {line.split()[0]: line for line in lines}
    assert "40 rows" in said["readable"]
    assert "4 rows truncated" in said["tokens"]
    assert "not checked" in said["canary"]
    assert "embedded with the checkpoint stub, which is needed here" in said["canary"]
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


def test_json_and_an_earlier_snapshot(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json holds the same verdict; --snapshot names another than the current one."""
    name = directory_of(output).name
    embed(write_jsonl(tmp_path / "b.jsonl", [{"text": "dog"}]), output, max_shrink=0.0)
    part(output).unlink()
    assert main(["validate", str(output), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["sound"] is False
    (files,) = (check for check in verdict["checks"] if check["status"] == "FAILED")
    assert files["check"] == "files"
    assert files["faults"] == 1
    assert files["examples"][0].endswith("is missing")
    assert main(["validate", str(output), "--snapshot", name, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["sound"] is True
    assert verdict["snapshot"].endswith(name)


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
        (swap, "bytes, and must have"),
        (lambda output: part(output).unlink(), "is missing"),
        (lambda output: part(output).write_bytes(part(output).read_bytes()[:-1]), "bytes, and must have"),
        (lambda output: rewrite(output, lambda table: table.slice(1), sign=False), "bytes, and must have"),
        (reject_nothing, "has 0 bytes, and must have"),
        (
            lambda output: shutil.copy(part(output), part(output).with_name("part-0.parquet")),
            "part-0.parquet is not in the manifest: whoever reads part-*.parquet",
        ),
    ],
    ids=["bit flip", "files swapped", "file lost", "file cut", "row lost", "rejected file emptied", "extra part file"],
)
def test_damaged_files(output: Path, damage: Callable[[Path], object], found: str) -> None:
    """What is not the file that was written is named; its rows are not looked at, and nothing is said of totals."""
    damage(output)
    verdict = validate(str(output))
    assert set(failed(verdict)) == {"files"}
    assert any(found in fault for fault in failed(verdict)["files"])


def test_other_files_are_named_and_harmless(output: Path) -> None:
    """What nobody takes for rows is no damage, and is told of."""
    (directory_of(output) / "notes.txt").write_text("mine")
    (directory_of(output) / ".part-1.parquet.tmp").write_text("left over")
    verdict = validate(str(output))
    assert verdict.sound
    (files,) = (check for check in verdict.checks if check.name == "files")
    assert "also there, and no part of the snapshot: .part-1.parquet.tmp, notes.txt" in files.summary


def test_a_bundle_that_ran_twice_leaves_no_rows_twice(tmp_path: Path) -> None:
    """A finished file of an attempt that failed is gone once the snapshot is published: globs read no row twice."""
    handler = StubHandler(name="twice")
    encoder = handler.load_model()

    class Leaving:
        """Leaves a file behind, as a worker does that is killed after it has finished one."""

        def __getattr__(self, name: str) -> object:
            if name == "encode_rows":
                for directory in (tmp_path / "out" / "snapshots").iterdir():
                    (directory / "part-0123.parquet").write_bytes(b"PAR1")
            return getattr(encoder, name)

    ENCODERS["twice/8"] = Leaving()  # type: ignore[assignment]
    embed(write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}]), tmp_path / "out", handler)
    assert len(list(directory_of(tmp_path / "out").glob("part-*"))) == 1
    assert validate(str(tmp_path / "out")).sound


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
        (first_value("text", "another text"), "hashes", "has not the hash of its text"),
        (first_value("n_tokens", 1), "tokens", "has fewer tokens than start and end"),
        (lambda table: put(table, "truncated", pc.invert(table["truncated"])), "tokens", "is marked truncated, and one of"),
        (lambda table: table.drop_columns(["n_tokens"]), "schema", "has columns id string"),
        (lambda table: table.drop_columns(["lang"]), "schema", "keeps other fields than the files before it"),
        (lambda table: table.replace_schema_metadata({}), "schema", "fingerprint is ''"),
        (
            lambda table: table.replace_schema_metadata({**table.schema.metadata, b"weights": b"trained"}),
            "schema",
            "weights is 'trained', and must be 'untrained'",
        ),
        (lambda table: table.slice(1), "manifest", "the sum of rows in part files is 39"),
    ],
    ids=[
        "NaN", "infinity", "zeros", "duplicate ids", "text changed", "no tokens", "truncation turned",
        "column lost", "kept field lost", "no provenance", "other provenance", "row lost",
    ],
)  # fmt: skip
def test_wrong_rows(output: Path, change: Callable[[pa.Table], pa.Table], check: str, found: str) -> None:
    """Rows that were wrong before the file was signed are found in the file itself."""
    rewrite(output, change)
    faults = failed(validate(str(output)))
    assert any(found in fault for fault in faults[check])


def set_in(*path: str | int, to: object) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        place: object = manifest
        for key in path[:-1]:
            place = place[key]  # type: ignore[index]
        place[path[-1]] = to  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        (set_in("counts", "read", to=44), "manifest", "counts: read is 44, and must be 43"),
        (set_in("counts", "rejected_by_reason", to={"empty text": 3}), "counts", "rejected rows by reason is"),
        (
            set_in("counts", "rejected_by_reason", to={"empty text": 1}),
            "manifest",
            "the sum of counts: rejected_by_reason is 1",
        ),
        (set_in("counts", "truncated", to=0), "counts", "rows truncated is 4, and must be 0"),
        (set_in("counts", "read", to=None), "manifest", "counts: read is None, and must be int"),
        (set_in("files", 0, "rows", to=1), "manifest", "and must be"),
        (set_in("files", 0, "sha256", to="0" * 64), "files", "and must have 0000000000000000..."),
        (set_in("files", 0, "name", to="../../x.parquet"), "pointer", "that is no plain name"),
        (set_in("files", 0, "row_groups", 0, "ranges", to=[[0, 1]]), "hashes", "other ranges than in the manifest"),
        (set_in("files", 0, "row_groups", to=[]), "schema", "row groups is 1, and must be 0"),
        (set_in("files", 0, to="part-1.parquet"), "pointer", "that is no plain name"),
        (lambda manifest: manifest["files"].append(manifest["files"][0]), "manifest", "is named 2 times"),
        (set_in("files", to={}), "manifest", "files is {}, and must be list"),
        (set_in("fingerprint", to="0" * 64), "manifest", "fingerprint is '0000"),
        (set_in("fingerprint_parts", "prompt", to="a {}"), "manifest", "fingerprint is"),
        (
            set_in("fingerprint_parts", to={}),
            "manifest",
            "fingerprint_parts has no prompt, on_long, normalize, dtype, stored",
        ),
        (set_in("dim", to=1024), "schema", "has columns"),
        (set_in("dim", to=-1), "manifest", "dim is -1, and must be a number from 1"),
        (set_in("weights", to="trained"), "schema", "weights is 'untrained', and must be 'trained'"),
        (set_in("checkpoint", "sha256", to="1"), "schema", "checkpoint_sha256 is '0000"),
        (set_in("snapshot", to="another"), "pointer", "is the manifest of 'another'"),
        (set_in("canary", "vectors", to="AAAA"), "canary", "the manifest's canary cannot be read"),
        (set_in("canary", to={}), "manifest", "canary: texts is missing"),
    ],
)
def test_an_edited_manifest(output: Path, change: Callable[[Manifest], None], check: str, found: str) -> None:
    """What a manifest says is held against itself and against the files."""
    edit_manifest(output, change)
    faults = failed(validate(str(output)))
    assert any(found in fault for fault in faults[check]), faults


@pytest.mark.parametrize("value", [None, 7, "x", [], {}, True, -1, 1e300])
def test_a_manifest_of_anything_is_no_crash(made: Path, tmp_path: Path, value: object) -> None:
    """Each field of a manifest replaced by something else: a verdict, whatever it is."""
    original = json.loads((directory_of(made) / "manifest.json").read_text())
    output = Path(shutil.copytree(made, tmp_path / "out"))
    for key in original:
        edit_manifest(output, lambda manifest: (manifest.clear(), manifest.update({**original, key: value})))  # type: ignore[attr-defined, arg-type, typeddict-item]  # noqa: B023
        validate(str(output)).as_lines()
    for key in original["files"][0]:
        files = [{**original["files"][0], key: value}, *original["files"][1:]]
        edit_manifest(output, lambda manifest: manifest.update({**original, "files": files}))  # type: ignore[arg-type]  # noqa: B023
        validate(str(output)).as_lines()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"snapshot": "20200101T000000Z-00000000"}', "names 20200101T000000Z-00000000, and there is no manifest"),
        ("{}", "names no snapshot"),
        ("[", "is not JSON"),
        (None, "has no current.json"),
    ],
    ids=["pointer to nothing", "pointer without a name", "pointer that is no JSON", "no pointer"],
)
def test_a_pointer_to_nothing(
    output: Path, content: str | None, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first thing that is wrong is told, with status 1."""
    (output / "current.json").unlink() if content is None else (output / "current.json").write_text(content)
    assert main(["validate", str(output)]) == 1
    said = capsys.readouterr().out
    assert found in said
    assert said.splitlines()[-1] == "NOT SOUND: pointer"


def test_what_files_say_is_escaped(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids and file names reach the terminal as visible characters, in JSON as ASCII."""
    rewrite(output, lambda table: put(table, "id", pa.array(["\x1b[2J\u202e"] * len(table))))
    (directory_of(output) / "\x1b[31m.txt").touch()
    for form in ([], ["--json"]):
        main(["validate", str(output), *form])
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert "\u202e" not in said


def test_normalized_vectors_are_of_length_one(tmp_path: Path) -> None:
    """With --normalize a length of 1.01 is a fault; rounding to half precision is none."""
    for stored, factor, sound in (("float32", 1.0, True), ("float16", 1.0, True), ("float16", 1.01, False)):
        out = tmp_path / f"{stored}{factor}"
        vectors = np.random.default_rng(3).standard_normal((64, 32))
        vectors *= factor / np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [str(n) for n in range(64)]
        write_snapshot(out, [batch_of(ids, ids, vectors.astype(stored))], 32, stored=stored, normalize="true")
        assert ("vectors" not in failed(validate(str(out)))) == sound


def test_ids_may_repeat_unless_unique_ids_forbids_it(tmp_path: Path) -> None:
    """Without --unique_ids a corpus may repeat the ids of its own field; with it a repeated id is a fault."""
    shard = write_jsonl(tmp_path / "a.jsonl", [{"id": n // 2, "text": f"t{n}"} for n in range(6)])
    embed(shard, tmp_path / "out", id_field="id")
    verdict = validate(str(tmp_path / "out"))
    assert verdict.sound
    assert any(
        check.summary == "3 occur more than once, which the run did not forbid (--unique_ids)"
        for check in verdict.checks
    )
    edit_manifest(tmp_path / "out", set_in("options", "unique_ids", to=True))
    assert list(failed(validate(str(tmp_path / "out")))) == ["ids"]


def test_the_canary_is_embedded_again(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], safetensors_file: Path
) -> None:
    """With the checkpoint at hand the fixed texts must still come out as they did; a wrong one given is refused."""
    (tmp_path / "a.txt").write_text("dog\n")
    command = ["embed", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out")]
    assert main([*command, "--checkpoint", "untrained", "--tokenizer_path", str(vocabulary)]) == 0
    capsys.readouterr()
    verdict = validate(str(tmp_path / "out"), checkpoint=str(safetensors_file))
    assert verdict.sound
    assert verdict.checks[-1].summary == "16 fixed texts embedded again, with the vectors in the manifest"

    def turn(manifest: Manifest) -> None:
        vectors = np.frombuffer(base64.b64decode(manifest["canary"]["vectors"]), "<f4").copy()
        vectors[:1024] *= -1
        manifest["canary"]["vectors"] = base64.b64encode(vectors.tobytes()).decode()

    edit_manifest(tmp_path / "out", turn)
    assert list(failed(validate(str(tmp_path / "out")))) == ["canary"]
    assert main(["validate", str(tmp_path / "out"), "--checkpoint", "gone.pt"]) == 2
    assert "no checkpoint at gone.pt" in capsys.readouterr().err


def test_rows_are_looked_at_in_batches(tmp_path: Path) -> None:
    """20,000 rows of 256 numbers, 20 MB, cost Arrow a batch at a time, and every row is counted."""
    write_snapshot(tmp_path / "out", random_batches(20_000, 256), 256, max_rows=6000)
    before = pa.default_memory_pool().max_memory()
    verdict = validate(str(tmp_path / "out"))
    assert verdict.sound
    assert verdict.checks[3].summary == "20,000 rows"
    assert pa.default_memory_pool().max_memory() - before < 16 << 20


def test_a_file_that_arrow_cannot_read(output: Path) -> None:
    """A file whose digest is right and whose content is not Parquet is named."""
    path = part(output)
    edit_manifest(
        output, lambda manifest: manifest["files"][0].update(bytes=4, sha256=hashlib.sha256(b"PAR1").hexdigest())
    )  # type: ignore[typeddict-item]
    path.write_bytes(b"PAR1")
    assert "readable" in failed(validate(str(output)))


def test_a_page_that_is_damaged_before_it_was_signed(output: Path) -> None:
    """Page checksums are held too."""
    path = part(output)
    metadata = pq.ParquetFile(path).metadata.row_group(0).column(5)
    data = bytearray(path.read_bytes())
    data[metadata.data_page_offset + metadata.total_compressed_size - 8] ^= 0xFF
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_manifest(output, lambda manifest: manifest["files"][0].update(sha256=digest))  # type: ignore[typeddict-item]
    assert "readable" in failed(validate(str(output)))
