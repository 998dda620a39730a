"""Recordings: what can be read, why others cannot, and windows that are exact to the sample."""

from __future__ import annotations

import io
import math
import os
import pickle
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.model.audio import AudioEncoder, AudioError, Track
from audioclip_beam.model.audio.prepare import prepare
from audioclip_beam.model.audio.recordings import MAX_CHANNELS
from tests.support.preloaded import preloaded_programs
from tests.support.sound_files import endless_flac, sound_file, with_wav_lengths

FORMATS = [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None)]
FORMATS += [("AU", None), ("W64", None), ("CAF", None)]


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_formats_are_found_by_content(tmp_path: Path, kind: str, subtype: str | None) -> None:
    """A path of any suffix and the bytes of the file give the same samples."""
    rate = 48000 if subtype == "OPUS" else 44100
    data = sound_file(kind, subtype, samples=rate, rate=rate)
    (tmp_path / "sound.raw").write_bytes(data)
    from_bytes, from_path = prepare(data, None, False), prepare(tmp_path / "sound.raw", None, False)
    assert from_bytes.duration == pytest.approx(1.0, abs=0.06)
    np.testing.assert_array_equal(from_bytes.samples, from_path.samples)
    assert np.abs(from_bytes.samples).max() > 3000


def _reason(content: object, rate: int | None = None) -> tuple[str, str]:
    with pytest.raises(AudioError) as caught:
        prepare(content, rate, False)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty file", "0 bytes"),
        (b"some text\n" * 500, "not decodable", "libsndfile: Format not recognised"),
        (bytes(1000), "not decodable", "Format not recognised"),
        (sound_file()[:30], "not decodable", "No 'data' chunk"),
        (sound_file("FLAC", samples=90_000)[:90_000], "not decodable", "lost sync"),
        (sound_file(samples=0), "too short", "no sample"),
        (sound_file(samples=1, rate=192_000), "too short", "1 samples at 192,000 Hz are less than one"),
        (sound_file(rate=999), "not decodable", "a sample rate of 999 Hz: 1,000 to 768,000 Hz"),
        (sound_file("WAV", "PCM_U8", samples=8000 * 300 + 1, rate=8000), "too long", "windows"),
    ],
)
def test_files_that_cannot_be_embedded_say_why(tmp_path: Path, data: bytes, reason: str, detail: str) -> None:
    """As bytes and as a file whose name is a sound's."""
    (tmp_path / "sound.wav").write_bytes(data)
    for content in (data, tmp_path / "sound.wav"):
        found = _reason(content)
        assert found[0] == reason
        assert detail in found[1]


def test_paths_that_are_not_sound_files(tmp_path: Path) -> None:
    """A pipe does not make the reader wait."""
    os.mkfifo(tmp_path / "pipe")
    assert _reason(tmp_path / "nothing.wav") == (
        "missing file",
        f"{tmp_path}/nothing.wav cannot be opened: No such file or directory",
    )
    assert _reason(tmp_path / "a\nb.wav")[1].startswith(rf"{tmp_path}/a\nb.wav cannot be opened: ")
    assert _reason(tmp_path)[0] == _reason(tmp_path / "pipe")[0] == _reason("/dev/zero")[0] == "not decodable"
    assert _reason("a\0b")[0] == "missing file"
    assert _reason("gs://bucket/a.wav") == ("wrong type", "gs://bucket/a.wav is a URL: read it, and pass its bytes")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 20_000.0])
def test_floats_out_of_range_are_named(bad: float) -> None:
    """NaN, infinity and integers that were not divided, in files and arrays."""
    samples = np.zeros((3, 2), np.float32)
    samples[2, 1] = bad
    file = io.BytesIO()
    soundfile.write(file, samples, 44100, format="WAV", subtype="FLOAT")
    for content in (file.getvalue(), samples.T):
        reason, detail = _reason(content, 44100)
        assert reason == "not decodable"
        assert detail.startswith("sample 2 ")
        assert ("pass int16" in detail) == (bad == 20_000)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((4410, 2), np.float32), r"4,410 channels, at most 8 .*pass array\.T"),
        (np.zeros(9, np.int32), "int32: pass int16"),
        (np.zeros(9, np.bool_), "bool: pass int16"),
        (np.zeros(9, np.complex64), "complex64: pass int16"),
        (np.array(["a"]), "pass int16"),
        (np.zeros((1, 1, 9), np.float32), r"shape \[1, 1, 9\]"),
        (np.float32(1), "not a path, bytes, an array or a Track"),
        (None, "null, not a path"),
        ([0.1, 0.2], "a list, not a path"),
    ],
)
def test_values_that_are_not_recordings(samples: object, words: str) -> None:
    with pytest.raises(AudioError, match=words) as caught:
        prepare(samples, 44100, False)
    assert caught.value.reason == "wrong type"


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_wav_files_from_a_pipe_have_the_length_of_the_file(tmp_path: Path, length: int) -> None:
    """A header without lengths is read to the end of the file; an empty file with a chunk behind its data stays empty."""
    data = sound_file(samples=50_000)
    (tmp_path / "a.wav").write_bytes(with_wav_lengths(data, length))
    for content in (with_wav_lengths(data, length), tmp_path / "a.wav"):
        np.testing.assert_array_equal(prepare(content, None, False).samples, prepare(data, None, False).samples)
    empty = sound_file(samples=0) + b"LIST\4\0\0\0INFO"
    assert _reason(empty)[0] == "too short"


