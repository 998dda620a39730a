"""ClipTokenizer against the original's ids, and against a slow, plain implementation of the same steps."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.model import ClipTokenizer
from audioclip_beam.model.text import tokenizer as tokenizer_module
from audioclip_beam.model.text.tokenizer import EOT, SOT, TokenizerError
from tests.support.paths import DATA, ROOT
from tests.support.plain_tokenizer import PlainTokenizer

CASES = [json.loads(line) for line in (DATA / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]
_plain: list[PlainTokenizer] = []


def plain() -> PlainTokenizer:
    if not _plain:
        _plain.append(PlainTokenizer(ROOT / ".cache" / "bpe_simple_vocab_16e6.txt.gz"))
    return _plain[0]


def test_all_goldens_have_the_originals_ids(tokenizer: ClipTokenizer) -> None:
    """The 1,460 strings of the original give the same ids, computed and from the memo."""
    assert len(CASES) == 1460
    for _ in range(2):
        assert [case["text"] for case in CASES if tokenizer.encode(case["text"]) != case["ids"]] == []


def test_the_plain_implementation_has_the_originals_ids() -> None:
    """The oracle of the property tests is correct."""
    assert [case["text"] for case in CASES if plain().encode(case["text"]) != case["ids"]] == []


_PIECES = st.sampled_from(
    [
        "<|endoftext|>", "<|STARTOFTEXT|>", "&amp;", "&amp;lt;", "&#x27;", "it's", "WE'LL", "'", "''", "don't", "123", "1a2",
        "\n", "\t", "\x1c", "&#x1c;", "&amp;#31;", "\u00a0",
        "\u2003", "ﬁ", "Ｆｕｌｌ", "schÃ¶n", "â€œ", "’", "é", "é", "ß", "İ", "ſ", "K",
        "猫", "🎸", "👩‍🎤", "\x00", "\x7f", "\x1b[31m", "…", "--", "...", "x" * 70, "<", "|", ">", "&", ";",
    ]
)  # fmt: skip
_TEXT = st.lists(st.one_of(_PIECES, st.text(max_size=8), st.text("abc 'dlemrstv&<|>", max_size=12)), max_size=8)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(pieces=_TEXT, glue=st.sampled_from(["", " "]))
def test_any_text_has_the_plain_implementations_ids(pieces: list[str], glue: str) -> None:
    """Memo, fast path and queue change no ids of any text."""
    text = glue.join(pieces)
    try:
        expected: object = plain().encode(text)
    except UnicodeEncodeError:
        with pytest.raises(UnicodeEncodeError):
            _shared().encode(text)
        return
    assert _shared().encode(text) == expected


_fast: list[ClipTokenizer] = []


def _shared() -> ClipTokenizer:
    if not _fast:
        _fast.append(ClipTokenizer(ROOT / ".cache" / "bpe_simple_vocab_16e6.txt.gz"))
    return _fast[0]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60))
def test_the_fast_path_for_printable_ascii_gives_the_same_ids(text: str) -> None:
    """Texts that skip ftfy and unescaping would not have been changed by them."""
    assert _shared().encode(text) == plain().encode(text)


@settings(max_examples=100, deadline=None)
@given(word=st.text("aabcdehilnorst", min_size=1, max_size=120))
def test_long_words_merge_as_the_original_merges(word: str) -> None:
    """The queue of pairs applies the same merges in the same order as rescanning the word."""
    assert _shared().encode(word) == plain().encode(word)


def test_special_tokens_written_out_are_special(tokenizer: ClipTokenizer) -> None:
    """A text that contains <|endoftext|> gets that token, in upper or lower case and without spaces around it."""
    assert tokenizer.encode("dog<|EndOfText|>cat") == [*tokenizer.encode("dog"), EOT, *tokenizer.encode("cat")]
    assert tokenizer.encode("<|startoftext|>") == [SOT]


def test_the_memo_is_bounded(vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus without repeated words does not grow the memo for ever, and long chunks do not enter it."""
    monkeypatch.setattr(tokenizer_module, "MEMO_CHUNKS", 100)
    tokenizer = ClipTokenizer(vocabulary)

    def size() -> int:
        return len(pickle.dumps(tokenizer))

    chance, empty = random.Random(7), size()
    for _ in range(3):
        for _ in range(99):
            tokenizer.encode("".join(chance.choices("abcdefgh", k=9)))
        assert empty < size() < empty + 100 * 60
    before = size()
    tokenizer.encode("y" * 65)
    assert size() == before


