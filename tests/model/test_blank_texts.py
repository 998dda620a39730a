"""Texts of which cleaning leaves nothing: `empty text` for embed and plan; TextEncoder.encode embeds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioclip_beam.model import ClipTokenizer, TextEncoder
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.inference.shared_encoder import load_encoder
from audioclip_beam.pipeline.search import QueryError
from audioclip_beam.pipeline.search.queries import read_queries
from tests.support.corpus import read, write_jsonl

BLANK = {
    "nothing": "",
    "white space": " \t\u3000\xa0",
    "control characters": "\x00\x01\x7f",
    "a byte order mark": "\ufeff",
    "an entity": "&nbsp;",
    "an entity without its end": "&nbsp",
    "entities of entities": "&amp;nbsp;&#160;&#x3000;",
    "an entity of full width": "＆nbsp;",
    "colours of a terminal": "\x1b[0m\x1b[1;31m \n",
    "white space in another encoding": "Â\xa0",
}
TEXTS = [
    "dog",
    "!",
    "&",
    "&lt;",
    "é",
    "猫",
    "дом",
    "дa",
    "🎸",
    "\ue000",
    "&nbsp;dog",
    "&nbspdog",
    "\u0301",
    "&copy",
    "&bogus;",
]
TEXTS += ["\x1b[31mred\x1b[0m", "\u0600", "<|endoftext|>", "0", "…", "\u200bx", "<b></b>", "&#65;"]
TEXTS += ["\u200b", "\xad", "\u202e", "&#8203;"]  # invisible, but the model has tokens for them


@pytest.mark.parametrize("text", BLANK.values(), ids=BLANK)
def test_blank(tokenizer: ClipTokenizer, text: str) -> None:
    """The model has no token of it."""
    assert tokenizer.blank_places(["dog", text, text]) == [1, 2]
    assert tokenizer.encode(text) == []


@pytest.mark.parametrize("text", TEXTS)
def test_not_blank(tokenizer: ClipTokenizer, text: str) -> None:
    """A sign is enough."""
    assert tokenizer.blank_places([text, f" {text} \x00"]) == []
    assert tokenizer.encode(text)


@pytest.mark.parametrize("prompt", ["{}", "a sound of {}", "<{}>", "&{};"])
def test_the_head_says_so_by_place(small_head: str, vocabulary: Path, prompt: str) -> None:
    """Without the prompt, in measuring as in embedding; the other texts are as without them."""
    settings = TextSettings(small_head, device="cpu", tokenizer_path=str(vocabulary), prompt=prompt)
    encoder = TEXT.load(settings, TEXT.read(settings.file_paths()), "cpu")
    texts = ["a dog", *BLANK.values(), "rain", *BLANK.values()]
    encoding, expected = encoder.encode_rows(texts), encoder.encode_rows(["a dog", "rain"])
    blank = [place for place, text in enumerate(texts) if text not in ("a dog", "rain")]
    assert sorted(encoding.errors) == blank
    assert {error.reason for error in encoding.errors.values()} == {"empty text"}
    assert np.isnan(encoding.vectors[blank]).all()
    np.testing.assert_allclose(encoding.vectors[[0, 1 + len(BLANK)]], expected.vectors, atol=1e-5)
    assert encoding.work.units == expected.work.units
    measured = TEXT.measurer(settings, encoder.info, settings.file_paths().__getitem__)(texts)
    assert np.flatnonzero(measured.rejected).tolist() == blank
    assert measured.units == encoding.work.units
    assert not encoder.encode_rows(["", " "]).work.items


def test_the_public_door_embeds_them(small_head: str, vocabulary: Path) -> None:
    """As the original does: texts that clean to the same have the same vector."""
    with pytest.warns(UserWarning, match="not AudioCLIP's"):
        encoder = TextEncoder.load(small_head, device="cpu", tokenizer_path=vocabulary)
    vectors = encoder.encode(["", "dog", " ", "&nbsp;", "\x00"])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[[0, 0]], vectors[[2, 3]], atol=1e-6)
    np.testing.assert_allclose(vectors[1], encoder.encode(["dog"])[0], atol=1e-5)


def test_embed_and_plan_count_the_same(
    small_head: str, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rejected rows have the reason and the text; a run whose snapshot is of an earlier rule does not reuse its vectors."""
    rows = [{"id": f"b{number}", "text": text} for number, text in enumerate(BLANK.values())]
    write_jsonl(tmp_path / "a.jsonl", [*rows, {"id": "a", "text": "dog"}])
    flags = ["--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--id_field", "id"]
    flags += ["--checkpoint", small_head, "--tokenizer_path", str(vocabulary), "--prompt", "a sound of {}"]
    assert main(["plan", *flags]) == 0
    planned = capsys.readouterr().out
    assert f"{len(BLANK)} rejected" in planned
    assert main(["embed", *flags]) == 0
    assert f"1 embedded + 0 reused + {len(BLANK)} rejected (empty text {len(BLANK)})" in capsys.readouterr().out
    rejected = read(tmp_path / "out", "rejected")
    assert set(rejected["reason"].to_pylist()) == {"empty text"}
    assert set(zip(rejected["id"].to_pylist(), rejected["text"].to_pylist(), strict=True)) == {
        (row["id"], row["text"]) for row in rows
    }


def test_a_snapshot_of_an_earlier_rule(
    small_head: str,
    vocabulary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its vectors of blank texts do not survive, though neither options nor shards nor the program's version changed."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}, {"text": "&nbsp;"}])
    flags = ["--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]
    flags += ["--checkpoint", small_head, "--tokenizer_path", str(vocabulary)]
    with monkeypatch.context() as patch:
        patch.setattr(ClipTokenizer, "blank_places", lambda tokenizer, texts: [])
        for module in ("model.checkpoint", "pipeline.prepare.unchanged"):
            patch.setattr(f"audioclip_beam.{module}.SCHEME", "1")
        assert main(["embed", *flags]) == 0
    assert "2 embedded" in capsys.readouterr().out
    load_encoder(
        TEXT, TextSettings(small_head, device="cpu", tokenizer_path=str(vocabulary), normalize=True)
    )  # another
    assert main(["embed", *flags]) == 0
    assert "2 read = 1 embedded + 0 reused + 1 rejected (empty text 1)" in capsys.readouterr().out
    assert main(["embed", *flags]) == 0
    assert "unchanged since" in capsys.readouterr().out


class _Found:
    """The model of a query, found."""

    warning = ""

    def __init__(self, encoder: Any) -> None:
        self.encoder = lambda: encoder


def test_a_blank_query(small_head: str, vocabulary: Path) -> None:
    """`search` refuses it by name."""
    settings = TextSettings(small_head, device="cpu", tokenizer_path=str(vocabulary))
    encoder = TEXT.load(settings, TEXT.read(settings.file_paths()), "cpu")
    with pytest.raises(QueryError, match="the query '&nbsp;' is blank for the model"):
        read_queries(["&nbsp;"], encoder.info.dim, lambda name: _Found(encoder))
