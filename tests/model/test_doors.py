"""What is not a list of texts is a TypeError before the model runs, at every door of Python, and names what to write."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.testing.util import assert_that, equal_to

from audioclip_beam.model import TextEncoder
from audioclip_beam.pipeline import AudioCLIPTextEmbeddings, EmbedOptions, TextEmbeddingHandler
from audioclip_beam.pipeline.search import search

Caption = namedtuple("Caption", ["id", "text"])
COLUMNS = {"id": ["1", "2"], "text": ["a dog", "rain"]}
FRAME = "give one column, as in frame\\['text'\\]"


def database_row() -> sqlite3.Row:
    """Return a row of a database."""
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    return connection.execute("SELECT 'a' AS id, 'dog' AS text").fetchone()  # type: ignore[no-any-return]


WHOLE: dict[str, tuple[Any, str]] = {
    "pandas": (pd.DataFrame(COLUMNS), f"^texts is a DataFrame: {FRAME}$"),
    "an empty frame": (pd.DataFrame(), FRAME),
    "polars": (pl.DataFrame(COLUMNS), f"^texts is a DataFrame: {FRAME}$"),
    "a lazy frame": (pl.LazyFrame(COLUMNS), f"^texts is a LazyFrame: {FRAME}$"),
    "a table": (pa.table(COLUMNS), f"^texts is a Table: {FRAME}$"),
    "a record batch": (pa.RecordBatch.from_pydict(COLUMNS), f"^texts is a RecordBatch: {FRAME}$"),
    "a dict": (COLUMNS, f"^texts is a dict: {FRAME}$"),
    "an ordered dict": (OrderedDict(COLUMNS), f"^texts is a OrderedDict: {FRAME}$"),
    "a user's dict": (UserDict(COLUMNS), FRAME),
    "a view of a dict": (MappingProxyType(COLUMNS), FRAME),
    "a Row": (beam.Row(id="1", text="a dog"), f"^texts is a Row: {FRAME}$"),
    "a named tuple": (Caption("1", "a dog"), f"^texts is a Caption: {FRAME}$"),
    "a row of a database": (database_row(), FRAME),
    "a set": ({"a dog", "rain"}, r"^texts is a set, whose order is not defined: give a list, as in sorted\(texts\)$"),
    "a frozen set": (frozenset({"a dog"}), "^texts is a frozenset, whose order"),
    "nothing": (None, r"^texts is None \(NoneType\): give a list of texts, as in \[text\]$"),
    "a number": (3, r"^texts is 3 \(int\)"),
    "a string": ("a dog", r"write \[text\]$"),
    "bytes": (b"a dog", r"^text 0 is 97 \(int\)"),
    "a struct array": (pa.table(COLUMNS).to_struct_array(), r"^text 0 is {'id': '1', 'text': 'a dog'} \(dict\)"),
    "a structured array": (np.array([("1", "a dog")], [("id", "U1"), ("text", "U9")]), r"^text 0 is .* \(void\)"),
}
ELEMENTS: dict[str, tuple[Any, str]] = {
    "a dict": ({"text": "a dog"}, r"\(dict\)"),
    "a Row": (beam.Row(text="a dog"), r"\(Row\)"),
    "a named tuple": (Caption("1", "a dog"), r"\(Caption\)"),
    "a row of a database": (database_row(), r"\(Row\)"),
    "a list of lists": (["a dog", ["rain"]], r"\(list\)"),
    "deep lists": ([[["rain"]]], r"\(list\)"),
    "a list with null": (["a dog", None], r"\(list\)"),
    "a set": ({"a dog"}, r"\(set\)"),
    "a generator": ((text for text in ["a dog"]), r"\(generator\)"),
    "bytes": (b"a dog", r"\(bytes\)"),
    "bytes that can change": (bytearray(b"a dog"), r"\(bytearray\)"),
    "null": (None, r"\(NoneType\)"),
    "a number": (float("nan"), r"\(float\)"),
    "a value of Arrow": (pa.scalar("a dog"), r"\(StringScalar\)"),
    "a path": (Path("a.txt"), r"\(PosixPath\)"),
    "a frame": (pd.DataFrame(COLUMNS), r"\(DataFrame\)"),
}


@pytest.fixture(scope="module")
def encoder(small_head: str, vocabulary: Path) -> TextEncoder:
    """An encoder whose model must not run."""
    with pytest.warns(UserWarning, match="not AudioCLIP's"):
        return TextEncoder.load(small_head, device="cpu", tokenizer_path=vocabulary)


@pytest.fixture(params=["encode", "encode_rows"])
def door(request: pytest.FixtureRequest, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A method of the encoder."""
    monkeypatch.setattr(encoder, "_encode_rows", lambda *_: pytest.fail("the model has run"))
    return getattr(encoder, request.param)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("texts", "message"), WHOLE.values(), ids=WHOLE)
