"""AudioEncoder: order, batches, errors by place, low memory, and what it refuses."""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audioclip_beam.model import device as device_module
from audioclip_beam.model import load_checkpoint
from audioclip_beam.model.audio import AudioEncoder, AudioError, Track, shapes
from audioclip_beam.model.audio import encoder as encoder_module
from audioclip_beam.model.audio.head import AUDIO
from audioclip_beam.model.audio.prepare import prepare
from audioclip_beam.model.audio.probes import decoder_parts
from audioclip_beam.model.audio.settings import AudioSettings
from audioclip_beam.model.checkpoint import CheckpointError
from audioclip_beam.model.device import HostCopy
from tests.support.paths import DATA
from tests.support.plain_audio import difference, encoder, plain_vector, rounding, spread
from tests.support.preloaded import preloaded_programs
from tests.support.sound_files import sound_file
from tests.support.tracks import track

TRACKS = [
    track(kind, n, 44100, 1, "float32", n) for kind in ("voice", "noise", "chirp") for n in (700, 2400, 2400, 4000)
]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> AudioEncoder:
    """The encoder of all tests, with a size of micro-batches of its own."""
    one = encoder()
    monkeypatch.setattr(one, "frames", encoder_module.BatchSize(400))
    return one


def _close(actual: Any, expected: Any, tolerance: float = 5e-6) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert difference(a, b) <= tolerance


@pytest.mark.parametrize(
    ("variant", "n", "threads"),
    [
        ("audioclip", 4, 1),
        pytest.param("audioclip", 3, 2, marks=pytest.mark.slow),
        pytest.param("jina", 12, 1, marks=pytest.mark.slow),
    ],
)
def test_a_vector_does_not_depend_on_its_batch(
    variant: str, n: int, threads: int, request: pytest.FixtureRequest
) -> None:
    """Any split of `n` tracks of three lengths, in any order, has the vectors of each alone, equal calls equal bits."""
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(threads)
    one, tracks = encoder(variant), TRACKS[:n]
    whole, order = one.encode(tracks), np.random.default_rng(0)
    for parts in (3, n):
        places = order.permutation(n)
        for part in np.array_split(places, parts):
            _close(one.encode([tracks[place] for place in part]), whole[part])
    np.testing.assert_array_equal(one.encode(tracks), whole)