def test_a_megabyte_without_spaces_takes_seconds_not_hours(tokenizer: ClipTokenizer) -> None:
    """Merging is n log n in the length of a word."""
    began = time.perf_counter()
    assert len(tokenizer.encode("ab" * 100_000)) > 1000
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    "marks", ["\u0301\u0323\u0327\u0345", "\u0301\u0323\u0903\u20dd\u3099", "\u0323\u0f71\u0f72\u0f80"]
)
def test_many_combining_marks_have_the_originals_ids(tokenizer: ClipTokenizer, marks: str) -> None:
    """Marks are sorted before ftfy normalizes the text, across marks that may not move."""
    chance = random.Random(marks)
    for count in (255, 256, 1000):
        text = f"caf{'e' + ''.join(chance.choices(marks, k=count))} {'o' + ''.join(chance.choices(marks, k=count))}k"
        assert tokenizer.encode(text) == plain().encode(text)


def test_a_megabyte_of_combining_marks_takes_seconds(tokenizer: ClipTokenizer) -> None:
    """Python's normalization alone takes minutes for them in this order."""
    text = "a" + "\u0301\u0323" * (1 << 18)
    began = time.process_time()
    assert len(tokenizer.encode(text)) > 1 << 19
    assert time.process_time() - began < 30


@pytest.mark.parametrize("level", ["amp;", "AMP;", "#38;", "#x26;", "#xff06;", "amp;#38;"])
def test_many_levels_of_escaping_have_the_originals_ids(tokenizer: ClipTokenizer, level: str) -> None:
    """ftfy removes one level in each pass; a line with "<", and all after it, it leaves to the two of `html.unescape`."""
    for count in (1, 31, 32, 64, 65, 66, 150):
        for start, end in itertools.product(("", "a <b>\n", "a\n"), ("", "lt;", "eacute; cat", " dog")):
            text = f"{start}rock &{level * count}{end}"
            assert tokenizer.encode(text) == plain().encode(text), text


@pytest.mark.parametrize(("digits", "ids"), [("0" * 5000 + "65", "a"), ("1" * 5000, "\ufffd"), ("0" * 5000, "\ufffd")])
def test_a_character_whose_number_has_thousands_of_digits(tokenizer: ClipTokenizer, digits: str, ids: str) -> None:
    """Python itself refuses such numbers."""
    for escaped in (f"&#{digits};", f"&#{digits} ", f"&amp;#{digits};"):
        assert tokenizer.encode(f"x {escaped} y") == tokenizer.encode(f"x {ids} y")


@pytest.mark.parametrize("pair", ["&#769;&#803;", "\u00cc\u0081\u00cc\u00a3", "&amp;#x301;&#803;"])
def test_marks_that_are_entities_or_in_another_encoding_have_the_originals_ids(
    tokenizer: ClipTokenizer, pair: str
) -> None:
    """ftfy makes marks of them, which are sorted before it normalizes them."""
    for count in (100, 127, 128, 300):
        text = f"caf e{pair * count}k"
        assert tokenizer.encode(text) == plain().encode(text)


@pytest.mark.parametrize(
    "text",
    ["&" + "amp;" * (1 << 18), "&" + "#38;" * (1 << 18), "a" + "&#769;" * 80_000 + "&#803;" * 80_000],
    ids=["levels", "numbers", "marks"],
)
def test_a_megabyte_of_entities_takes_seconds(tokenizer: ClipTokenizer, text: str) -> None:
    """The time of ftfy alone is quadratic: hours, and minutes for the marks."""
    began = time.process_time()
    assert tokenizer.encode(text)
    assert time.process_time() - began < 30


def test_pickling(tokenizer: ClipTokenizer) -> None:
    """A tokenizer that was pickled gives the same ids."""
    assert pickle.loads(pickle.dumps(tokenizer)).encode("Rain on a tin roof!") == tokenizer.encode(
        "Rain on a tin roof!"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no vocabulary at .*: run `audioclip fetch vocabulary`"),
        (b"not gzip", "is not a gzipped vocabulary"),
        (
            gzip.compress(b"header\na b\nc d\n", mtime=0),
            "contains 2 different merges: CLIP's contains 48,894 merges for 49,408 entries",
        ),
        (
            gzip.compress(b"header\n" + b"a b\n" * 49000, mtime=0),
            "contains 1 different merges: CLIP's contains 48,894 merges",
        ),
        (gzip.compress(b"header\n" + b"a b\n" * 49000, mtime=0)[:-20], "is not a gzipped vocabulary"),
        (
            gzip.compress(b"header", mtime=0)[:10] + b"\xff" * 20,
            "is not a gzipped vocabulary .*run `audioclip fetch vocabulary`",
        ),
    ],
)
def test_a_file_that_is_not_the_vocabulary_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    """The error names the file, its fault and how to get the right one."""
    path = tmp_path / "vocabulary.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        ClipTokenizer(path)