def test_what_is_not_a_list_of_texts(door: Callable[..., Any], texts: Any, message: str) -> None:
    """It is named, with what to give."""
    with pytest.raises(TypeError, match=message):
        door(texts)


@pytest.mark.parametrize(("text", "message"), ELEMENTS.values(), ids=ELEMENTS)
def test_what_is_not_a_text(door: Callable[..., Any], text: Any, message: str) -> None:
    """It is named with its place."""
    with pytest.raises(TypeError, match=f"^text 1 is .*{message}, not a string or a list of strings"):
        door(["a dog", text])


@pytest.mark.parametrize(
    "texts",
    [
        ("a dog", "rain"),
        [("a", "dog"), "rain"],
        [["a", "dog"], "rain"],
        (text for text in ["a dog", "rain"]),
        dict.fromkeys(["a dog", "rain"]).keys(),
        {1: "a dog", 2: "rain"}.values(),
        pd.Series(["a dog", "rain"]),
        pd.DataFrame(COLUMNS)["text"],
        pd.Index(["a dog", "rain"]),
        pl.Series(["a dog", "rain"]),
        pa.table(COLUMNS)["text"],
        np.array(["a dog", "rain"], object),
        np.array([["a", "dog"], ["rain", "now"]]),
    ],
)
def test_what_works_keeps_working(encoder: TextEncoder, texts: Any) -> None:
    """Any iterable of texts, and any sequence of strings as one text."""
    assert encoder.encode(texts).shape == (2, encoder.dim)


