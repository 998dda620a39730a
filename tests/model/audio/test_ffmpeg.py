"""Recordings in FFmpeg's formats: real files, made by PyAV, whole, damaged, and without the extra."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audioclip_beam.model.audio import AudioError, Track
from audioclip_beam.model.audio.encoder import AudioEncoder
from audioclip_beam.model.audio.parts import listen
from audioclip_beam.model.audio.recordings import blocks, open_recording
from audioclip_beam.model.audio.sndfile import FileOfBytes
from tests.support.ffmpeg_files import FORMATS, ffmpeg_file, tone
from tests.support.plain_audio import difference, encoder
from tests.support.preloaded import preloaded_programs

pytest.importorskip("av", reason="PyAV, the extra ffmpeg, is not installed")

LOSS = {"m4a": 0.1, "mp4": 0.1, "aac": 0.1, "wma": 0.1, "webm": 0.1, "mka": 1e-4}  # of the codecs, as a share


def decoded(content: bytes | str) -> np.ndarray:
    """Return all samples of a recording, [n, channels]."""
    recording = open_recording(content)
    try:
        return np.concatenate(list(blocks(recording)))
    finally:
        recording.close()


def lag(actual: np.ndarray, expected: np.ndarray) -> int:
    """Return how many samples the first channel of [n, channels] comes later than expected."""
    size = 1 << (len(actual) + len(expected)).bit_length()
    spectrum = np.fft.rfft(actual[:, 0], size) * np.conj(np.fft.rfft(expected[:, 0], size))
    place = int(np.fft.irfft(spectrum).argmax())
    return place if place < size // 2 else place - size


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_is_decoded(tmp_path: Path, suffix: str, channels: int) -> None:
    """Bytes and files of any name have the samples that were encoded, up to the codec's loss and delay."""
    samples = tone(48000, channels)
    content = ffmpeg_file(suffix, samples)
    (tmp_path / "a.wav").write_bytes(content)
    found = decoded(content)
    np.testing.assert_array_equal(decoded(str(tmp_path / "a.wav")), found)
    assert found.dtype == np.float32
    assert found.shape[1] == channels
    late = lag(found, samples.T)
    assert abs(late) <= (0 if suffix in ("m4a", "mp4", "webm", "mka") else 2048), "aac and wma do not tell their delay"
    start, stop = 6000, 40000
    assert difference(found[start + late : stop + late], samples.T[start:stop]) < LOSS[suffix]
    assert listen(FileOfBytes(content)).samples == len(found)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_f64le"])
def test_samples_of_every_type_have_full_scale_1(codec: str) -> None:
    samples = tone(3000, 2)
    assert np.abs(decoded(ffmpeg_file("mka", samples, codec=codec)).T - samples).max() < 1 / (
        100 if codec == "pcm_u8" else 30000
    )


def test_the_encoder_embeds_what_the_decoder_gives() -> None:
    """The same as the decoded samples by themselves; windows are cut from these."""
    content = ffmpeg_file("m4a", tone(24000, 2))
    samples = decoded(content).T
    one = encoder()
    assert difference(one.encode([content])[0], one.encode([Track(samples, 48000)])[0]) < 5e-6
    windows = list(AudioEncoder.windows(content, 0.2, 0.1))
    assert [window.first for window in windows] == [0, 4800, 9600, 14400, len(samples[0]) - 9600]
    for window in windows:
        np.testing.assert_array_equal(window.samples, samples[:, window.first : window.first + 9600])


def test_files_without_a_length_in_the_header_are_measured_by_decoding() -> None:
    """A webm file that a browser recorded has none."""
    content = ffmpeg_file("webm", tone(48000))
    place = content.index(b"\x44\x89\x88")  # the duration in Matroska's segment information; EC is a void element
    without = content[:place] + b"\xec\x89" + bytes(9) + content[place + 11 :]
    assert open_recording(without).promised is None
    assert listen(FileOfBytes(without)).samples == len(decoded(without))


@pytest.mark.parametrize("suffix", FORMATS)
def test_damage_is_an_error_or_the_rest(suffix: str) -> None:
    """Half a file, and files with random bytes in them, give fewer samples or an AudioError, never another error."""
    content, random = ffmpeg_file(suffix, tone(20000)), np.random.default_rng(0)
    whole, reasons = len(decoded(content)), set()
    for trial in range(60):
        damaged = bytearray(content[: len(content) // 2] if trial == 0 else content)
        for place in random.integers(0, len(damaged), trial % 7):
            damaged[place] = random.integers(256)
        try:
            assert len(decoded(bytes(damaged))) <= 2 * whole
        except AudioError as error:
            reasons.add(error.reason)
    assert reasons <= {"not decodable", "too short"}


def test_containers_without_sound() -> None:
    """The error of a film without a sound track."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as opened:
        stream = opened.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        opened.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        opened.mux(stream.encode(None))
    with pytest.raises(AudioError, match="not decodable: it has no sound track"):
        open_recording(file.getvalue())


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    content = ffmpeg_file(suffix, tone(9000))
    monkeypatch.setitem(sys.modules, "av", None)
    error = encoder().encode_rows([content]).errors[0]
    assert error.reason == "not decodable"
    names = {"wma": "Windows Media", "aac": "AAC", "webm": "Matroska", "mka": "Matroska"}
    words = f"it is {names.get(suffix, 'MPEG-4')}, which needs FFmpeg: pip install 'audioclip-beam[ffmpeg]'"
    assert error.detail == words


LONG = """
import sys
from audioclip_beam.model.audio import AudioEncoder
from tests.support.memory import peak
before = peak()
print(sum(1 for _ in AudioEncoder.windows(sys.argv[1])), peak() - before)
"""


@pytest.mark.slow
def test_windows_of_a_long_file_take_little_memory(tmp_path: Path) -> None:
    """Five minutes of two channels, 115 MB as floats, are read in less than 70 MB."""
    path, minute = tmp_path / "long.mka", tone(48000 * 60, 2)
    path.write_bytes(ffmpeg_file("mka", np.tile(minute, 5)))
    command = [str(preloaded_programs() / "python"), "-c", LONG, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    windows, kilobytes = map(int, done.stdout.split())
    assert windows == 30
    assert kilobytes < 70_000
