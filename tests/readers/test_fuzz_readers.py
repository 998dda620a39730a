"""Any rows are read as they were written, and of any bytes every row is counted."""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.notes import Notice, ShardNotes
from audioclip_beam.pipeline.readers.shard import InputError, Shard
from tests.support.shards import COMPRESS, REASONS, infer_kept_schema, read_shard

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = TEXT.filter(lambda text: bool(text.strip()) and "\0" not in text)  # csv takes no NUL before Python 3.11
ROWS = st.lists(st.tuples(WORDS, WORDS, st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=20)
QUICK = settings(max_examples=60, deadline=None)


def account(shard: Shard, fields: Fields, kept: pa.Schema, limit: int = 1000) -> tuple[list[dict[str, object]], int]:
    """Return the rows of a shard and the number of rejected ones, and check that each row number occurs once, in order."""
    rows, numbers, rejected = list[dict[str, object]](), list[int](), 0
    for good, bad in read_shard(shard, fields, kept, limit):
        good.validate(full=True)
        bad.validate(full=True)
        rows += good.to_pylist()
        assert set(bad.column("reason").to_pylist()) <= set(REASONS)
        block = good.column("row").to_pylist() + [int(row) for row in bad.column("row").to_pylist()]
        numbers += sorted(block)
        rejected += bad.num_rows
    # Rows of damaged row groups are missing, and documents without texts have none.
    if shard.format == "parquet" or "[]" in fields.text:
        assert numbers == sorted(set(numbers))
    else:
        assert numbers == list(range(len(numbers)))
    assert len(rows) + rejected == len(numbers)
    return rows, rejected


def encode(form: str, rows: list[tuple[str, str, int | None]]) -> bytes:
    names = ("key", "text", "n")
    if form == "jsonl":
        return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()
    if form == "parquet":
        out = pa.BufferOutputStream()
        types = (pa.string(), pa.string(), pa.int64())
        table = [pa.array([row[place] for row in rows], kind) for place, kind in enumerate(types)]
        pq.write_table(pa.table(table, names=names), out, row_group_size=7)
        return bytes(out.getvalue())
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="," if form == "csv" else "\t", lineterminator="\r\n")
    writer.writerows([names, *rows])
    return text.getvalue().encode()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
@given(rows=ROWS, suffix=st.sampled_from(sorted(COMPRESS)))
@example(rows=[("a", "b\rc", 1), ('"', '",', None), ("\x1f", "\x85x\r\n", 0), ("\ufeff", "\ufeff", 5)], suffix="")
@QUICK
def test_any_rows_come_back_as_they_were_encoded(
    form: str, rows: list[tuple[str, str, int | None]], suffix: str
) -> None:
    """Texts may contain quotes, line ends, byte order marks and any script."""
    with tempfile.TemporaryDirectory() as folder:
        suffix = "" if form == "parquet" else suffix
        path = Path(folder, f"a.{form}{suffix}")
        path.write_bytes(COMPRESS[suffix](encode(form, rows)))
        shards = find_shards([str(path)], quoting="minimal" if form == "tsv" else None)
        fields = Fields("text", "key", ("n",))
        found, rejected = account(shards[0], fields, infer_kept_schema(shards, fields))
        assert rejected == 0
        number = (lambda n: "" if n is None else str(n)) if form in ("csv", "tsv") else (lambda n: n)
        assert [(row["id"], row["text"], row["n"]) for row in found] == [(k, t, number(n)) for k, t, n in rows]


PARQUET = encode("parquet", [(f"k{n}", f"text {n}", n) for n in range(20)])
JSONL = encode("jsonl", [(f"k{n}", f"text {n}", n) for n in range(20)])
CSV = encode("csv", [(f"k{n}", f'text, "{n}"', n) for n in range(20)])
SEEDS = {"txt": b"a\nb\n", "jsonl": JSONL, "csv": CSV, "tsv": CSV.replace(b",", b"\t"), "parquet": PARQUET}