@pytest.mark.parametrize("element", [*ELEMENTS.values(), (("key", "a dog"), "")], ids=[*ELEMENTS, "a tuple"])
def test_elements_of_run_inference(
    element: tuple[Any, str], small_head: str, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are str or list[str]; the error names the element, and KeyedModelHandler for a tuple."""
    monkeypatch.setattr(encoder, "_encode_rows", lambda *_: pytest.fail("the model has run"))
    with pytest.raises(
        TypeError, match=r"^TextEmbeddingHandler got .* which is not a text: give str or list\[str\]"
    ) as caught:
        TextEmbeddingHandler(small_head).run_inference([element[0]], encoder)
    plain_tuple = type(element[0]) is tuple
    assert ("KeyedModelHandler(TextEmbeddingHandler(...))" in str(caught.value)) is plain_tuple


def test_run_inference_takes_lists_of_strings(small_head: str, vocabulary: Path) -> None:
    """A list is one text, with and without keys; sizes are counted."""
    handler = TextEmbeddingHandler(small_head, device="cpu", tokenizer_path=str(vocabulary))
    assert handler.get_num_bytes(["dog", ["a", "é"]]) == 8
    with beam.Pipeline("FnApiRunner") as pipeline:
        plain = pipeline | beam.Create([["a", "dog"], "rain"]) | RunInference(handler)
        assert_that(plain | beam.Map(lambda result: result.example), equal_to([["a", "dog"], "rain"]), "plain")
        keyed = (
            pipeline
            | "Pairs" >> beam.Create([("k", ["a", "dog"])])
            | "Keyed" >> RunInference(KeyedModelHandler(handler))
        )
        assert_that(keyed | "Keys" >> beam.Keys(), equal_to(["k"]), "keyed")


@pytest.mark.parametrize("element", ["a dog", ("a dog",), ["a dog"], None, 3, b"a dog", {"a dog"}])
def test_elements_of_ml_transform(element: object, small_head: str) -> None:
    """With columns they are dicts, Rows or NamedTuples, and their values are texts."""
    handler = AudioCLIPTextEmbeddings(columns=["text"], checkpoint=small_head).get_model_handler()
    with pytest.raises(TypeError, match="^no text in .*: Expected data to be dicts"):
        handler.contents(element)
    with pytest.raises(TypeError, match="^AudioCLIPTextEmbeddings takes str, got .*: give a text$"):
        handler.contents({"text": [element]})


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("a dog", r"^queries must be a list of texts, not one string: got 'a dog'"),
        (pd.DataFrame(COLUMNS), "^queries is a DataFrame: give one column"),
        (COLUMNS, "^queries is a dict: give one column"),
        ({"a dog"}, r"^queries is a set, .* sorted\(queries\)$"),
        (None, "^queries is None"),
        ([["a", "dog"]], r"^a query is \['a', 'dog'\] \(list\): give a text"),
        ([np.zeros(4)], r"^text 0 is array"),
        ([b"a dog"], r"^text 0 is b'a dog'"),
    ],
)
def test_queries_of_search(queries: Any, message: str) -> None:
    """Before the snapshot is opened."""
    with pytest.raises(TypeError, match=message):
        search("/nowhere", queries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": pd.DataFrame(COLUMNS)}, "^input=.*DataFrame.*: give a string or a list of strings"),
        ({"input": {"a.txt": 1}}, r"^input=.*\(dict\): give a string or a list of strings"),
        ({"input": ["a.txt", 3]}, r"^input=\['a.txt', 3\] \(list\)"),
        ({"input": b"a.txt"}, r"^input=b'a.txt' \(bytes\)"),
        ({"text_field": ["text", None]}, "^text_field=.*: give a string or a list of strings"),
        ({"output": ["out"]}, r"^output=\['out'\] \(list\): give a string$"),
        ({"output": 3}, r"^output=3 \(int\): give a string$"),
        ({"prompt": 5}, r"^prompt=5 \(int\): give a string$"),
        ({"checkpoint": None}, r"^checkpoint=None \(NoneType\): give a string$"),
        ({"batch_size": "64"}, r"^batch_size='64' \(str\): give a whole number$"),
        ({"batch_size": True}, r"^batch_size=True \(bool\): give a whole number$"),
        ({"batch_size": 6.5}, r"^batch_size=6.5 \(float\): give a whole number$"),
        ({"max_shrink": "0.5"}, r"^max_shrink='0.5' \(str\): give a number$"),
        ({"normalize": "yes"}, r"^normalize='yes' \(str\): give True or False$"),
        ({"no_text": 1}, r"^no_text=1 \(int\): give True or False$"),
    ],
)
def test_options_of_wrong_types(options: dict[str, Any], message: str) -> None:
    """Named when they are given, with what to give."""
    with pytest.raises(TypeError, match=message):
        EmbedOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fetch_threads": 0}, r"^fetch_threads: '0' is not a whole number of at least 1$"),
        ({"allow_damaged": -1}, r"^allow_damaged: '-1' is not a whole number of at least 0$"),
        ({"max_shrink": float("nan")}, r"^max_shrink: 'nan' is not a number from 0 to 1$"),
        ({"max_rejected": "few"}, r"^max_rejected: 'few' is neither a number of rows"),
        ({"window": "nan"}, r"^window: 'nan' is neither whole nor 0.001 to 300 seconds$"),
        ({"device": "gpu"}, r"^device: 'gpu' is not auto, cpu, cuda or cuda:N; did you mean cuda\?$"),
        ({"input_format": "mp3"}, r"^input_format: 'mp3' is not one of txt, "),
        ({"delimiter": "ab"}, r"^delimiter: 'ab' is not one character"),
    ],
)
def test_options_of_wrong_values(options: dict[str, Any], message: str) -> None:
    """What a flag refuses, an option refuses too, when it is given; the rest is as the flag has it."""
    with pytest.raises(ValueError, match=message):
        EmbedOptions(**options)
    assert EmbedOptions(delimiter="\\t").delimiter == "\t"
    assert EmbedOptions(accelerator="nvidia-l4").accelerator == EmbedOptions(["--accelerator=nvidia-l4"]).accelerator


def test_options_of_right_types() -> None:
    """Paths, tuples, single fields and numbers of numpy."""
    options = EmbedOptions(
        input=(Path("a.txt"), "b.txt"), output=Path("out"), text_field="text", id_field=["id"], keep_fields=["a", "b"]
    )
    assert (options.input, options.output) == (["a.txt", "b.txt"], "out")
    single = EmbedOptions(input="a.txt", id_field="id", keep_fields="a")  # means the same as the flags
    assert single.given == EmbedOptions(["--input", "a.txt", "--id_field", "id", "--keep_fields", "a"]).given
    EmbedOptions(batch_size=np.int64(5), max_shrink=1, model_threads=None, id_field=None, normalize=np.bool_(True))
