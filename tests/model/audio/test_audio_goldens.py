"""The audio head's vectors are the original's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audioclip_beam.model import AudioSettings, load_checkpoint
from audioclip_beam.model.audio import AudioEncoder
from audioclip_beam.model.audio import tower as tower_module
from audioclip_beam.model.device import no_tf32
from tests.support.paths import DATA
from tests.support.plain_audio import difference, encoder, spread
from tests.support.tracks import TRACKS, track, uniform

SHORT = [name for name, (_, samples, rate, *_) in TRACKS.items() if samples < 0.06 * rate]


def _golden(name: str) -> NDArray[Any]:
    with np.load(DATA / "audio.npz") as file:
        values: NDArray[Any] = file[name]
        return values


def _names(key: str) -> list[str]:
    names: list[str] = json.loads(str(_golden(key)))
    return names


@pytest.mark.parametrize(
    "names", [pytest.param(SHORT, id="short"), pytest.param(list(TRACKS), id="all", marks=pytest.mark.slow)]
)
def test_vectors_are_the_published_evaluation_codes(names: list[str]) -> None:
    """Within five times what another order of summation makes, or 2e-5; tracks of several channels are averaged."""
    places = [_names("names").index(name) for name in names]
    vectors = encoder().encode([track(*TRACKS[name]) for name in names])
    expected, spreads = _golden("vectors_eval_scaled")[places], _golden("summation_spread")[places]
    for name, actual, golden, noise in zip(names, vectors, expected, spreads, strict=True):
        assert difference(actual, golden) <= (1e-2 if np.isnan(noise) else max(2e-5, 5 * noise)), name


@pytest.mark.parametrize(
    ("stereo", "longest"),
    [
        pytest.param(False, 2.1, marks=pytest.mark.slow),
        pytest.param(True, 5.1, marks=pytest.mark.slow),
        pytest.param(False, 5.1, marks=pytest.mark.extra),  # longer tracks have no golden
    ],
)
def test_variant_jina_gives_the_executors_vectors(stereo: bool, longest: float) -> None:
    """Each track of up to so many seconds is normalized by itself, mono and as two channels."""
    names = _names("stereo_names" if stereo else "names")
    expected = _golden("vectors_stereo_jina_evil" if stereo else "vectors_jina_evil")
    jina = encoder("jina")
    for name, golden in zip(names, expected, strict=True):
        kind, samples, rate, channels, dtype, seed = TRACKS[name]
        if samples > longest * rate:
            continue  # the oracle takes up to a minute
        one = track(kind, samples, rate, channels, dtype, seed)
        if channels > 1 and not stereo:  # the golden is that of the mean
            mono = one.samples.astype(np.float32) / (32768 if dtype == "int16" else 1)
            one = type(one)(mono.mean(0), rate)
        found = difference(jina.encode([one])[0], golden)
        assert found <= 2e-5 or found <= 5 * spread(one, jina=True), name


@pytest.mark.parametrize(
    ("dtype", "tolerance", "lengths"),
    [
        ("float32", 2e-5, (1, 64)),
        pytest.param("float32", 2e-5, (1, 64, 313), marks=pytest.mark.slow),
        pytest.param("bfloat16", 0.02, (1, 64, 313), marks=pytest.mark.slow),
    ],
)
def test_the_network_alone(dtype: str, tolerance: float, lengths: tuple[int, ...]) -> None:
    """A given spectrogram of 1, 64 and 313 frames has the original's vector, with weights packed for its length or not."""
    tower = _tower(encoder(dtype=dtype))
    for frames in lengths:
        x, golden = _network_input(frames), _golden(f"network_only_{frames}")
        plain = tower(x).numpy()[0]
        tower.expect(frames, 100)
        packed = tower(x).numpy()[0]
        assert difference(plain, golden) <= tolerance
        np.testing.assert_array_equal(packed, plain)


def _network_input(frames: int) -> torch.Tensor:
    """Return the spectrogram [1, 3, 341, frames] of the golden of so many frames."""
    values = (uniform(3 * 341 * frames, "spectrogram", (1, 64, 313).index(frames)) - 0.5) * 60 - 50
    return torch.from_numpy(values.astype(np.float32).reshape(1, 3, 341, frames))


@pytest.mark.slow
def test_the_network_alone_with_all_products_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without such products too, which would else compute in float32 with rounded weights."""
    monkeypatch.setattr(tower_module, "computed_dtype", lambda device, dtype: dtype)
    state = load_checkpoint("untrained", "audio").state
    tower = tower_module.AudioTower(state, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert tower.dtype == torch.bfloat16
    for frames in (1, 64):
        found = tower(_network_input(frames)).numpy()[0]
        assert 1e-4 < difference(found, _golden(f"network_only_{frames}")) <= 0.02


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.02), ("float16", 0.02)])
def test_the_network_alone_on_a_gpu(dtype: str, tolerance: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = AudioSettings("untrained", "cuda", dtype)
    tower = AudioEncoder(load_checkpoint("untrained", "audio"), settings).tower
    for frames in (1, 64, 313):
        with no_tf32():
            found = tower(_network_input(frames).cuda()).cpu().numpy()[0]
        assert difference(found, _golden(f"network_only_{frames}")) <= tolerance


def _tower(loaded: AudioEncoder) -> Any:
    return loaded.tower