def test_the_decoded_length_counts(tmp_path: Path) -> None:
    """Half of an MP3 whose header claims the whole, and a FLAC that claims 2^36 - 1 samples."""
    mp3 = sound_file("MP3", samples=44100 * 3)
    assert 1.3 < prepare(mp3[: len(mp3) // 2], None, False).duration < 1.5
    assert prepare(endless_flac(), None, False).duration == 0.1
    assert [track.samples.shape for track in AudioEncoder.windows(endless_flac(), 0.05)] == [(1, 2205)] * 2


def test_types_of_arrays_and_files_agree() -> None:
    """int16, floats of all sizes, big-endian and strided arrays and a file of the same samples are the same recording."""
    integers = np.random.default_rng(0).integers(-32768, 32767, (2, 999)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, integers.T, 22050, format="WAV", subtype="PCM_16")
    expected = prepare(file.getvalue(), None, False).samples
    floats = integers / 32768
    for array in (integers, integers.astype(">i2"), floats, floats.astype(np.float32), np.asfortranarray(floats)):
        np.testing.assert_array_equal(prepare(array, 22050, False).samples, expected)
        np.testing.assert_array_equal(prepare(Track(array, 22050), None, False).samples, expected)


def test_channels_are_averaged_or_kept() -> None:
    """The mean by default; variant jina keeps two channels, and averages more."""
    samples = np.random.default_rng(0).random((MAX_CHANNELS, 100)).astype(np.float32)
    for channels in range(1, MAX_CHANNELS + 1):
        some = samples[:channels]
        np.testing.assert_allclose(prepare(some, 44100, False).samples[0] / 32768, some.mean(0), rtol=1e-6)
        jina = prepare(some, 44100, True).samples
        np.testing.assert_allclose(jina, some if channels <= 2 else some.mean(0)[None], rtol=1e-6)


def _plain_windows(n: int, window: float, hop: float, rate: int) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 sample of each window, by the rule's words; seconds are the decimals that one reads."""
    length = round(Fraction(str(window)) * rate)
    if n * 10 <= length * 11:
        yield 0, n
        return
    for k in range(n):
        start = round(k * Fraction(str(hop)) * rate)
        if start + length >= n:
            yield n - length, n
            return
        yield start, start + length


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9_000),
    window=st.integers(20, 3000),
    hop_share=st.integers(1, 8),
    rate=st.sampled_from([1000, 8000, 11025]),
    channels=st.integers(1, 3),
)
def test_windows_are_exact_to_the_sample(n: int, window: int, hop_share: int, rate: int, channels: int) -> None:
    """Any length, window, hop and rate: each window has exactly the samples that the rule says, in the recording's rate."""
    samples = np.arange(n * channels, dtype=np.int64).astype(np.int16).reshape(channels, n)
    seconds, hop = window / 1000, math.ceil(window / hop_share) / 1000
    found = list(AudioEncoder.windows(samples, seconds, hop, sample_rate=rate))
    expected = list(_plain_windows(n, seconds, hop, rate))
    assert [(track.first, track.first + track.samples.shape[1]) for track in found] == expected
    for track, (start, stop) in zip(found, expected, strict=True):
        assert track.sample_rate == rate
        assert (track.start, track.end) == (start / rate, stop / rate)
        np.testing.assert_array_equal(track.samples * 32768, samples[:, start:stop])


def test_a_recording_of_up_to_1_1_windows_is_whole() -> None:
    for samples, windows in ((1, 1), (11_000, 1), (11_001, 2), (20_000, 2), (20_001, 3)):
        assert len(list(AudioEncoder.windows(np.zeros(samples), 1, sample_rate=10_000))) == windows


def test_windows_before_damage_are_yielded() -> None:
    """The error comes at the place that cannot be decoded."""
    data = sound_file("FLAC", samples=44100 * 4)
    windows = AudioEncoder.windows(data[: len(data) * 5 // 8], 0.5)
    assert [next(windows).first for _ in range(3)] == [0, 22050, 44100]
    with pytest.raises(AudioError, match="lost sync"):
        list(windows)


@pytest.mark.parametrize(
    ("window", "hop", "words"),
    [
        (0, None, "window=0: choose 0.001 to 300"),
        (301, None, "window=301"),
        (math.nan, None, "window=nan"),
        (10, 11, "hop=11: choose 0.001 to 10 seconds, the window"),
        (10, 0, "hop=0"),
    ],
)
def test_windows_that_cannot_be_cut(window: float, hop: float | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(AudioEncoder.windows(np.zeros(9), window, hop, sample_rate=8000))


LONG = """
import sys
from audioclip_beam.model.audio import AudioEncoder
from tests.support.memory import peak
before = peak()
print(sum(1 for _ in AudioEncoder.windows(sys.argv[1])), peak() - before)
"""


@pytest.mark.slow
def test_windows_of_a_long_file_take_little_memory(tmp_path: Path) -> None:
    """Twenty minutes of eight channels, 614 MB as floats, are read in less than 100 MB."""
    rate, block = 16_000, np.zeros((16_000 * 60, 8), np.int16)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", rate, 8, "PCM_16") as file:
        for _ in range(20):
            file.write(block)
    command = [str(preloaded_programs() / "python"), "-c", LONG, str(tmp_path / "long.flac")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    windows, kilobytes = map(int, done.stdout.split())
    assert windows == 120
    assert kilobytes < 100_000
