"""A head that has nothing of text goes through the whole pipeline: read, embed, reuse, reject, validate, report, compare."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audioclip_beam.model.fingerprint import fingerprint
from audioclip_beam.model.head import BadRow, Column
from audioclip_beam.pipeline.changes import find_changes
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.read_settings import ReadSettings
from audioclip_beam.pipeline.readers.read_shards import read_shard
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support.beats import (
    BEATS,
    BROKEN,
    CALLS,
    FATAL,
    BeatEncoder,
    BeatHead,
    BeatSettings,
    beats_registered,
    write_weights,
)
from tests.support.corpus import read, vectors, write_jsonl
from tests.support.snapshots import directory_of, rewrite

GOOD = {
    "a": b"\x01\x02\x03",
    "b": b"\x07" * 20,
    "c": b"\x01\x02\x03",  # as a
    "d": b"\x00\x09\x00\x80",  # neither UTF-8 nor without zeros
}
BAD = {"e": b"", "f": bytes([5, BROKEN]), "g": None, "h": bytes([FATAL]), "i": b"\x01" * 65}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Make `--head beats` known."""
    with beats_registered():
        yield


@dataclass(frozen=True)
class Corpus:
    """Shards of rhythms, and where they are embedded to."""

    folder: Path
    weights: str

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def write(self, rows: Mapping[str, bytes | None], name: str = "a") -> None:
        """Write a shard of these rhythms by id."""
        numbers = pa.array(range(len(rows)), pa.int16())
        columns = {"id": pa.array(rows, pa.string()), "rhythm": pa.array(rows.values(), pa.binary()), "n": numbers}
        pq.write_table(pa.table(columns), self.folder / f"{name}.parquet")

    def flags(self, command: str = "embed", *more: str) -> list[str]:
        """Return the command line that embeds the corpus, or plans that."""
        fields = ["--id_field", "id", "--keep_fields", "n", "--unique_ids"]
        model = ["--head", "beats", "--checkpoint", self.weights]
        places = ["--input", f"{self.folder}/*.parquet", "--output", str(self.output)]
        return [command, *model, *places, *fields, *more]

    def embed(self, *more: str) -> tuple[Manifest, list[bytes]]:
        """Embed the shards; return the manifest and the rhythms that went through the model, the canary's apart."""
        CALLS.clear()
        options = EmbedOptions(self.flags("embed", *more)[1:])
        corpus = EmbedCorpus(options)
        try:
            run(corpus, options)
        finally:
            corpus.close()
        manifest = read_manifest(str(self.output), str(corpus.snapshot))
        assert manifest is not None
        canary = list(BEATS.canary().values())
        assert canary in CALLS
        return manifest, sorted(rhythm for call in CALLS if call != canary for rhythm in call)

    def encoder(self, **settings: object) -> BeatEncoder:
        """Return the encoder of the runs."""
        chosen = BeatSettings(self.weights, **settings)  # type: ignore[arg-type]
        return BEATS.load(chosen, BEATS.read([self.weights]), "cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Good rows in one shard, bad ones in another."""
    made = Corpus(tmp_path, write_weights(tmp_path / "weights.npy"))
    made.write(GOOD, "a")
    made.write(BAD, "b")
    return made


def _rejected(output: Path) -> list[tuple[object, ...]]:
    rows = read(output, "rejected").to_pylist()
    return [(row["shard"], row["row"], row["id"], row["rhythm"], row["reason"]) for row in rows]


def test_rows_and_rejected_rows_have_the_columns_of_the_head(corpus: Corpus) -> None:
    """Binary contents become vectors with the model's columns, and rows that cannot be embedded keep their reason."""
    manifest, calls = corpus.embed()
    table = read(corpus.output)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("id", "string"),
        ("content_hash", "fixed_size_binary[16]"),
        ("shard", "string"),
        ("rhythm", "binary"),
        ("n_beats", "int32"),
        ("loudness", "float"),
        ("embedding", "fixed_size_list<element: float not null>[8]"),
        ("n", "int16"),
    ]
    assert dict(zip(table["id"].to_pylist(), table["rhythm"].to_pylist(), strict=True)) == GOOD
    assert set(table["shard"].to_pylist()) == {"a.parquet"}
    expected = corpus.encoder().encode_rows(table["rhythm"].to_pylist())
    np.testing.assert_array_equal(vectors(table), expected.vectors)
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(table[name].to_numpy(), values)
    assert table["n"].to_pylist() == [0, 1, 2, 3]
    assert calls == sorted({*GOOD.values(), BAD["f"]}), "each once, and not the fatal one"
    assert _rejected(corpus.output) == [
        ("b.parquet", "0", "e", None, "silence"),
        ("b.parquet", "1", "f", BAD["f"], "broken beat"),
        ("b.parquet", "2", "g", None, "wrong type"),
        ("b.parquet", "3", "h", BAD["h"], "model error"),
        ("b.parquet", "4", "i", None, "too long"),
    ]
    assert list(manifest["counts"]["rejected_by_reason"]) == [
        "silence",
        "broken beat",
        "wrong type",
        "too long",
        "model error",
    ], "in the order in which the head and the project list them"


