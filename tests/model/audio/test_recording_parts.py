"""The parts of recordings that are rows: the lengths of recordings, their cuts, and the samples of each part."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioclip_beam.model.audio import AudioEncoder, Track
from audioclip_beam.model.audio.parts import Heard, Span, decode_spans, entry_key, entry_span, listen, part_hash, spans
from audioclip_beam.model.audio.settings import AudioSettings
from audioclip_beam.model.audio.sndfile import AudioError
from audioclip_beam.model.head import ContentError
from audioclip_beam.model.media import Entry
from tests.support.sound_files import endless_flac, sound_file, with_wav_lengths

FORMATS = [
    ("WAV", None),
    ("FLAC", None),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
    ("AIFF", None),
    ("CAF", None),
]


def _decoded(data: bytes) -> np.ndarray:
    class Forward(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    blocks = []
    with Forward(io.BytesIO(data)) as file:
        try:
            while len(block := file.read(128, dtype="float32", always_2d=True)):
                blocks.append(block)
        except soundfile.LibsndfileError:
            pass
    return np.concatenate(blocks)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize("part", [1.0, 0.6])
def test_the_length_is_what_can_be_decoded(kind: str, subtype: str | None, part: float) -> None:
    """Also of files that are cut, whatever their headers say."""
    data = sound_file(kind, subtype, samples=48_000 * 2 + 77, rate=48_000, channels=2)
    data = data[: int(part * len(data))]
    if kind == "CAF" and part < 1:  # libsndfile opens no such file
        with pytest.raises(AudioError, match="malformed"):
            listen(io.BytesIO(data))
        return
    found = len(_decoded(data))
    assert listen(io.BytesIO(data)) == (found, 48_000, 2)
    assert abs(found - part * 48_000 * 2) < 20_000


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_lengths_that_a_pipe_leaves_open_come_from_the_file(length: int) -> None:
    assert listen(io.BytesIO(with_wav_lengths(sound_file(samples=5000), length))).samples == 5000


def test_a_header_that_claims_a_year_is_not_believed() -> None:
    assert listen(io.BytesIO(endless_flac())).samples == 4410


@pytest.mark.parametrize(("data", "reason"), [(b"RIFF", "not decodable"), (sound_file(samples=0), "too short")])
def test_what_is_not_a_recording_is_an_error(data: bytes, reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        listen(io.BytesIO(data))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry(3.5, None), "begins at 3.5 s (offset 3.5, duration up to the end)"),
        (Entry(2, 1.5), "begins at 2 s (offset 2, duration 1.5)"),
        (Entry(0.5, 2), "ends at 2.5 s (offset 0.5, duration 2)"),
    ],
)
def test_an_entry_behind_the_end_of_its_recording(entry: Entry, message: str) -> None:
    """The error says where which of them ends, with both fields as the list has them."""
    with pytest.raises(AudioError) as caught:
        entry_span(Heard(16_000, 8000, 1), entry)
    expected = f"the recording has 2 s, and the entry {message}: correct the list"
    assert (caught.value.reason, caught.value.detail) == ("too short", expected)


@pytest.mark.parametrize(("window", "hop"), [(0.25, None), (0.25, 0.1), (0.1, 0.03), (3.0, None)])
@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_parts_are_the_windows_of_the_encoder(window: float, hop: float | None, rate: int) -> None:
    """To the sample, whatever the format; MP3 is decoded from its start."""
    for kind, subtype in (("WAV", None), ("FLAC", None), ("MP3", None)):
        data = sound_file(kind, subtype, samples=rate + 123, rate=rate)
        cut = list(AudioEncoder.windows(data, window, hop))
        found = list(spans(listen(io.BytesIO(data)), AudioSettings("untrained", window=window, hop=hop)))
        assert found == [Span(each.first, each.first + each.samples.shape[1]) for each in cut]
        decoded = list(decode_spans(io.BytesIO(data), found))
        for one, other in zip(decoded, cut, strict=True):
            assert isinstance(one, Track)
            np.testing.assert_array_equal(one.samples, other.samples)
            assert (one.first, one.sample_rate) == (other.first, other.sample_rate)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_some_parts_of_a_recording(kind: str, subtype: str | None, tmp_path: Path) -> None:
    """With gaps and overlaps, from bytes, a path's file, or a file without a descriptor."""
    data = sound_file(kind, subtype, samples=90_000, rate=48_000)
    whole = _decoded(data)
    chosen = [Span(0, 10), Span(5, 9000), Span(8000, 20_000), Span(60_000, 60_001), Span(70_000, 90_000)]
    (tmp_path / "a").write_bytes(data)
    with (tmp_path / "a").open("rb") as file:
        for opened in (io.BytesIO(data), file):
            parts: Sequence[Track | ContentError] = list(decode_spans(opened, chosen))
            for span, part in zip(chosen, parts, strict=True):
                assert isinstance(part, Track), part
                expected = whole[span.first : span.stop].T
                tolerance = 1e-4 if subtype else 0.0  # a lossy codec that was entered in the middle
                np.testing.assert_allclose(part.samples, expected, atol=tolerance)
            assert not opened.closed


def test_parts_behind_damage_stay() -> None:
    """A block of FLAC that is damaged costs the parts that it belongs to; what a header promises and is not there, too."""
    data = bytearray(sound_file("FLAC", samples=441_000))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    parts = list(decode_spans(io.BytesIO(bytes(data)), [Span(n * 44_100, (n + 1) * 44_100) for n in range(12)]))
    lost = [number for number, part in enumerate(parts) if isinstance(part, ContentError)]
    assert lost in ([4, 5, 10, 11], [4, 10, 11], [5, 10, 11])
    assert all(part.reason == "not decodable" for part in parts if isinstance(part, ContentError))


def test_whole_recordings_have_a_limit() -> None:
    long = sound_file(samples=8000 * 301, rate=8000)
    with pytest.raises(AudioError, match="too long: it has more than 5 minutes"):
        list(spans(listen(io.BytesIO(long)), AudioSettings("untrained")))
    assert list(spans(listen(io.BytesIO(sound_file(samples=800))), AudioSettings("untrained"))) == [Span(0, 800)]


def test_hashes_of_parts_are_neighbours() -> None:
    """An entry of a list has others than the whole file."""
    whole, entry = entry_key(bytes(16), None), entry_key(bytes(16), Span(0, 100))
    assert len({whole, entry, entry_key(bytes(15) + b"1", None), entry_key(bytes(16), Span(1, 100))}) == 4
    assert [part_hash(whole, number)[12:] for number in (0, 1, 256)] == [b"\0\0\0\0", b"\0\0\0\1", b"\0\0\1\0"]


def test_windows_of_a_format_without_seeking_keep_nothing_of_each_other() -> None:
    """Each has its own samples: else the memory of a long MP3 would grow with the square of its length."""
    data = sound_file("MP3", samples=8000 * 20, rate=8000)
    chosen = [Span(first, first + 4000) for first in range(0, 8000 * 20, 4000)]
    tracks = [track for track in decode_spans(io.BytesIO(data), chosen) if isinstance(track, Track)]
    assert len(tracks) == 40
    sizes = [track.samples.base.nbytes if track.samples.base is not None else 0 for track in tracks]
    assert max(sizes) <= 2 * 4 * 4000