@pytest.mark.slow
def test_stereo_and_mono_in_one_call() -> None:
    """With variant jina a track doubled to two channels has another vector than the mono track; else it has the same."""
    mono = TRACKS[1].samples[0]
    for variant, same in (("audioclip", True), ("jina", False)):
        first, second = encoder(variant).encode([mono, np.stack([mono, mono])], sample_rate=44100)
        assert (difference(second, first) < 5e-6) == same


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@example(rate=44100, seconds=0.0001, channels=1, kind="noise", dtype="int16", variant="jina")
@given(
    rate=st.one_of(st.sampled_from([8000, 16000, 22050, 44100, 48000, 96000, 192000]), st.integers(4000, 200_000)),
    seconds=st.floats(0.0001, 0.4),
    channels=st.integers(1, 8),
    kind=st.sampled_from(["voice", "noise", "chirp", "tone", "loud", "offset"]),
    dtype=st.sampled_from(["int16", "float32"]),
    variant=st.sampled_from(["audioclip", "jina"]),
)
def test_any_track_equals_the_plain_head(  # noqa: PLR0917
    rate: int, seconds: float, channels: int, kind: str, dtype: str, variant: str
) -> None:
    """Within five times what rounding, or another order of summation, makes of the plain head."""
    one = track(kind, max(int(seconds * rate), rate // 40000 + 1), rate, channels, dtype, 7)
    jina = variant == "jina"
    found = difference(encoder(variant).encode([one])[0], plain_vector(one, jina))
    assert found <= 2e-5 or found <= 5 * max(spread(one, jina), rounding(one, jina))


def test_errors_are_at_their_places(loaded: AudioEncoder, tmp_path: Path) -> None:
    """The others have the vectors that they have without them; columns and counts are those of good tracks."""
    good = sound_file(samples=3000, channels=2, rate=22050)
    contents: list[Any] = [good, b"", TRACKS[0], b"text", str(tmp_path / "none.wav"), None, np.zeros(0), good, 3]
    encoding = loaded.encode_rows(contents, sample_rate=44100)
    reasons = {place: error.reason for place, error in encoding.errors.items()}
    assert reasons == {
        1: "empty file",
        3: "not decodable",
        4: "missing file",
        5: "wrong type",
        6: "too short",
        8: "wrong type",
    }
    assert np.isnan(encoding.vectors).all(1).tolist() == [place in reasons for place in range(len(contents))]
    _close(encoding.vectors[[0, 2, 7]], loaded.encode([good, TRACKS[0], good]))
    np.testing.assert_array_equal(encoding.vectors[0], encoding.vectors[7])
    assert encoding.columns["n_frames"].tolist() == [9, 0, 1, 0, 0, 0, 0, 9, 0]
    assert encoding.columns["channels"].tolist() == [2, 0, 1, 0, 0, 0, 0, 2, 0]
    assert encoding.columns["sample_rate"].tolist() == [22050, 0, 44100, 0, 0, 0, 0, 22050, 0]
    np.testing.assert_allclose(encoding.columns["duration"][[0, 2]], [3000 / 22050, 700 / 44100])
    assert (encoding.work.items, encoding.work.units) == (2, 10), "equal contents are embedded once"


def test_encode_raises_the_first_error(loaded: AudioEncoder) -> None:
    with pytest.raises(AudioError, match=r"^empty file: track 1: it has 0 bytes$"):
        loaded.encode([TRACKS[0], b"", None])
    with pytest.raises(TypeError, match=r"^track 1: wrong type: it is null, not a path, bytes, an array or a Track$"):
        loaded.encode([TRACKS[0], None])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError, match=r"track 0: missing file: .+ cannot be opened: No such file"):
        loaded.encode(["none.wav"])
    with pytest.raises(TypeError, match="an array without a sample rate: pass sample_rate, or a Track"):
        loaded.encode([np.zeros(99)])
    with pytest.raises(AudioError, match="too long: track 0: it has more than 5 minutes: embed windows of it"):
        loaded.encode([np.zeros(8000 * 301, np.int16)], sample_rate=8000)


@pytest.mark.parametrize("tracks", ["a.wav", b"RIFF", Path("a.wav"), np.zeros(9), np.zeros((2, 9)), TRACKS[0], None, 3])
def test_one_recording_is_not_a_list(loaded: AudioEncoder, tracks: Any) -> None:
    with pytest.raises(TypeError, match=r"tracks must be a list of recordings, not \w+: write \[track\]"):
        loaded.encode(tracks, sample_rate=44100)


@pytest.mark.parametrize(
    ("rate", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (999, ValueError),
        (44100.5, TypeError),
        ("44100", TypeError),
        (True, ValueError),
    ],
)
def test_sample_rates_that_are_none(loaded: AudioEncoder, rate: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"sample_rate={re.escape(repr(rate))}"):
        loaded.encode([np.zeros(9)], sample_rate=rate)
    if error is ValueError:
        with pytest.raises(ValueError, match="sample_rate="):
            loaded.encode([Track(np.zeros(9), rate)])


def test_no_tracks(loaded: AudioEncoder) -> None:
    encoding = loaded.encode_rows([])
    assert loaded.encode([]).shape == encoding.vectors.shape == (0, 1024)
    assert all(values.shape == (0,) for values in encoding.columns.values())


@pytest.mark.slow
def test_windows_are_embedded_as_they_are_read(loaded: AudioEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An iterator is consumed while earlier windows are embedded, so that a long recording is never held."""
    monkeypatch.setattr(encoder_module, "GROUP_BYTES", 1)
    progress, seen = list[int](), list[int]()
    monkeypatch.setattr(loaded, "on_progress", progress.append)
    samples = np.random.default_rng(0).random(40 * 882) - 0.5

    def windows() -> Any:
        for each in AudioEncoder.windows(samples, 0.02, sample_rate=44100):
            seen.append(sum(progress))
            yield each

    vectors = loaded.encode(windows())
    assert len(vectors) == 40 == sum(progress)
    assert seen[-1] > 0
    _close(vectors, loaded.encode(list(AudioEncoder.windows(samples, 0.02, sample_rate=44100))))


@pytest.mark.parametrize(("fits", "on_the_device"), [(1, False), (3, False), (1, True)])
def test_out_of_memory_halves_the_micro_batch(
    loaded: AudioEncoder, monkeypatch: pytest.MonkeyPatch, fits: int, on_the_device: bool
) -> None:
    """Nothing is lost, and the size is remembered; a single track that does not fit is a MemoryError."""
    whole, tower = loaded.encode(TRACKS), loaded.tower

    class LowMemory:
        limit, dim, expect, project = fits, tower.dim, tower.expect, tower.project

        def features(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > self.limit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return tower.features(x)

    monkeypatch.setattr(loaded, "tower", LowMemory())
    if on_the_device:  # as on CUDA: spectrograms are computed with each micro-batch, and again if it did not fit
        monkeypatch.setattr(loaded, "_prepare", lambda track, rate: prepare(track, rate, loaded.jina))
    encoding = loaded.encode_rows(TRACKS)
    _close(encoding.vectors, whole)
    assert encoding.work.oom_retries > 0
    monkeypatch.setattr(LowMemory, "limit", 0)
    with pytest.raises(MemoryError, match=r"too little free memory for a single recording of 0\.0 seconds"):
        loaded.encode(TRACKS[:1])


def test_samples_and_vectors_do_not_wait_on_cuda(loaded: AudioEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples go there through pinned memory, and vectors come back by a copy that is queued like a launch."""
    whole, pinned = loaded.encode(TRACKS), 0

    def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
        nonlocal pinned
        pinned += 1
        return torch.from_numpy(array)

    class Copy(HostCopy):
        def __init__(self, *tensors: torch.Tensor) -> None:
            assert device_module._LAUNCHES.locked(), "an exit waits for it"
            super().__init__(*tensors)

        def arrays(self) -> list[Any]:
            assert not device_module._LAUNCHES.locked(), "another thread can launch meanwhile"
            return super().arrays()

    monkeypatch.setattr(encoder_module, "to_device", to_device)
    monkeypatch.setattr(encoder_module, "HostCopy", Copy)
    monkeypatch.setattr(encoder_module, "current_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(loaded, "device", torch.device("cuda", 0))
    _close(loaded.encode(TRACKS), whole)
    assert pinned >= len(TRACKS)


def test_threads_share_an_encoder(loaded: AudioEncoder) -> None:
    """Calls of several threads at once give the vectors of calls one after the other."""
    tracks = TRACKS[:4]
    expected, results = loaded.encode(tracks), dict[int, Any]()
    threads = [threading.Thread(target=lambda n=n: results.update({n: loaded.encode(tracks)})) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for vectors in results.values():
        _close(vectors, expected)


@pytest.mark.slow
def test_normalize() -> None:
    one = AudioEncoder(load_checkpoint("untrained", "audio"), AudioSettings("untrained", "cpu", normalize=True))
    plain = encoder().encode(TRACKS[:3])
    np.testing.assert_allclose(
        one.encode(TRACKS[:3]), plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": "evil"}, "variant='evil': choose one of audioclip, jina"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"device": "cpu", "dtype": "float16"}, "dtype='float16': it needs a CUDA device"),
    ],
)
def test_settings_that_are_unknown(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AudioEncoder.load("untrained", **change)


def test_the_fingerprint_has_what_decides_a_vector() -> None:
    parts = encoder().info.fingerprint_parts
    settings = {"scheme", "head", "weights", "variant", "window", "hop", "normalize", "dtype"}
    assert set(parts) == settings | set(decoder_parts())
    assert (parts["head"], parts["variant"], parts["window"], parts["hop"]) == ("audio", "audioclip", "whole", "whole")
    assert AudioSettings("a", window=10.0).fingerprint_parts()["hop"] == "10"
    with pytest.raises(ValueError, match="jina"):
        AudioSettings("a", variant="jina", window=10.0).check()


@pytest.mark.slow
def test_pickling() -> None:
    """A loaded encoder is pickled as its settings; one that was made of a checkpoint is not."""
    one = AudioEncoder.load("untrained", device="cpu", window=10, hop=5)
    expected = AUDIO.describe(AudioSettings("untrained", window=10.0, hop=5.0), load_checkpoint("untrained", "audio"))
    assert one.info == expected, "the fingerprint is that of a snapshot with these windows"
    pickled = pickle.dumps(one)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).encode(TRACKS[:2]), one.encode(TRACKS[:2]))
    with pytest.raises(TypeError, match="made of a Checkpoint cannot be pickled"):
        pickle.dumps(encoder())


FORK = """
import os, sys
import numpy as np
from audioclip_beam.model.audio import AudioEncoder
encoder = AudioEncoder.load("untrained", device="cpu")
encoder.encode([np.zeros(900)], sample_rate=44100)
if (child := os.fork()) == 0:
    try:
        encoder.encode([np.zeros(900)], sample_rate=44100)
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_fork_is_refused() -> None:
    command = [str(preloaded_programs() / "python"), "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("this AudioEncoder belongs to process ")


def _faulty(change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, torch.Tensor]:
    state = dict(load_checkpoint("untrained", "audio").state)
    change(state)
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("audio.att3.bn.bias"), r"audio\.att3\.bn\.bias is missing"),
        (lambda s: s.update({"audio.layer9.x": torch.zeros(1)}), r"audio\.layer9\.x is not known"),
        (lambda s: s.update({"audio.fc.bias": torch.zeros(3)}), r"audio\.fc\.bias has shape \[3\] instead of \[1024\]"),
        (lambda s: s.update({"audio.fc.bias": torch.full((1024,), torch.nan)}), "contains NaN"),
        (lambda s: s.update({"audio.bn1.running_var": -torch.ones(64)}), "contains negative numbers"),
    ],
)
def test_checkpoints_that_are_no_audio_head(tmp_path: Path, change: Any, words: str) -> None:
    torch.save(_faulty(change), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"does not contain an AudioCLIP audio head: .*{words}"):
        AudioEncoder.load(tmp_path / "a.pt", device="cpu")


def test_the_untrained_head_has_the_released_tensors() -> None:
    """Names and shapes are those of a released checkpoint, without the counters and the empty bias."""
    released = json.loads((DATA / "keys.json").read_text())
    expected = {name: list(shape) for name, (shape, _) in released.items() if shapes.is_member(name)}
    assert {
        name: list(tensor.shape) for name, tensor in load_checkpoint("untrained", "audio").state.items()
    } == expected