@st.composite
def corrupted(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return a good file with some bytes changed, inserted or removed, or with its end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["insert", "change", "drop", "cut"]))
        if how == "cut":
            del data[at:]
        else:
            size = draw(st.integers(1, 8))
            data[at : at + (0 if how == "insert" else size)] = b"" if how == "drop" else draw(st.binary(max_size=8))
    return bytes(data)


def check(data: bytes, form: str, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{form}{suffix}")
        path.write_bytes(data)
        shards = find_shards([str(path)])
        for fields in (Fields(), Fields("text", "key", ("n",)), Fields("c[].text", "key", ("n.m",))):
            try:
                kept = infer_kept_schema(shards, fields)
            except ValueError:  # missing fields are refused before a run
                kept = pa.schema([pa.field(name, pa.int64()) for name in fields.keep])
            account(shards[0], fields, kept)


CHUNK = st.sampled_from(
    [b"\n", b"\r\n", b'"', b",", b"\t", b"{", b"}", b'{"text": "a"}', b"text", b"\xff", b"\0", b"x" * 999]
)


@pytest.mark.slow
@pytest.mark.parametrize("form", SEEDS)
@given(data=st.data(), suffix=st.sampled_from(sorted(COMPRESS)))
@QUICK
def test_any_bytes_are_accounted_for(form: str, data: st.DataObject, suffix: str) -> None:
    """Bytes of any kind, compressed or not, give rows and rejected rows in order, and no error."""
    suffix = "" if form == "parquet" else suffix
    content = data.draw(st.binary(max_size=60) | st.lists(CHUNK | st.binary(max_size=4), max_size=30).map(b"".join))
    content = data.draw(st.sampled_from([content, b"text,key\n" + content, b"\xef\xbb\xbf" + content]))
    check(data.draw(st.sampled_from([content, COMPRESS[suffix](content)])), form, suffix)


@pytest.mark.slow
@pytest.mark.parametrize("form", SEEDS)
@given(data=st.data(), suffix=st.sampled_from(sorted(COMPRESS)))
@QUICK
def test_corrupted_shards_are_accounted_for(form: str, data: st.DataObject, suffix: str) -> None:
    """So do good files with some bytes changed, before compression and after it."""
    suffix = "" if form == "parquet" else suffix
    whole = SEEDS[form]
    content = COMPRESS[suffix](data.draw(corrupted(whole))) if data.draw(st.booleans()) else COMPRESS[suffix](whole)
    check(data.draw(corrupted(content)), form, suffix)


@pytest.mark.slow
def test_every_bit_of_a_footer_may_flip() -> None:
    """A Parquet file with one wrong bit gives rows, rejected rows or a damaged shard."""
    chance = random.Random(7)
    for _ in range(150):
        data = bytearray(PARQUET)
        place = chance.randrange(len(data))
        data[place] ^= 1 << chance.randrange(8)
        check(bytes(data), "parquet", "")


LINES = st.lists(st.text(st.sampled_from("ab\"\\' \r\u2028é"), max_size=5), min_size=1, max_size=6)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "cp1251", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["txt", "csv", "tsv"])
@given(
    lines=LINES,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=ENCODINGS,
    quoting=st.sampled_from(["none", "minimal"]),
    escape=st.sampled_from([None, "\\"]),
    suffix=st.sampled_from(["", ".gz"]),
)
@example(lines=['"Big Ben', "rain", 'bell"'], end="\n", encoding="utf-8", quoting="minimal", escape=None, suffix="")
@settings(max_examples=150, deadline=None)
def test_every_line_is_a_row_or_named(
    form: str, *, lines: list[str], end: str, encoding: str, quoting: str, escape: str | None, suffix: str
) -> None:
    """Lines of the file = rows + rejected rows + lines that a note names; a file in another encoding is named as a whole."""
    delimiter = {"txt": "", "csv": ",", "tsv": "\t"}[form]
    # A note says which lines became one record; without quotes a backslash at the end of a line was asked to join two.
    if encoding in ("utf-16-le", "utf-16-be"):  # clear only of letters with zeros
        lines = [line.replace("\u2028", "") for line in lines]
    lines = [line.replace("\r", "") if end == "\r" else line for line in lines]
    lines = [f"{line.rstrip(chr(92))}." if quoting == "none" else line for line in lines]
    header = [] if form == "txt" else ["key,text"]
    body = [*header, *(f"{n},{line}" for n, line in enumerate(lines))]
    content = "".join(line.replace(",", delimiter, 1) + end for line in body).encode(encoding, "replace")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{form}{suffix}")
        path.write_bytes(COMPRESS[suffix](content))
        flags = {} if form == "txt" else {"quoting": quoting, "escape": escape}
        (shard,) = find_shards([str(path)], **flags)
        notes, rows, rejected = ShardNotes(), 0, list[object]()
        for good, bad in read_shard(shard, Fields(), pa.schema([]), 1000, notes=notes):
            rows += good.num_rows
            rejected += bad.column("reason").to_pylist()
        if encoding.startswith(("utf-16", "utf-32")):
            assert (rows, rejected) == (0, ["damaged shard"])
            return
        swallowed = notes.findings.get(Notice.SWALLOWED)
        lost = sum(place.last - place.first for place in swallowed.places) if swallowed else 0
        assert rows + len(rejected) + lost == len(lines)
        assert not (lost and quoting == "none")
        ends = [line.removesuffix("\r") if form == "txt" else line.rstrip("\r") for line in lines]
        if any("\r" in line for line in ends):
            assert Notice.RETURN in notes.findings


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "n", "m"]), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(
    st.dictionaries(st.sampled_from(["text", "key", "n", "c", "c.text"]), VALUES, max_size=4), max_size=9
)


