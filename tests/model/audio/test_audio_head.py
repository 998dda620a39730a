"""AUDIO: its windows, given as words, and the canary."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile

from audioclip_beam.model.audio.head import AUDIO
from audioclip_beam.model.audio.settings import AudioSettings
from audioclip_beam.pipeline.flags import defaults


def settings(**options: Any) -> AudioSettings:
    """Return the settings that options of `embed` ask for, as far as they are right."""
    found = AUDIO.settings({**defaults(), "head": "audio", **options})
    found.check()
    return found


@pytest.mark.parametrize(
    ("options", "window", "hop"),
    [
        ({}, 10.0, None),
        ({"window": "7.5"}, 7.5, None),
        ({"window": "7.5", "hop": "2"}, 7.5, 2.0),
        ({"hop": "2"}, 10.0, 2.0),
        ({"window": "whole"}, None, None),
        ({"variant": "jina"}, None, None),
        ({"variant": "jina", "window": "whole"}, None, None),
    ],
)
def test_windows(options: dict[str, Any], window: float | None, hop: float | None) -> None:
    """Recordings are cut every ten seconds by default; variant jina embeds them whole."""
    found = settings(**options)
    assert (found.window, found.hop) == (window, hop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "jina", "window": "10"}, "the variant jina embeds whole recordings; leave the window out"),
        ({"variant": "jina", "hop": "5"}, "hop=5.0: whole recordings have no hop; give a window as well"),
        ({"window": "whole", "hop": "5"}, "hop=5.0: whole recordings have no hop; give a window as well"),
        ({"hop": "10.5"}, "hop=10.5: choose 0.001 to 10 seconds, the window"),
        ({"window": "ten"}, "window='ten': it is neither whole nor 0.001 to 300 seconds"),
    ],
)
def test_windows_that_cannot_be_cut(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**options)


@pytest.mark.parametrize(
    ("options", "window", "hop"),
    [
        ({}, "10", "10"),
        ({"window": "10.0", "hop": "10"}, "10", "10"),
        ({"window": "0.125"}, "0.125", "0.125"),
        ({"window": "123.4567", "hop": "0.001"}, "123.4567", "0.001"),
        ({"window": "whole"}, "whole", "whole"),
    ],
)
def test_the_fingerprint_has_window_and_hop(options: dict[str, Any], window: str, hop: str) -> None:
    """Exactly, and equal ones in the same words."""
    parts = settings(**options).fingerprint_parts()
    assert (parts["window"], parts["hop"]) == (window, hop)
    assert AUDIO.fingerprint_faults(parts) == []
    assert AUDIO.settings_of(parts, {}).fingerprint_parts() == parts


def test_parts_of_a_fingerprint_that_are_wrong() -> None:
    parts = {"variant": "other", "window": "x", "hop": "-1"}
    assert [fault.partition(" ")[0] for fault in AUDIO.fingerprint_faults(parts)] == ["variant", "window", "hop"]


def test_the_canary_is_sound_in_every_bin() -> None:
    """Each is 0.2 seconds of 16 bits, neither silent nor clipped."""
    for content in AUDIO.canary().values():
        samples, rate = soundfile.read(io.BytesIO(content), dtype="int16")
        assert (rate, len(samples)) == (44100, 8820)
        assert 1000 < np.abs(samples.astype(np.int64)).max() < 32767
        assert (np.abs(np.fft.rfft(samples[:1654] / 32768.0)) > 0).all()