def test_the_manifest_tells_of_the_head_in_its_unit(corpus: Corpus) -> None:
    """Head, limit, fingerprint, counts, sizes and canary are those of the head."""
    manifest, _ = corpus.embed("--accent", "first", "--normalize")
    info = corpus.encoder(accent="first", normalize=True).info.storing("float32")
    assert (manifest["head"], manifest["limit"], manifest["dim"]) == ("beats", 12, 8)
    assert manifest["fingerprint_parts"] == info.fingerprint_parts
    assert manifest["fingerprint"] == fingerprint(info.fingerprint_parts) == info.fingerprint
    assert manifest["options"]["head"] == "beats"
    assert manifest["options"]["accent"] == "first"
    assert manifest["checkpoint"] == {"name": "weights.npy", "sha256": info.sha256}
    assert manifest["weights"] == "trained"
    assert [file["path"] for file in manifest["model_files"]] == [corpus.weights]
    counts = manifest["counts"]
    assert (counts["read"], counts["embedded"], counts["reused"], counts["rejected"]) == (9, 4, 0, 5)
    assert counts["truncated"] == 0, "the head has no such column"
    assert {name: counts["model"][name] for name in ("units", "bars")} == {"units": 3 + 12 + 4, "bars": 3}
    assert manifest["sizes"] == {"3": 2, "4": 1, "16": 1}, "20 beats are in the last bar"
    canary = BEATS.canary()
    assert manifest["canary"]["contents"] == list(canary)
    part = next(directory_of(corpus.output).glob("part-*.parquet"))
    metadata = pq.read_schema(part).metadata
    assert (metadata[b"head"], metadata[b"accent"], metadata[b"normalize"]) == (b"beats", b"first", b"true")
    assert not {b"prompt", b"on_long"} & set(metadata)


def test_known_rhythms_cost_no_model_time(corpus: Corpus) -> None:
    """A second run reuses all; a changed row costs one rhythm; other settings of the head, everything."""
    corpus.embed()
    manifest, calls = corpus.embed("--force")
    assert (manifest["counts"]["reused"], manifest["counts"]["embedded"]) == (4, 0)
    assert calls == [BAD["f"]], "what cannot be embedded is tried again"
    before = read(corpus.output)
    changed = {**GOOD, "b": b"\x07" * 21, "j": GOOD["d"]}
    corpus.write(changed)
    manifest, calls = corpus.embed()
    assert calls == [b"\x07" * 21], "the other shard is not read"
    assert (manifest["counts"]["reused"], manifest["counts"]["embedded"]) == (4, 1)
    table = read(corpus.output)
    np.testing.assert_array_equal(vectors(table)[[0, 2, 3]], vectors(before)[[0, 2, 3]])
    np.testing.assert_array_equal(vectors(table)[4], vectors(before)[3])
    assert table["n_beats"].to_pylist() == [3, 21, 3, 4, 4]
    assert len(_rejected(corpus.output)) == 5
    manifest, calls = corpus.embed("--accent", "first")
    assert calls == sorted({*changed.values(), BAD["f"]})
    assert any("accent none -> first" in note for note in manifest["notes"])


