"""JSON as programs write it: NaN and Infinity are read, arrays and objects of several lines are refused at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest

from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.corpus import embed, read
from tests.support.shards import ids, infer_kept_schema, read_rows, reasons, texts, write_lines


def test_numbers_that_are_missing_as_python_writes_them(tmp_path: Path) -> None:
    """The rows are embedded, and a kept NaN or Infinity is that double."""
    lines = [{"id": 1, "text": "a dog", "score": math.nan}, {"id": 2, "text": "a cat", "score": 1.5}]
    write_lines(tmp_path / "nan.jsonl", *lines, {"id": 3, "text": "rain", "score": math.inf})
    manifest, _ = embed(tmp_path / "nan.jsonl", tmp_path / "out", id_field="id", keep_fields=["score"])
    assert (manifest["counts"]["embedded"], manifest["counts"]["rejected"]) == (3, 0)
    assert list(map(repr, read(tmp_path / "out")["score"].to_pylist())) == ["nan", "1.5", "inf"]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_no_text_and_no_id(tmp_path: Path, word: str) -> None:
    """It is rejected by name; beside them, and in lists and objects that are kept as text, it stays as it is."""
    path = write_lines(
        tmp_path / "a.jsonl",
        b'{"id": %s, "text": "a"}' % word.encode(),
        b'{"id": 1, "text": %s}' % word.encode(),
        b'{"id": 1.50, "text": "b", "k": [1, {"a": %s}]}' % word.encode(),
        b'{"id": 12345678901234567890, "text": "c", "k": "NaN", "other": %s}' % word.encode(),
    )
    rows, rejected = read_rows(path, id="id", keep=("k",))
    assert [row["detail"] for row in rejected] == [
        f"id field 'id' is {word}, neither text nor a number",
        f"field 'text' is {word}, not text",
    ]
    assert [(row["id"], row["k"]) for row in rows] == [
        ("1.50", f'[1,{{"a":{word}}}]'),
        ("12345678901234567890", "NaN"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a", "n": nan}', "malformed record"),
        (b'{"text": "a", "n": -NaN}', "malformed record"),
        (b'{"text": "a", "n": Inf}', "malformed record"),
        (b'{"text": "a", "n": NaN', "malformed record"),
        (b'{"text": "a", "n": NaN, "m": 1e999}', "malformed record"),
        (b'{"text": "NaN", "n": None}', "malformed record"),
        (b'{"text": "\\ud800", "n": NaN}', "not UTF-8"),
        (b'{"text": "\xff", "n": NaN}', "not UTF-8"),
        (b"NaN", "malformed record"),
        (b'{"n": NaN, "deep": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "malformed record"),
    ],
)
def test_other_words_are_malformed(tmp_path: Path, line: bytes, reason: str) -> None:
    """They cost only their line."""
    rows, rejected = read_rows(write_lines(tmp_path / "a.jsonl", {"text": "a"}, line, {"text": "b"}))
    assert (texts(rows), reasons(rejected)) == (["a", "b"], [("1", reason)])


RECORDS = [{"id": n, "text": f"text {n}", "more": {"n": [n]}} for n in range(50)]
ARRAY = "a JSON array, and jsonl has an object per line: convert it, as in jq -c '.[]' OLD > NEW"
NOT_LINES = "the JSON objects are not one per line, as jsonl has them: convert the file, as in jq -c . OLD > NEW"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(RECORDS), ARRAY),
        (json.dumps(RECORDS, indent=2), ARRAY),
        (json.dumps(RECORDS, indent="\t"), ARRAY),
        ("[" + ",\n".join(map(json.dumps, RECORDS)) + "]", ARRAY),
        ("[\n" + "\n,".join(map(json.dumps, RECORDS)) + "\n]", ARRAY),
        ("\n\n  [ " + ",\n".join(map(json.dumps, RECORDS)) + "]", ARRAY),
        (json.dumps([{"text": "a", "n": math.nan}]), ARRAY),
        (json.dumps(["a dog", "a cat"]), ARRAY),
        (json.dumps([{"text": "x" * (17 << 20)}]), ARRAY),
        ("\ufeff" + json.dumps(RECORDS), ARRAY),
        ("[]", ARRAY),
        ("\n".join(json.dumps(record, indent=2) for record in RECORDS), NOT_LINES),
        (json.dumps({"data": RECORDS}, indent=1), NOT_LINES),
        (json.dumps({"data": RECORDS * 500}, indent=1), NOT_LINES),
        ('{ "text": "a",\n  "id": 1 }\n', NOT_LINES),
        ('{ "text": "a"\n, "id": 1 }\n', NOT_LINES),
        ('{"text":\n"a"}\n', NOT_LINES),
        ("".join(map(json.dumps, RECORDS)), NOT_LINES),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl"])
def test_json_that_is_not_an_object_per_line_is_one_error(
    tmp_path: Path, content: str, message: str, suffix: str
) -> None:
    """It names the tool; a shard that is not looked at before the run is damaged, without a rejected row for each line."""
    (tmp_path / f"a{suffix}").write_text(content, encoding="utf-8")
    shards = find_shards([f"{tmp_path}/a{suffix}"])
    with pytest.raises(InputError) as caught:
        infer_kept_schema(shards, Fields())
    assert str(caught.value).endswith(message)
    rows, rejected = read_rows(tmp_path / f"a{suffix}", kept=pa.schema([]))
    assert (rows, reasons(rejected)) == ([], [("0", "damaged shard")])


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "a',
        b"[1]",
        b'["a", "b"]',
        b"[[",
        b'{"text": "a",',
        b'{"text": "a"} x',
        b'{"text": "a"}{"text": "b"}',
        b"{}",
        b"[{]",
    ],
)
def test_a_bad_first_line_of_jsonl_costs_only_itself(tmp_path: Path, line: bytes) -> None:
    """Unless what follows shows another form of JSON."""
    rows, rejected = read_rows(write_lines(tmp_path / "a.jsonl", line, {"text": "b"}, {"text": "c"}))
    assert ids(rows) == ["a.jsonl#1", "a.jsonl#2"]
    assert [number for number, _ in reasons(rejected)] == ["0"]