@given(records=RECORDS, text=st.sampled_from(["text", "c[].text", "c.text", "n.m", "c[]"]))
@QUICK
def test_records_of_any_values_are_accounted_for(records: list[dict[str, object]], text: str) -> None:
    """A record of any values gives one row, several, or a rejected one; an empty list need not give any.

    A kept value that does not fit a given type ends the run instead.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        shards = find_shards([str(path)])
        for keep in (pa.string(), pa.int64(), pa.float64(), pa.bool_()):
            rows, rejected = list[int](), 0
            kept = pa.schema([pa.field("n", keep), pa.field("c", keep)])
            try:
                for good, bad in read_shard(shards[0], Fields(text, "key", ("n", "c")), kept):
                    good.validate(full=True)
                    rows += good.column("row").to_pylist() + [int(row) for row in bad.column("row").to_pylist()]
                    rejected += bad.num_rows
            except InputError as error:
                if "and its column" not in str(error):
                    raise
                continue
            empty = {row for row, record in enumerate(records) if "[]" in text and record.get("c") in (None, [])}
            assert set(rows) | empty == set(range(len(records)))
            assert rejected <= len(rows)


@pytest.mark.slow
def test_a_footer_with_wrong_row_counts_gives_no_number_twice() -> None:
    """Try every bit whose change changes the number of rows of a row group."""

    def row_counts(data: bytes) -> list[int]:
        try:
            metadata = pq.read_metadata(io.BytesIO(data))
            return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        except (OSError, ValueError, pa.ArrowException):
            return []

    cases = 0
    footer = len(PARQUET) - 8 - int.from_bytes(PARQUET[-8:-4], "little")
    for bit in range(8 * footer, 8 * (len(PARQUET) - 8)):
        data = bytearray(PARQUET)
        data[bit // 8] ^= 1 << bit % 8
        if len(rows := row_counts(bytes(data))) == 3 and rows != [7, 7, 6]:
            check(bytes(data), "parquet", "")
            cases += 1
    assert cases > 10