def test_other_vectors_for_the_canary_end_the_run(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that computes something else under the same fingerprint is found out before anything is reused."""
    corpus.embed()
    monkeypatch.setattr(BeatEncoder, "_vector", lambda self, rhythm: np.arange(8, dtype=np.float32) + rhythm[0])
    corpus.write({**GOOD, "j": b"\x05"})
    with pytest.raises(RuntimeError, match="other canary vectors than in .* embed every rhythm again with --force"):
        corpus.embed()
    assert len(CALLS) == 1, "the canary alone"
    manifest, calls = corpus.embed("--force")
    assert calls == sorted({*GOOD.values(), b"\x05", BAD["f"]})
    assert (manifest["counts"]["reused"], len(manifest["notes"])) == (0, 2)
    assert any(note.startswith("every shard is read: ") for note in manifest["notes"])


def test_the_content_can_be_left_out(corpus: Corpus) -> None:
    """Part files have no rhythms then, and the rest is checked as before."""
    corpus.embed("--no_rhythm")
    assert "rhythm" not in read(corpus.output).column_names
    assert validate(str(corpus.output)).valid
    assert _summaries(corpus.output)["hashes"] == "the snapshot has no rhythms to compare with"


def _summaries(output: Path) -> dict[str, str]:
    return {check.name: check.summary for check in validate(str(output)).checks}


def test_validate_checks_the_head_s_columns_and_canary(corpus: Corpus) -> None:
    """A snapshot as it was written is valid; a vector, a size and a rhythm that are not are found."""
    corpus.embed("--normalize")
    result = validate(str(corpus.output))
    assert result.valid, result.as_lines()
    summaries = _summaries(corpus.output)
    assert summaries["beats"] == "30 beats in all"
    assert summaries["hashes"] == "those of the rhythms"
    assert summaries["canary"] == "the checkpoint gives the 16 vectors in the manifest again"

    def damage(table: pa.Table) -> pa.Table:
        numbers = vectors(table).copy()
        numbers[0] *= 3
        damaged = pa.FixedSizeListArray.from_arrays(
            pa.array(numbers.ravel()), type=table.schema.field("embedding").type
        )
        rhythms = pa.array([b"\x63", *table["rhythm"].to_pylist()[1:]], pa.binary())
        sizes = pa.array([*table["n_beats"].to_pylist()[:-1], 0], pa.int32())
        for name, column in (("embedding", damaged), ("rhythm", rhythms), ("n_beats", sizes)):
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(name), column)
        return table

    rewrite(corpus.output, damage)
    result = validate(str(corpus.output))
    faults = {check.name: check.examples for check in result.checks if check.faults and check.name != "hashes"}
    assert not result.valid
    assert sorted(faults) == ["beats", "counts", "vectors"]
    assert "is not of length 1" in faults["vectors"][0]
    assert "has no beat" in faults["beats"][0]
    assert "the amount of content is {'beats': 26}, expected {'beats': 30}" in faults["counts"][0]
    (hashes,) = (check for check in result.checks if check.name == "hashes")
    assert any("has another hash than that of its rhythm" in fault for fault in hashes.examples)


def test_validate_finds_another_model(corpus: Corpus) -> None:
    """The canary of the manifest is embedded again by the head's encoder."""
    corpus.embed()
    write_weights(Path(corpus.weights), seed=1)
    (canary,) = (check for check in validate(str(corpus.output)).checks if check.name == "canary")
    assert canary.status == "not checked"
    assert "gives other vectors" in canary.skipped
    assert "different: weights" in canary.skipped


@pytest.fixture
def page(corpus: Corpus) -> str:
    """What the report of a second snapshot shows."""
    for name in ("a", "b"):
        corpus.write({f"{name}{number}": bytes([number + 1, 3]) * (1 + number * 2) for number in range(8)}, name)
        manifest, _ = corpus.embed()
        assert manifest["report"] == "report.html", manifest["notes"]
    return (directory_of(corpus.output) / "report.html").read_text().partition("<body>")[2]


def test_the_report_names_the_rows_of_a_sample_by_their_ids(page: str) -> None:
    """Contents that are not strings are not shown; what is counted has the head's name."""
    assert re.findall("<h3>(.*?)</h3>", page)
    assert all(re.fullmatch("[ab][0-7]", name) for name in re.findall("<h3>(.*?)</h3>", page))
    assert "rhythms embedded by the model" in page
    assert "fingerprint: accent" in page


def test_the_report_names_the_head_s_unit(page: str) -> None:
    """Its page shows beats and rhythms, and not of tokens or texts."""
    assert "Beats per rhythm" in page
    assert "16 beats and more share the last bar" in page
    shown = re.sub("<[^>]*>", " ", page).lower()
    for word in ("token", "text", "prompt"):
        assert word not in shown


def test_changes_lists_rows_by_their_content(corpus: Corpus, tmp_path: Path) -> None:
    """Added, changed and removed rows are found, and written with the columns of the head."""
    corpus.embed()
    corpus.write({"a": GOOD["a"], "b": b"\x08", "d": GOOD["d"], "j": b"\x05", "k": b"\x06"})
    corpus.embed()
    changes = find_changes(str(corpus.output), target=str(tmp_path / "changes"))
    assert (changes.added, changes.changed, changes.removed) == (2, 2, 1), "of d the kept field n changed"

    def rows(kind: str) -> list[dict[str, object]]:
        (path,) = (tmp_path / "changes").glob(f"{kind}-*.parquet")
        return pq.read_table(path).sort_by("id").to_pylist()

    assert [(row["id"], row["rhythm"], row["n_beats"]) for row in rows("added")] == [
        ("j", b"\x05", 1),
        ("k", b"\x06", 1),
    ]
    assert [(row["id"], row["rhythm"]) for row in rows("changed")] == [("b", b"\x08"), ("d", GOOD["d"])]
    assert [row["id"] for row in rows("removed")] == ["c"]


def _run(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """Run a command that must end well; return what it printed."""
    status = main(list(arguments))
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def test_all_commands_take_the_head_from_its_name(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    """`--head beats` is a word of the command line, with its flags; other commands read it from the snapshot."""
    output = str(corpus.output)
    plan = _run(capsys, corpus.flags("plan"))
    # The row on which the model fails is found by the model alone.
    assert "5 new, 0 with another rhythm, 0 with the same rhythm, 0 removed; 4 rejected" in plan
    assert "rhythms, 20 beats" in plan
    summary = _run(capsys, corpus.flags())
    assert "9 read = 4 embedded + 0 reused + 5 rejected (silence 1, broken beat 1" in summary
    assert "rhythms, 19 beats" in summary
    assert "unchanged since" in _run(capsys, corpus.flags())
    assert "unchanged since" in _run(capsys, corpus.flags("plan"))
    corpus.write({**GOOD, "b": b"\x01"})
    plan = _run(capsys, corpus.flags("plan"))
    assert "1 with another rhythm, 3 with the same rhythm, 0 removed" in plan
    assert "1 rhythms, 1 beats" in plan, "the other shard is not read"
    assert "beats/s of earlier runs" in plan
    _run(capsys, corpus.flags("embed", "--accent", "none"))
    assert _run(capsys, ["validate", output]).endswith("valid\n")
    assert _run(capsys, ["report", output]).strip().endswith("report.html")
    assert "0 added, 1 changed, 0 removed" in _run(capsys, ["changes", output])
    entries = json.loads(_run(capsys, ["log", output, "--json"]))
    assert [entry["head"] for entry in entries] == ["beats", "beats"]
    assert [entry["snapshot"] for entry in entries][-1] == current_name(output)


def test_the_head_s_flags_are_checked(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown values are usage errors; the field that the flag of the head names is the one that is read."""
    assert main(corpus.flags("embed", "--accent", "last")) == 2
    assert "'last' is not one of none, first" in capsys.readouterr().err
    assert main(corpus.flags("embed", "--rhythm_field", "drums")) == 2
    assert "no record has the field 'drums'; the fields are 'id', 'rhythm', 'n'" in capsys.readouterr().err
    assert main(corpus.flags("embed", "--rhythm_field", "rhythm", "--rhythm_field", "drums")) == 2
    assert "--id_field is given 1 time (id) for 2 rhythm fields (rhythm, drums)" in capsys.readouterr().err
    (corpus.folder / "lines.txt").write_text("a line\n")
    lines = ["embed", "--head", "beats", "--checkpoint", corpus.weights, "--output", str(corpus.output), "--input"]
    assert main([*lines, f"{corpus.folder}/lines.txt", "--rhythm_field", "drums"]) == 2
    assert "--rhythm_field drums: no shard has fields" in capsys.readouterr().err
    assert current_name(str(corpus.output)) is None


@pytest.mark.parametrize("flags", [("--prompt", "a {}"), ("--no_text",), ("--text_field", "rhythm")])
def test_flags_of_another_head_are_refused(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    """They would have no effect."""
    assert main(corpus.flags("embed", *flags)) == 2
    assert f"{flags[0]} is a flag of --head text, and --head is beats: leave it out" in capsys.readouterr().err
    assert not corpus.output.exists()


def test_a_kept_field_may_be_named_like_a_column_of_another_head(corpus: Corpus) -> None:
    """Columns are found by what the head says, not by the names of texts."""
    names = pa.array(["yes", "no"])
    table = pa.table({"id": ["x", "y"], "rhythm": pa.array([b"\x01", b"\x02"]), "n": [1, 2], "truncated": names})
    for path in corpus.folder.glob("*.parquet"):
        path.unlink()
    pq.write_table(table, corpus.folder / "a.parquet")
    manifest, _ = corpus.embed("--keep_fields", "truncated")
    assert read(corpus.output, "part")["truncated"].to_pylist() == ["yes", "no"]
    assert manifest["counts"]["truncated"] == 0


def test_the_field_of_the_head_s_flag_is_read(corpus: Corpus) -> None:
    """Without the flag the field has the name of the content."""
    table = pq.read_table(corpus.folder / "a.parquet").rename_columns(["id", "drums", "n"])
    pq.write_table(table, corpus.folder / "a.parquet")
    (corpus.folder / "b.parquet").unlink()
    manifest, _ = corpus.embed("--rhythm_field", "drums")
    assert manifest["counts"]["embedded"] == 4
    assert read(corpus.output)["rhythm"].to_pylist() == list(GOOD.values())


class SpelledHead(BeatHead):
    """A head whose contents are strings, as those of the text head are, with rules of its own for them."""

    content = Column("rhythm", "string")

    def parse(self, value: object, field: str, limit: int) -> Any:
        if value == "x":
            raise BadRow("silence", f"field {field!r} is {value!r}")
        return str(value).upper()


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        ("jsonl", 3),
        ("jsonl", 30),
        ("parquet", 3),
    ],
)
def test_contents_that_are_strings_are_parsed_by_the_head(tmp_path: Path, form: str, rows: int) -> None:
    """Few rows or many: no reader has rules of its own for strings."""
    table = pa.table({"rhythm": ["x", *["o"] * (rows - 1)]})
    if form == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        write_jsonl(tmp_path / "a.jsonl", table.to_pylist())
    (shard,) = find_shards([str(tmp_path / f"a.{form}")])
    settings = ReadSettings(SpelledHead(), Fields("rhythm"), pa.schema([]), 64)
    batches = list(read_shard(shard, settings))
    contents = [value for good, _ in batches for value in good["rhythm"].to_pylist()]
    reasons = [value for _, bad in batches for value in bad["reason"].to_pylist()]
    assert (contents, reasons) == (["O"] * (rows - 1), ["silence"])
