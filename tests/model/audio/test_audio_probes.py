"""The fingerprint's parts for decoders and the resampler: they change only if a format is decoded differently."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from audioclip_beam.model.audio import probes
from audioclip_beam.model.audio.encoder import model_info
from audioclip_beam.model.audio.settings import AudioSettings
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.fingerprint import describe_changes
from tests.support.plain_audio import encoder

LIBSNDFILE = ("wav", "flac", "ogg", "opus", "mp3")
FFMPEG = ("aac", "wma", "webm")


@pytest.fixture(autouse=True)
def _no_memo() -> Iterator[None]:
    probes._part.cache_clear()
    yield
    probes._part.cache_clear()


def parts() -> dict[str, str]:
    """Return the parts of decoders, found again."""
    probes._part.cache_clear()
    return probes.decoder_parts()


def damage(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    """Have libsndfile's samples differ by an amount."""
    read = soundfile.SoundFile.read

    def other(self: Any, *arguments: Any, **options: Any) -> Any:
        return read(self, *arguments, **options) + np.float32(amount)

    monkeypatch.setattr(soundfile.SoundFile, "read", other)


def test_this_machine_decodes_every_format_as_stored() -> None:
    """So the fingerprint has no versions of libsndfile, FFmpeg and soxr."""
    assert parts() == dict.fromkeys((*LIBSNDFILE, *FFMPEG, "soxr"), "1")


def test_the_fingerprint_has_them() -> None:
    found = encoder().info.fingerprint_parts
    assert {name: found[name] for name in parts()} == parts()


def test_last_bits_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ between CPUs."""
    damage(monkeypatch, 7e-5)
    assert set(parts().values()) == {"1"}


def test_formats_that_decode_differently_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other formats keep their parts, and the digest is the same on every CPU."""
    before = parts()
    damage(monkeypatch, 2e-3)
    after = parts()
    assert {name for name in after if after[name] != before[name]} == set(LIBSNDFILE)
    assert f"mp3 1 -> {after['mp3']}" in describe_changes(after, before)
    damage(monkeypatch, 1e-8)
    assert parts() == after


def test_a_decoder_that_loses_samples_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **options: read(self, n, **options)[:-1])
    assert {name for name, part in parts().items() if part != "1"} == set(LIBSNDFILE)


def test_another_resampler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    resample = soxr.resample
    monkeypatch.setattr(soxr, "resample", lambda x, rate, to, quality: resample(x, rate, to, quality="LQ"))
    found = parts()
    assert [name for name, part in found.items() if part != "1"] == ["soxr"]
    assert len(found["soxr"]) == 16


def test_formats_that_are_not_installed_count_as_agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that installing the extra ffmpeg embeds nothing again."""
    before = parts()
    monkeypatch.setitem(sys.modules, "av", None)
    assert parts() == before


def test_a_decoder_that_fails_changes_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    assert {parts()[name] for name in LIBSNDFILE} == {"not decodable"}


def test_window_and_hop_are_in_the_fingerprint() -> None:
    """Other windows have other fingerprints, equal ones the same."""
    checkpoint = Checkpoint({"audio.fc.weight": torch.zeros(4, 8)}, "small", "0" * 64, True, "audio")
    options: list[dict[str, Any]] = [
        {},
        {"window": 10},
        {"window": 10, "hop": 5},
        {"window": 123.4567},
        {"window": 123.457},
    ]
    fingerprints = [model_info(checkpoint, AudioSettings("untrained", **each)).fingerprint for each in options]
    assert len(set(fingerprints)) == len(options)
    assert model_info(checkpoint, AudioSettings("untrained", window=10.0, hop=10)).fingerprint == fingerprints[1]
