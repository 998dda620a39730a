"""Fingerprints: what changes it, and how a change is reported."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from audioclip_beam.model import fingerprint as versions
from audioclip_beam.model.fingerprint import describe_changes
from tests.support.corpus import embed, write_jsonl


def test_changes_are_named_with_their_values() -> None:
    """Versions and options show both values, digests only their names; a part that is missing is unknown."""
    earlier = {"weights": "a" * 64, "dtype": "float32", "ftfy": "6.3.0"}
    parts = {"weights": "b" * 64, "dtype": "float32", "ftfy": "6.3.1", "regex": "2026.1.1"}
    assert describe_changes(parts, earlier) == "weights, ftfy 6.3.0 -> 6.3.1, regex unknown -> 2026.1.1"


@pytest.mark.slow
def test_another_tokenizer_version_embeds_everything_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade of ftfy, vectors of the old version are not reused, and the note names both versions."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}, {"text": "cat"}])
    first, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    monkeypatch.setattr(versions, "version", lambda name: "99.0" if name == "ftfy" else version(name))
    second, texts = embed(tmp_path / "a.jsonl", tmp_path / "out")
    assert sorted(texts) == ["cat", "dog"]
    assert second["fingerprint_parts"]["ftfy"] == "99.0"
    change = f"ftfy {version('ftfy')} -> 99.0"
    assert second["notes"] == [
        f"the fingerprint changed since {first['snapshot']} ({change}): its vectors are not reused"
    ]
